"""What a compression did, tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorReport:
    """Bytes before (fp32) and after, scales and padding included; ``error`` is ‖W − Ŵ‖ / ‖W‖ of the stored weights.

    ``peak`` is the largest magnitude over the mean one of what the weight is multiplied by, before it is rotated; 0
    where that was not looked at.
    """

    name: str
    before: int
    after: int
    error: float
    peak: float = 0.0


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline and the bytes of the parameters before and after it."""

    name: str
    before: int
    after: int


@dataclass(frozen=True)
class CompressionReport:
    """``stages`` in order, ``tensors`` in file order, and the size of the finished file (0 before it is written)."""

    stages: tuple[Stage, ...]
    tensors: tuple[TensorReport, ...]
    file_bytes: int = 0

    def __str__(self) -> str:
        lines = [f"{'stage':<10} {'before':>12} {'after':>12} {'ratio':>7}"]
        lines += [_line(stage.name, stage.before, stage.after) for stage in self.stages]
        if self.file_bytes:
            lines.append(f"file       {_megabytes(self.file_bytes):>25}")
        worst = max(self.tensors, key=lambda tensor: tensor.error, default=None)
        if worst is not None and worst.error:
            lines.append(f"largest weight error {worst.error:.2%} in {worst.name}")
        widest = max(self.tensors, key=lambda tensor: tensor.peak, default=None)
        if widest is not None and widest.peak:
            lines.append(f"largest input outlier {widest.peak:.0f} times the mean, of {widest.name}")
        return "\n".join(lines)


def _line(name: str, before: int, after: int) -> str:
    ratio = f"{before / after:.2f}×" if after else "–"
    return f"{name:<10} {_megabytes(before):>12} {_megabytes(after):>12} {ratio:>7}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB"
