"""MobileViT: inverted residuals, and transformers over the pixels at the same place of all patches (Mehta et al., arXiv
2110.02178)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..graph import GraphBuilder
from ..sources.source import Config, Tensors
from .convolution import Plane, concat, grid, pixels, resize
from .image import ImageFamily, Size
from .mobilenet import MobileNet, kernel_lines
from .transformer import Layer, LayerSpec, linear, norm
from .vit import NAMES

BASE = "mobilevit"
_LAYERS = (2, 4, 3)
"""Transformer layers of the three blocks that have any."""


@dataclass(frozen=True)
class _Spec:
    necks: tuple[int, ...]  # channels after the stem, each of the five blocks, and the last convolution
    hidden: tuple[int, ...]  # of the transformers
    heads: int
    patch: int
    kernel: int
    activation: str
    mlp_ratio: float
    eps: float
    qkv_bias: bool

    def layer(self, hidden: int) -> LayerSpec:
        return LayerSpec(
            hidden=hidden,
            heads=self.heads,
            ffn=int(hidden * self.mlp_ratio),
            activation=self.activation,
            eps=self.eps,
            norm="pre",
            qkv_bias=self.qkv_bias,
        )


def spec(config: Config) -> _Spec:
    """Raises UnsupportedModelError for what ``kernel_lines`` refuses."""
    return _Spec(
        necks=config.integers("neck_hidden_sizes", (16, 32, 64, 96, 128, 160, 640)),
        hidden=config.integers("hidden_sizes", (144, 192, 240)),
        heads=config.integer("num_attention_heads", 4),
        patch=config.integer("patch_size", 2),
        kernel=kernel_lines(config),
        activation=config.activation("hidden_act", "silu"),
        mlp_ratio=config.number("mlp_ratio", 2.0),
        eps=config.number("layer_norm_eps", 1e-5),
        qkv_bias=config.values.get("qkv_bias", True) is not False,
    )


def build(config: Config, tensors: Tensors, architecture: str, size: Size) -> tuple[GraphBuilder, str]:
    """From ``pixels``, float32 [height · width, channels] an image, to logits [images, labels], or to the last feature
    map, a row a pixel of it."""
    b = GraphBuilder()
    facts = spec(config)
    net = _Network(b, tensors, BASE, facts.activation, config.number("expand_ratio", 4.0), facts)
    x = net.run(pixels(b, size, 3))
    if not architecture.endswith("ForImageClassification"):
        return b, x.value
    labels = tensors.shape("classifier.weight")[0]
    mean = b.pool(x.value, "mean", of=x.domain)
    return b, b.linear(mean, *linear(tensors, "classifier", labels, x.channels), name="classifier")


@dataclass(frozen=True)
class _Network(MobileNet):
    spec: _Spec

    def run(self, x: Plane) -> Plane:
        """The pixels to the last feature map."""
        necks = self.spec.necks
        x = self.convolve(x, "conv_stem", necks[0], 3, stride=2)
        x = self.inverted_residual(x, "encoder.layer.0.layer.0", necks[1])
        for i in range(3):
            x = self.inverted_residual(x, f"encoder.layer.1.layer.{i}", necks[2], stride=1 if i else 2)
        for i, (channels, hidden, layers) in enumerate(zip(necks[3:6], self.spec.hidden, _LAYERS, strict=True)):
            x = self.block(x, f"encoder.layer.{i + 2}", channels, hidden, layers)
        return self.convolve(x, "conv_1x1_exp", necks[6], 1)

    def block(self, x: Plane, name: str, channels: int, hidden: int, layers: int) -> Plane:
        """A downsampling, then a transformer beside what it is given."""
        x = before = self.inverted_residual(x, f"{name}.downsampling_layer", channels, stride=2)
        x = self.convolve(x, f"{name}.conv_kxk", channels, self.spec.kernel)
        x = self.convolve(x, f"{name}.conv_1x1", hidden, 1, activated=False, normalized=False)
        x = resize(self.b, self.transform(x, name, hidden, layers), before.size)
        x = self.convolve(x, f"{name}.conv_projection", channels, 1)
        return self.convolve(concat(self.b, before, x), f"{name}.fusion", channels, self.spec.kernel)

    def transform(self, x: Plane, name: str, hidden: int, layers: int) -> Plane:
        """The transformer, at the size of whole patches."""
        patch, prefix = self.spec.patch, f"{BASE}.{name}."
        x = resize(self.b, x, (_multiple(x.size[0], patch), _multiple(x.size[1], patch)))
        layer, value = self.spec.layer(hidden), x.value
        for i in range(layers):
            of = f"{prefix}transformer.layer.{i}."
            read = Layer.read(f"{name}.transformer.{i}", layer, self.tensors, of, NAMES)
            value = read.append_to(self.b, value, attend=self.attention(x, layer))
        last = norm(self.tensors, f"{prefix}layernorm", hidden)
        return replace(x, value=self.b.norm(value, *last, name=f"{name}.layernorm", eps=layer.eps))

    def attention(self, x: Plane, layer: LayerSpec) -> Callable[[str], str]:
        """Each pixel of a patch attends to those at its place in the others: a row a patch, its pixels' heads side by
        side."""
        b, patch, hidden = self.b, self.spec.patch, layer.hidden
        window = {"height": patch, "width": patch}
        domain = grid(b, (x.size[0] // patch, x.size[1] // patch))

        def attend(qkv: str) -> str:
            parts = (b.columns(qkv, begin, hidden) for begin in range(0, 3 * hidden, hidden))
            q, k, v = [b.unfold(part, domain, stride=patch, **window) for part in parts]
            heads, head_dim = patch * patch * layer.heads, layer.head_width
            state = b.store(k, v, heads=heads, head_dim=head_dim, domain=domain)
            return b.fold(b.attend(q, state, scale=head_dim**-0.5), x.domain, **window)

        return attend


def _multiple(n: int, of: int) -> int:
    return -(-n // of) * of


MOBILEVIT = ImageFamily(
    "mobilevit",
    BASE,
    "conv_stem.convolution.weight",
    {"MobileViTForImageClassification": "classify_image", "MobileViTModel": "embed_image"},
    build,
)
