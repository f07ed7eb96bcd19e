"""MobileViTv2: inverted residuals, and transformers whose attention has one query a layer (separable self-attention,
Mehta and Rastegari, arXiv 2206.02680)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import UnsupportedModelError
from ..graph import Array, GraphBuilder
from ..sources.source import Config, Tensors
from .convolution import IMAGE, Plane, grid, pixels
from .image import ImageFamily, Size
from .mobilenet import MobileNet, divisible, kernel_lines
from .transformer import linear

BASE = "mobilevitv2"


@dataclass(frozen=True)
class _Spec:
    necks: tuple[int, ...]  # channels after the stem and each of the five blocks
    hidden: tuple[int, ...]  # of the transformers
    layers: tuple[int, ...]
    patch: int
    kernel: int
    ffn: int  # hidden channels of a feed-forward network over its inputs
    eps: float


def spec(config: Config) -> _Spec:
    """Raises UnsupportedModelError for what ``kernel_lines`` refuses."""
    width = config.number("width_multiplier", 1.0)
    stem = divisible(min(max(32 * width, 16), 64))
    return _Spec(
        necks=(stem, divisible(64 * width, 16), *(divisible(n * width) for n in (128, 256, 384, 512))),
        hidden=tuple(divisible(n * width) for n in config.integers("base_attn_unit_dims", (128, 192, 256))),
        layers=config.integers("n_attn_blocks", (2, 4, 3)),
        patch=config.integer("patch_size", 2),
        kernel=kernel_lines(config),
        ffn=config.integer("ffn_multiplier", 2),
        eps=config.number("layer_norm_eps", 1e-5),
    )


def build(config: Config, tensors: Tensors, architecture: str, size: Size) -> tuple[GraphBuilder, str]:
    """From ``pixels``, float32 [height · width, channels] an image, to logits [images, labels], or to the last feature
    map, a row a pixel of it.

    Raises UnsupportedModelError for images whose feature maps patches do not divide: transformers leaves zeros there.
    """
    b, facts = GraphBuilder(), spec(config)
    net = MobileNet(b, tensors, BASE, config.activation("hidden_act", "silu"), config.number("expand_ratio", 2.0))
    whole = 32 * facts.patch
    if size[0] % whole or size[1] % whole:
        raise UnsupportedModelError(
            f"{config.path}: the preprocessing makes images of {size[0]} × {size[1]}, but patches of 'patch_size' "
            f"{facts.patch} divide multiples of {whole} alone; change 'size' or 'crop_size' there"
        )
    x = net.convolve(pixels(b, size, 3), "conv_stem", facts.necks[0], 3, stride=2)
    x = net.inverted_residual(x, "encoder.layer.0.layer.0", facts.necks[1])
    for i in range(2):
        x = net.inverted_residual(x, f"encoder.layer.1.layer.{i}", facts.necks[2], stride=1 if i else 2)
    for i, (channels, hidden, layers) in enumerate(zip(facts.necks[3:], facts.hidden, facts.layers, strict=True)):
        name = f"encoder.layer.{i + 2}"
        x = net.inverted_residual(x, f"{name}.downsampling_layer", channels, stride=2)
        x = net.convolve(x, f"{name}.conv_kxk", channels, facts.kernel, inputs=1)
        x = net.convolve(x, f"{name}.conv_1x1", hidden, 1, activated=False, normalized=False)
        for j in range(layers):
            x = _Layer(net, facts, x, f"{name}.transformer.layer.{j}").run()
        x = replace(x, value=_normed(net, x, x.value, f"{name}.layernorm", facts.eps))
        x = net.convolve(x, f"{name}.conv_projection", channels, 1, activated=False)
    if not architecture.endswith("ForImageClassification"):
        return b, x.value
    labels = tensors.shape("classifier.weight")[0]
    mean = b.pool(x.value, "mean", of=x.domain)
    return b, b.linear(mean, *linear(tensors, "classifier", labels, x.channels), name="classifier")


def _normed(net: MobileNet, x: Plane, value: str, name: str, eps: float) -> str:
    """``value`` of the size of ``x``, by the mean and the deviation of the whole of it."""
    weight, bias = (net.tensors.vector(f"{BASE}.{name}.{part}", x.channels) for part in ("weight", "bias"))
    return net.b.standardize(value, weight, bias, name=name, eps=eps, of=IMAGE)


@dataclass(frozen=True)
class _Layer:
    """A transformer layer over the pixels of ``x``."""

    net: MobileNet
    spec: _Spec
    x: Plane
    name: str

    def run(self) -> Plane:
        x, width = self.x, self.x.channels
        normed = _normed(self.net, x, x.value, f"{self.name}.layernorm_before", self.spec.eps)
        value = self.linear(self.attend(normed), "attention.out_proj", width, width, residual=x.value)
        normed = _normed(self.net, x, value, f"{self.name}.layernorm_after", self.spec.eps)
        hidden = self.spec.ffn * width // 16 * 16
        up = self.linear(normed, "ffn.conv1", hidden, width, activation=self.net.activation)
        return replace(x, value=self.linear(up, "ffn.conv2", width, hidden, residual=value))

    def attend(self, normed: str) -> str:
        """Each pixel's values times the sum of the keys at its place in all patches, by how they score."""
        b, x, patch, width = self.net.b, self.x, self.spec.patch, self.x.channels
        name = f"{self.name}.attention"
        weight, bias = self.read("attention.qkv_proj", 1 + 2 * width, width)
        order = [*range(1, width + 1), 0]  # keys, then the score
        scored = b.linear(normed, weight[order], bias[order], name=f"{name}.keys")
        window, windows = {"height": patch, "width": patch}, grid(b, (x.size[0] // patch, x.size[1] // patch))
        keys, scores = (
            b.unfold(b.columns(scored, *part), windows, stride=patch, **window) for part in ((0, width), (width, 1))
        )
        context = b.fold(b.spread(b.soft_pool(keys, scores, of=IMAGE), windows), x.domain, **window)
        values = slice(1 + width, None)
        return b.linear(
            normed, weight[values], bias[values], name=f"{name}.values", activation="relu", multiply=context
        )

    def linear(self, x: str, name: str, outputs: int, inputs: int, **options: Any) -> str:
        return self.net.b.linear(x, *self.read(name, outputs, inputs), name=f"{self.name}.{name}", **options)

    def read(self, name: str, outputs: int, inputs: int) -> tuple[Array, Array]:
        prefix = f"{BASE}.{self.name}.{name}.convolution"
        weight = np.asarray(self.net.tensors.weight(f"{prefix}.weight", outputs, inputs, 1, 1))
        return weight.reshape(outputs, inputs), self.net.tensors.vector(f"{prefix}.bias", outputs)


MOBILEVITV2 = ImageFamily(
    "mobilevitv2",
    BASE,
    "conv_stem.convolution.weight",
    {"MobileViTV2ForImageClassification": "classify_image", "MobileViTV2Model": "embed_image"},
    build,
)
