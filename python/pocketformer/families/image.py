"""What encoders of images share: patches as tokens behind rows of their own, and the families' interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ..errors import UnsupportedModelError
from ..graph import Array, GraphBuilder, Table
from ..lazy import lazy
from ..sources.source import Config, Tensors
from .transformer import LayerSpec

Size: TypeAlias = tuple[int, int]
"""Height and width in pixels."""
PATCHES = "patches"


@dataclass(frozen=True)
class ImageFamily:
    """One architecture over pixels.

    ``name`` is the ``model_type``, ``base`` prefixes the encoder's tensors where there is a head, and ``table`` is a
    tensor that every encoder has, below it. ``classes`` gives the task of each class of transformers; ``build(config,
    tensors, class, size)`` returns a graph for images of ``size`` and its output.
    """

    name: str
    base: str
    table: str
    classes: Mapping[str, str]
    build: Callable[[Config, Tensors, str, Size], tuple[GraphBuilder, str]]


@dataclass(frozen=True)
class ImageSpec:
    """Images of ``channels`` in square patches of ``patch`` pixels, trained at ``image`` × ``image``."""

    image: int
    channels: int
    patch: int
    layer: LayerSpec
    layers: int

    def grid(self, size: Size) -> Size:
        """Rows and columns of whole patches."""
        return size[0] // self.patch, size[1] // self.patch


def image_spec(config: Config, layer: LayerSpec) -> ImageSpec:
    """Raises UnsupportedModelError for other images than those of red, green and blue."""
    channels = config.integer("num_channels", 3)
    config.refuse("num_channels", channels != 3, "images have red, green and blue")
    image, patch = config.integer("image_size", 224), config.integer("patch_size", 16)
    if patch > image:
        raise UnsupportedModelError(f"{config.path}: 'patch_size' is {patch}, larger than 'image_size' {image}")
    return ImageSpec(image, channels, patch, layer, config.integer("num_hidden_layers", 12))


def require_size(config: Config, spec: ImageSpec, size: Size) -> None:
    """Raises UnsupportedModelError where the preprocessing makes images of another size than the positions are for."""
    if spec.image % spec.patch:
        raise UnsupportedModelError(
            f"{config.path}: 'image_size' is {spec.image}, no multiple of the patch size {spec.patch}"
        )
    if size != (spec.image, spec.image):
        raise UnsupportedModelError(
            f"{config.path}: 'image_size' is {spec.image}, but the preprocessing makes images of {size[0]} × {size[1]}"
            "; change 'size' or 'crop_size' there"
        )


def patches(
    b: GraphBuilder,
    spec: ImageSpec,
    size: Size,
    kernel: Array,
    bias: Array | None,
    positions: Array | None,
    domain: str = PATCHES,
) -> str:
    """A row for each patch of ``pixels``: its product with ``kernel`` [hidden, channels, patch, patch], and its
    position where these have a table. ``domain`` is what to call these rows."""
    b.domain("image", "grid", height=size[0], width=size[1])
    b.inputs.append({"name": "pixels", "domain": "image", "dtype": "f32", "width": spec.channels})
    down, across = spec.grid(size)
    b.domain(domain, "grid", "image", height=down, width=across)
    x = b.unfold("pixels", domain, height=spec.patch, width=spec.patch, stride=spec.patch)
    pixel_by_pixel = np.ascontiguousarray(np.asarray(kernel).transpose(0, 2, 3, 1).reshape(len(kernel), -1))
    x = b.linear(x, pixel_by_pixel, bias, name="embed.patches")
    return x if positions is None else b.embed([Table("embed.positions", positions, "positions")], add_to=x)


def tokens(b: GraphBuilder, x: str, first: Array) -> str:
    """The patches behind the rows ``first``, which have their positions already."""
    return b.prepend(x, first, b.domain("tokens", "ragged", PATCHES, prepended=len(first)), name="embed.first")


@dataclass(frozen=True)
class ScaledTensors:
    """``tensors``, some multiplied: ``factors`` gives a number for each row [n] of the tensor of a name, or None."""

    tensors: Tensors
    factors: Callable[[str], Array | None]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors.shape(name)

    def weight(self, name: str, *shape: int) -> Array:
        weight, factors = self.tensors.weight(name, *shape), self.factors(name)
        if factors is None:
            return weight
        column = factors.reshape(-1, *(1,) * (len(shape) - 1))
        return lazy(weight.shape, lambda begin, end: np.asarray(weight[begin:end]) * column[begin:end])

    def vector(self, name: str, length: int) -> Array:
        vector, factors = self.tensors.vector(name, length), self.factors(name)
        return vector if factors is None else vector * factors
