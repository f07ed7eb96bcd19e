"""EfficientFormer: means of neighbouring pixels mix tokens, attention only at the end (Li et al., arXiv 2206.01191)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..errors import UnsupportedModelError
from ..graph import Array, GraphBuilder
from ..sources.source import Config, Tensors
from .convolution import BatchNorm, Convolution, Plane, pixels
from .image import ImageFamily, Size

BASE = "efficientformer"
_DEPTHS, _CHANNELS = (3, 2, 6, 4), (48, 96, 224, 448)
"""Of the four stages of EfficientFormer-L1."""


@dataclass(frozen=True)
class _Spec:
    depths: tuple[int, ...]
    channels: tuple[int, ...]
    downsamples: tuple[bool, ...]
    blocks: int  # of the last stage that attend
    heads: int
    key_dim: int
    values: int  # of so many channels that a head has, over its keys
    resolution: int
    mlp_ratio: float
    pool: int
    kernel: int
    stride: int
    activation: str
    scaled: bool
    eps: float
    norm_eps: float  # of batch norms


def spec(config: Config) -> _Spec:
    """Raises UnsupportedModelError for other channels than three, padding that changes sizes, and an attention of
    another width than the last stage."""
    channels = config.integer("num_channels", 3)
    config.refuse("num_channels", channels != 3 and channels, "images have red, green and blue")
    kernel, padding = config.integer("downsample_patch_size", 3), config.integer("downsample_pad", 1, minimum=0)
    config.refuse("downsample_patch_size", kernel % 2 == 0, "kernels of odd size are supported")
    config.refuse("downsample_pad", padding != kernel // 2, f"set {kernel // 2}, half of the kernel")
    pool = config.integer("pool_size", 3)
    config.refuse("pool_size", pool % 2 == 0, "windows of odd size are supported")
    sizes, depths = config.integers("hidden_sizes", _CHANNELS), config.integers("depths", _DEPTHS)
    blocks = config.integer("num_meta3d_blocks", 1, minimum=0)
    config.refuse("num_meta3d_blocks", blocks > depths[-1], f"the last stage has {depths[-1]} blocks")
    config.refuse("dim", blocks and config.integer("dim", 448) != sizes[-1], f"the last stage has {sizes[-1]} channels")
    downsamples = config.values.get("downsamples") or [True] * len(depths)
    return _Spec(
        depths=depths,
        channels=sizes,
        downsamples=tuple(bool(down) or a != b for down, a, b in zip(downsamples, sizes, sizes[1:], strict=False)),
        blocks=blocks,
        heads=config.integer("num_attention_heads", 8),
        key_dim=config.integer("key_dim", 32),
        values=config.integer("attention_ratio", 4),
        resolution=config.integer("resolution", 7),
        mlp_ratio=config.number("mlp_expansion_ratio", 4),
        pool=pool,
        kernel=kernel,
        stride=config.integer("downsample_stride", 2),
        activation=config.activation("hidden_act", "gelu"),
        scaled=config.flag("use_layer_scale", True),
        eps=config.number("layer_norm_eps", 1e-12),
        norm_eps=config.number("batch_norm_eps", 1e-5),
    )


def build(config: Config, tensors: Tensors, architecture: str, size: Size) -> tuple[GraphBuilder, str]:
    """From ``pixels``, float32 [height · width, channels] an image, to logits [images, labels], or to the last feature
    map, a row a pixel of it.

    Raises UnsupportedModelError for images whose last feature map is not the one that attention was made for.
    """
    b, facts = GraphBuilder(), spec(config)
    net = _Network(b, facts, tensors)
    x = net.run(pixels(b, size, 3), config)
    if architecture.endswith("Model"):
        return b, x.value
    heads = ["classifier", *["distillation_classifier"] * architecture.endswith("WithTeacher")]
    shape = tensors.shape("classifier.weight")
    weight, bias = (
        np.asarray(np.mean([np.asarray(read) for read in reads], axis=0, dtype=np.float32))
        for reads in (
            [tensors.weight(f"{head}.weight", *shape) for head in heads],
            [tensors.vector(f"{head}.bias", shape[0]) for head in heads],
        )
    )
    return b, b.linear(b.pool(x.value, "mean", of=x.domain), weight, bias, name="classifier")


@dataclass(frozen=True)
class _Network:
    b: GraphBuilder
    spec: _Spec
    tensors: Tensors

    def run(self, x: Plane, config: Config) -> Plane:
        facts, stem, place = self.spec, self.spec.channels[0], 0
        x = self.convolve(x, "patch_embed.convolution1", stem // 2, 3, "batchnorm_before", 2, "relu")
        x = self.convolve(x, "patch_embed.convolution2", stem, 3, "batchnorm_after", 2, "relu")
        for depth, channels, down in zip(facts.depths, facts.channels[1:], facts.downsamples, strict=False):
            x = self.mix(x, f"encoder.intermediate_stages.{place}", depth)
            if down:
                name = f"encoder.intermediate_stages.{place + 1}.projection"
                x = self.convolve(x, name, channels, facts.kernel, "norm", facts.stride)
            place += 2 if down else 1
        x = self.mix(x, "encoder.last_stage", facts.depths[-1] - facts.blocks)
        if facts.blocks and x.size != (facts.resolution, facts.resolution):
            raise UnsupportedModelError(
                f"{config.path}: 'resolution' is {facts.resolution}, but of the images that the preprocessing makes "
                f"{x.size[0]} × {x.size[1]} pixels are left; change 'size' or 'crop_size' there"
            )
        for i in range(facts.blocks):
            x = replace(x, value=self.attend(x, f"encoder.last_stage.meta3D_layers.blocks.{i}"))
        return replace(x, value=self.norm(x, x.value, "layernorm"))

    def convolve(
        self,
        x: Plane,
        name: str,
        outputs: int,
        kernel: int,
        norm: str,
        stride: int = 1,
        activation: str = "none",
        scale: Array | None = None,
        residual: Plane | None = None,
    ) -> Plane:
        """``norm`` lies beside the convolution ``name``; ``scale`` [outputs] multiplies what comes out."""
        beside = name.rpartition(".")[0]
        shape = (outputs, x.channels, kernel, kernel)
        batch = BatchNorm(f"{BASE}.{beside}.{norm}", self.spec.norm_eps)
        found = Convolution.read(name, self.tensors, f"{BASE}.{name}", shape, bias=True, norm=batch)
        if scale is not None:
            assert found.bias is not None  # every batch norm adds something
            found = replace(found, kernel=found.kernel * scale[:, None, None, None], bias=found.bias * scale)
        return found.append_to(self.b, x, stride=stride, activation=activation, residual=residual)

    def mix(self, x: Plane, name: str, depth: int) -> Plane:
        """Blocks that mix by means."""
        for i in range(depth):
            block = f"{name}.meta4D_layers.blocks.{i}"
            mixed = self.b.average(
                x.value, x.domain, name=block, size=self.spec.pool, weight=self.scale(block, 1, x.channels)
            )
            x = replace(x, value=mixed)
            hidden, scale = int(x.channels * self.spec.mlp_ratio), self.scale(block, 2, x.channels)
            up = self.convolve(
                x, f"{block}.mlp.convolution1", hidden, 1, "batchnorm_before", activation=self.spec.activation
            )
            x = self.convolve(
                up, f"{block}.mlp.convolution2", x.channels, 1, "batchnorm_after", scale=scale, residual=x
            )
        return x

    def attend(self, x: Plane, name: str) -> str:
        """A transformer layer, whose heads have more values than keys: they are attended to in parts as wide as keys.
        Pairs of pixels have a bias by how far they are from each other."""
        b, facts, mixer = self.b, self.spec, f"{name}.token_mixer"
        heads, wide = facts.heads, facts.heads * facts.key_dim
        parts = 2 + facts.values
        weight, bias = self.linear(f"{mixer}.qkv", parts * wide, x.channels)
        order = np.arange(parts * wide).reshape(heads, parts, -1).swapaxes(0, 1).reshape(-1)
        qkv = b.linear(self.norm(x, x.value, f"{name}.layernorm1"), weight[order], bias[order], name=f"{mixer}.qkv")
        q, k, *values = (b.columns(qkv, i * wide, wide) for i in range(parts))
        table = (f"{mixer}.biases", self.biases(mixer))
        mixed = b.concat(
            [
                b.attend(
                    q,
                    b.store(k, v, heads=heads, head_dim=facts.key_dim, domain=x.domain),
                    scale=facts.key_dim**-0.5,
                    pair_bias=table,
                )
                for v in values
            ]
        )
        scale = self.scale(name, 1, x.channels)
        weight, bias = self.linear(f"{mixer}.projection", x.channels, facts.values * wide, scale)
        order = np.arange(facts.values * wide).reshape(heads, facts.values, -1).swapaxes(0, 1).reshape(-1)
        value = b.linear(mixed, weight[:, order], bias, name=f"{mixer}.projection", residual=x.value)
        hidden = int(x.channels * facts.mlp_ratio)
        weight, bias = self.linear(f"{name}.mlp.linear_in", hidden, x.channels)
        normed = self.norm(x, value, f"{name}.layernorm2")
        up = b.linear(normed, weight, bias, name=f"{name}.mlp.linear_in", activation=facts.activation)
        weight, bias = self.linear(f"{name}.mlp.linear_out", x.channels, hidden, self.scale(name, 2, x.channels))
        return b.linear(up, weight, bias, name=f"{name}.mlp.linear_out", residual=value)

    def biases(self, mixer: str) -> Array:
        """[heads, pixels, pixels] of those of each distance down and across, in the order in which pairs have them."""
        side = self.spec.resolution
        line, column = np.divmod(np.arange(side * side), side)
        far = np.abs(line[:, None] - line) * side + np.abs(column[:, None] - column)
        found = self.tensors.weight(f"{BASE}.{mixer}.attention_biases", self.spec.heads, side * side)
        return np.ascontiguousarray(np.asarray(found)[:, far])

    def linear(self, name: str, outputs: int, inputs: int, scale: Array | None = None) -> tuple[Array, Array]:
        weight = np.asarray(self.tensors.weight(f"{BASE}.{name}.weight", outputs, inputs))
        bias = self.tensors.vector(f"{BASE}.{name}.bias", outputs)
        return (weight, bias) if scale is None else (weight * scale[:, None], bias * scale)

    def norm(self, x: Plane, value: str, name: str) -> str:
        weight, bias = (self.tensors.vector(f"{BASE}.{name}.{part}", x.channels) for part in ("weight", "bias"))
        return self.b.norm(value, weight, bias, name=name, eps=self.spec.eps)

    def scale(self, block: str, part: int, channels: int) -> Array | None:
        return self.tensors.vector(f"{BASE}.{block}.layer_scale_{part}", channels) if self.spec.scaled else None


EFFICIENTFORMER = ImageFamily(
    "efficientformer",
    BASE,
    "patch_embed.convolution1.weight",
    {
        "EfficientFormerForImageClassification": "classify_image",
        "EfficientFormerForImageClassificationWithTeacher": "classify_image",
        "EfficientFormerModel": "embed_image",
    },
    build,
)
