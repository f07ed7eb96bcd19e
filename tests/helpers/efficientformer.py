"""EfficientFormer in torch, written from the paper (Li et al., arXiv 2206.01191), with the names that its checkpoints
have: no current release of transformers has the model."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

CONFIG: dict[str, Any] = {
    "model_type": "efficientformer",
    "depths": [1, 2, 1, 3],
    "hidden_sizes": [8, 12, 20, 24],
    "downsamples": [True, True, True, True],
    "dim": 24,
    "key_dim": 8,
    "attention_ratio": 3,
    "resolution": 2,
    "num_attention_heads": 3,
    "mlp_expansion_ratio": 4,
    "num_channels": 3,
    "pool_size": 3,
    "downsample_patch_size": 3,
    "downsample_stride": 2,
    "downsample_pad": 1,
    "num_meta3d_blocks": 2,
    "use_layer_scale": True,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-2,
    "batch_norm_eps": 1e-5,
    "id2label": {str(i): f"LABEL_{i}" for i in range(5)},
}


class Stem(nn.Module):
    def __init__(self, c: Any) -> None:
        super().__init__()
        width = c.hidden_sizes[0]
        self.convolution1 = nn.Conv2d(3, width // 2, 3, 2, 1)
        self.batchnorm_before = nn.BatchNorm2d(width // 2, c.batch_norm_eps)
        self.convolution2 = nn.Conv2d(width // 2, width, 3, 2, 1)
        self.batchnorm_after = nn.BatchNorm2d(width, c.batch_norm_eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.batchnorm_before(self.convolution1(x)).relu()
        return self.batchnorm_after(self.convolution2(x)).relu()


class Downsampling(nn.Module):
    def __init__(self, c: Any, inputs: int, outputs: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(inputs, outputs, c.downsample_patch_size, c.downsample_stride, c.downsample_pad)
        self.norm = nn.BatchNorm2d(outputs, c.batch_norm_eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.projection(x))


class ConvolutionalMlp(nn.Module):
    def __init__(self, c: Any, width: int) -> None:
        super().__init__()
        hidden = int(width * c.mlp_expansion_ratio)
        self.convolution1 = nn.Conv2d(width, hidden, 1)
        self.convolution2 = nn.Conv2d(hidden, width, 1)
        self.batchnorm_before = nn.BatchNorm2d(hidden, c.batch_norm_eps)
        self.batchnorm_after = nn.BatchNorm2d(width, c.batch_norm_eps)
        self.act = {"gelu": nn.functional.gelu, "relu": torch.relu}[c.hidden_act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.batchnorm_after(self.convolution2(self.act(self.batchnorm_before(self.convolution1(x)))))


class Block4D(nn.Module):
    """Mixes by the mean of neighbours, less the pixel itself."""

    def __init__(self, c: Any, width: int) -> None:
        super().__init__()
        self.mean = nn.AvgPool2d(c.pool_size, 1, c.pool_size // 2, count_include_pad=False)
        self.mlp = ConvolutionalMlp(c, width)
        if c.use_layer_scale:
            self.layer_scale_1 = nn.Parameter(torch.ones(width))
            self.layer_scale_2 = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, part in enumerate((lambda y: self.mean(y) - y, self.mlp), 1):
            scale = getattr(self, f"layer_scale_{i}", torch.ones(1))
            x = x + scale[:, None, None] * part(x)
        return x


class Attention(nn.Module):
    def __init__(self, c: Any) -> None:
        super().__init__()
        self.heads, self.parts = c.num_attention_heads, [c.key_dim, c.key_dim, c.attention_ratio * c.key_dim]
        self.qkv = nn.Linear(c.dim, sum(self.parts) * self.heads)
        self.projection = nn.Linear(self.parts[2] * self.heads, c.dim)
        pixels = list(itertools.product(range(c.resolution), repeat=2))
        offsets: dict[tuple[int, int], int] = {}
        for a, b in itertools.product(pixels, repeat=2):
            offsets.setdefault((abs(a[0] - b[0]), abs(a[1] - b[1])), len(offsets))
        self.attention_biases = nn.Parameter(torch.zeros(self.heads, len(offsets)))
        self.places = [[offsets[abs(a[0] - b[0]), abs(a[1] - b[1])] for b in pixels] for a in pixels]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (*x.shape[:2], self.heads, -1)
        q, k, v = (part.transpose(1, 2) for part in self.qkv(x).reshape(shape).split(self.parts, dim=3))
        scores = q @ k.transpose(2, 3) * self.parts[0] ** -0.5 + self.attention_biases[:, self.places]
        mixed = (scores.softmax(dim=-1) @ v).transpose(1, 2)
        return self.projection(mixed.reshape(*x.shape[:2], -1))


class DenseMlp(nn.Module):
    def __init__(self, c: Any) -> None:
        super().__init__()
        hidden = int(c.dim * c.mlp_expansion_ratio)
        self.linear_in, self.linear_out = nn.Linear(c.dim, hidden), nn.Linear(hidden, c.dim)
        self.act = {"gelu": nn.functional.gelu, "relu": torch.relu}[c.hidden_act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear_out(self.act(self.linear_in(x)))


class Block3D(nn.Module):
    def __init__(self, c: Any) -> None:
        super().__init__()
        self.token_mixer, self.mlp = Attention(c), DenseMlp(c)
        self.layernorm1, self.layernorm2 = (nn.LayerNorm(c.dim, c.layer_norm_eps) for _ in range(2))
        if c.use_layer_scale:
            self.layer_scale_1, self.layer_scale_2 = (nn.Parameter(torch.ones(c.dim)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + getattr(self, "layer_scale_1", 1) * self.token_mixer(self.layernorm1(x))
        return x + getattr(self, "layer_scale_2", 1) * self.mlp(self.layernorm2(x))


def stage(c: Any, width: int, depth: int, attending: int | None = None) -> nn.Module:
    parts: dict[str, nn.Module] = {"meta4D_layers": nn.Module()}
    parts["meta4D_layers"].blocks = nn.Sequential(*(Block4D(c, width) for _ in range(depth)))
    if attending is not None:
        parts["meta3D_layers"] = nn.Module()
        parts["meta3D_layers"].blocks = nn.Sequential(*(Block3D(c) for _ in range(attending)))
    return nn.ModuleDict(parts)


class Encoder(nn.Module):
    def __init__(self, c: Any) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for i, (depth, width) in enumerate(zip(c.depths[:-1], c.hidden_sizes, strict=False)):
            stages.append(stage(c, width, depth))
            if c.downsamples[i] or width != c.hidden_sizes[i + 1]:
                stages.append(Downsampling(c, width, c.hidden_sizes[i + 1]))
        self.intermediate_stages = nn.ModuleList(stages)
        last = c.depths[-1] - c.num_meta3d_blocks
        self.last_stage = stage(c, c.hidden_sizes[-1], last, c.num_meta3d_blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.intermediate_stages:
            x = part(x) if isinstance(part, Downsampling) else part["meta4D_layers"].blocks(x)
        x = self.last_stage["meta4D_layers"].blocks(x)
        return self.last_stage["meta3D_layers"].blocks(x.flatten(2).transpose(1, 2))


class EfficientFormer(nn.Module):
    """Logits, or the hidden states where there is no classifier."""

    def __init__(self, heads: int, **options: Any) -> None:
        super().__init__()
        suffixes = ("Model", "ForImageClassification", "ForImageClassificationWithTeacher")
        self.values = {**CONFIG, "architectures": [f"EfficientFormer{suffixes[heads]}"], **options}
        c: Any = SimpleNamespace(**self.values)
        self.efficientformer = nn.Module()
        self.efficientformer.patch_embed, self.efficientformer.encoder = Stem(c), Encoder(c)
        self.efficientformer.layernorm = nn.LayerNorm(c.hidden_sizes[-1], c.layer_norm_eps)
        if heads:
            self.classifier = nn.Linear(c.hidden_sizes[-1], 5)
        if heads == 2:
            self.distillation_classifier = nn.Linear(c.hidden_sizes[-1], 5)

    def forward(self, x: torch.Tensor) -> Any:
        base = self.efficientformer
        x = base.layernorm(base.encoder(base.patch_embed(x)))
        heads = [head for name, head in self.named_children() if name.endswith("classifier")]
        if not heads:
            return SimpleNamespace(hidden=x)
        mean = x.mean(dim=1)
        return SimpleNamespace(logits=sum(head(mean) for head in heads) / len(heads))

    def save(self, folder: Path) -> None:
        headless = not hasattr(self, "classifier")
        tensors = {
            name.removeprefix("efficientformer.") if headless else name: tensor.contiguous()
            for name, tensor in self.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(self.values), encoding="utf-8")
