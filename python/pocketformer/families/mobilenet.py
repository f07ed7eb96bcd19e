"""What networks of inverted residuals share (MobileNetV2, Sandler et al., arXiv 1801.04381)."""

from __future__ import annotations

from dataclasses import dataclass

from ..graph import GraphBuilder
from ..sources.source import Config, Tensors
from .convolution import BatchNorm, Convolution, Plane

_EPS = 1e-5
"""Of all batch norms."""


@dataclass(frozen=True)
class MobileNet:
    """Layers of a checkpoint whose tensors lie below ``base``."""

    b: GraphBuilder
    tensors: Tensors
    base: str
    activation: str
    expand_ratio: float

    def convolve(
        self,
        x: Plane,
        name: str,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        inputs: int = 0,
        activated: bool = True,
        normalized: bool = True,
        residual: Plane | None = None,
    ) -> Plane:
        """``inputs`` is 1 where each channel is convolved by itself."""
        shape, prefix = (outputs, inputs or x.channels, kernel, kernel), f"{self.base}.{name}"
        norm = BatchNorm(f"{prefix}.normalization", _EPS) if normalized else None
        convolution = Convolution.read(name, self.tensors, f"{prefix}.convolution", shape, norm=norm)
        activation = self.activation if activated else "none"
        return convolution.append_to(self.b, x, stride=stride, activation=activation, residual=residual)

    def inverted_residual(self, x: Plane, name: str, outputs: int, stride: int = 1) -> Plane:
        """Wide between its ends, where each channel is convolved by itself."""
        wide = divisible(round(x.channels * self.expand_ratio))
        residual = x if stride == 1 and x.channels == outputs else None
        x = self.convolve(x, f"{name}.expand_1x1", wide, 1)
        x = self.convolve(x, f"{name}.conv_3x3", wide, 3, stride=stride, inputs=1)
        return self.convolve(x, f"{name}.reduce_1x1", outputs, 1, activated=False, residual=residual)


def divisible(channels: float, by: int = 8) -> int:
    """The nearest multiple that is not a tenth less."""
    nearest = max(by, int(channels + by / 2) // by * by)
    return nearest + by if nearest < 0.9 * channels else nearest


def kernel_lines(config: Config) -> int:
    """Lines of a kernel of the transformers' blocks.

    Raises UnsupportedModelError for dilated convolutions, other channels than three and even kernels."""
    channels, stride = config.integer("num_channels", 3), config.integer("output_stride", 32)
    config.refuse("num_channels", channels != 3 and channels, "images have red, green and blue")
    config.refuse("output_stride", stride != 32 and stride, "dilated convolutions are not supported, set 32")
    kernel = config.integer("conv_kernel_size", 3)
    config.refuse("conv_kernel_size", kernel % 2 == 0 and kernel, "kernels of odd size are supported")
    return kernel
