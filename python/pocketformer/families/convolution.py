"""Convolutions over a grid of pixels, channels last: those of one pixel are a product, others a product of windows, and
those of each channel by itself an operator of their own. Batch norms are folded into weights and biases."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..graph import Array, GraphBuilder
from ..sources.source import Tensors
from .image import Size

IMAGE = "image"
"""The domain of the pixels."""


@dataclass(frozen=True)
class Plane:
    """A value over the grid ``domain`` of ``size``."""

    value: str
    domain: str
    size: Size
    channels: int


@dataclass(frozen=True)
class BatchNorm:
    """Where a checkpoint keeps a batch norm, and the number that it adds to the variance (arXiv 1502.03167)."""

    name: str
    eps: float

    def factors(self, tensors: Tensors, channels: int) -> tuple[Array, Array]:
        """What it multiplies and what it adds, float64 [channels], with the statistics of training."""
        weight, bias, mean, variance = (
            tensors.vector(f"{self.name}.{part}", channels).astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = weight / np.sqrt(variance + self.eps)
        return factor, bias - mean * factor


@dataclass(frozen=True)
class Convolution:
    """``kernel`` [outputs, inputs or 1 of each channel by itself, height, width] and ``bias`` [outputs], or none, as
    :meth:`append_to` names them ``name``."""

    name: str
    kernel: Array
    bias: Array | None

    @classmethod
    def read(
        cls,
        name: str,
        tensors: Tensors,
        prefix: str,
        shape: tuple[int, int, int, int],
        *,
        bias: bool = False,
        norm: BatchNorm | None = None,
    ) -> Convolution:
        """From ``prefix``.weight of ``shape`` and, where it has one, ``prefix``.bias, followed by ``norm``."""
        kernel = np.asarray(tensors.weight(f"{prefix}.weight", *shape))
        shift = tensors.vector(f"{prefix}.bias", shape[0]) if bias else None
        if norm is None:
            return cls(name, kernel, shift)
        factor, offset = norm.factors(tensors, shape[0])
        if shift is not None:
            offset = offset + shift * factor
        folded = (kernel * factor[:, None, None, None]).astype(np.float32)
        return cls(name, folded, offset.astype(np.float32))

    def append_to(
        self, b: GraphBuilder, x: Plane, *, stride: int = 1, activation: str = "none", residual: Plane | None = None
    ) -> Plane:
        """With as many zeros around ``x`` as keep its size where ``stride`` is 1; kernels are of odd size. ``residual``
        is added last."""
        outputs, inputs, height, width = self.kernel.shape
        padding = height // 2
        size = ((x.size[0] - 1) // stride + 1, (x.size[1] - 1) // stride + 1)
        domain = x.domain if size == x.size else grid(b, size)
        windows = {"height": height, "width": width, "stride": stride, "padding": padding}
        if inputs == 1 and x.channels == outputs > 1:
            taps = np.ascontiguousarray(self.kernel.reshape(outputs, -1).T)
            value = b.depthwise(x.value, taps, self.bias, domain, name=self.name, activation=activation, **windows)
            return Plane(value, domain, size, outputs)
        value = x.value if height == stride == 1 else b.unfold(x.value, domain, **windows)
        pixel_by_pixel = np.ascontiguousarray(self.kernel.transpose(0, 2, 3, 1).reshape(outputs, -1))
        added = residual.value if residual else None
        value = b.linear(value, pixel_by_pixel, self.bias, name=self.name, activation=activation, residual=added)
        return Plane(value, domain, size, outputs)


def grid(b: GraphBuilder, size: Size) -> str:
    """The domain of a grid of ``size``, made of the image's pixels."""
    return b.domain(f"{size[0]}x{size[1]}", "grid", IMAGE, height=size[0], width=size[1])


def pixels(b: GraphBuilder, size: Size, channels: int) -> Plane:
    """The image that the caller gives."""
    b.domain(IMAGE, "grid", height=size[0], width=size[1])
    b.inputs.append({"name": "pixels", "domain": IMAGE, "dtype": "f32", "width": channels})
    return Plane("pixels", IMAGE, size, channels)


def resize(b: GraphBuilder, x: Plane, size: Size) -> Plane:
    """``x`` at another size, if it is one."""
    if size == x.size:
        return x
    domain = grid(b, size)
    return Plane(b.resize(x.value, domain), domain, size, x.channels)


def concat(b: GraphBuilder, *parts: Plane) -> Plane:
    """The channels of ``parts`` side by side."""
    value = b.concat([part.value for part in parts])
    return replace(parts[0], value=value, channels=sum(part.channels for part in parts))
