"""What a compression did, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod

from .prune import PrunedSpace


@dataclass(frozen=True)
class TensorReport:
    """Bytes before (fp32) and after, scales and padding included; ``error`` is ‖W − Ŵ‖ / ‖W‖ of the stored weights.

    ``peak`` is the largest magnitude over the mean one of what the weight is multiplied by, before it is rotated; 0
    where that was not looked at. ``shape`` and ``precision`` (the format, as docs/format.md names it) are those stored.
    """

    name: str
    before: int
    after: int
    error: float
    peak: float = 0.0
    shape: tuple[int, ...] = ()
    precision: str = "f32"


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline and the bytes of the parameters before and after it."""

    name: str
    before: int
    after: int


@dataclass(frozen=True)
class TrimmedVocabulary:
    """Rows of the table of words ``before`` and ``after``; ``changed`` of the ``texts`` of a sample now have other
    tokens than they had. ``sample`` says which texts these are."""

    before: int
    after: int
    texts: int
    changed: int
    sample: str

    def __str__(self) -> str:
        share = f"{self.changed / self.texts:.1%}" if self.texts else "none"
        return (
            f"vocabulary: {self.before:,} → {self.after:,} rows; the tokens of {share} of {self.texts:,} texts change "
            f"({self.sample})"
        )


@dataclass(frozen=True)
class CompressionReport:
    """``stages`` in order, ``tensors`` in file order, and the size of the finished file (0 before it is written).

    ``pruned`` says what pruning did to each layer; empty where nothing was pruned. ``vocabulary``: None where it was
    not trimmed. ``unscaled`` gives of each linear whose inputs were to be scaled, and are not, the reason. ``weights``
    is what was asked for, or the default. ``zeros``: of the linears that pass over groups of four zeros, the share of
    their inputs that these are. ``unfused`` gives of each attention that was not fused the reason.
    """

    stages: tuple[Stage, ...]
    tensors: tuple[TensorReport, ...]
    file_bytes: int = 0
    pruned: tuple[PrunedSpace, ...] = ()
    vocabulary: TrimmedVocabulary | None = None
    unscaled: Mapping[str, str] = field(default_factory=dict)
    weights: str = ""
    zeros: Mapping[str, float] = field(default_factory=dict)
    unfused: Mapping[str, str] = field(default_factory=dict)

    @property
    def bits_per_weight(self) -> float:
        """Of all matrices, with all that is stored beside them; of a graph without matrices 0."""
        matrices = [tensor for tensor in self.tensors if len(tensor.shape) == 2]
        return 8 * sum(t.after for t in matrices) / max(sum(prod(t.shape) for t in matrices), 1)

    def with_vocabulary(self, trimmed: TrimmedVocabulary | None, before: int) -> CompressionReport:
        """The report of a model that had ``before`` bytes of parameters before its vocabulary was trimmed."""
        if trimmed is None:
            return self
        after = self.stages[0].before
        return replace(self, stages=(Stage("trim", before, after), *self.stages), vocabulary=trimmed)

    def with_fusion(self, before: int, unfused: Mapping[str, str]) -> CompressionReport:
        """The report of a model that had ``before`` bytes of parameters before its attention was fused."""
        after = self.stages[0].before
        return replace(self, stages=(Stage("fuse", before, after), *self.stages), unfused=unfused)

    def with_pruning(self, before: int, pruned: tuple[PrunedSpace, ...]) -> CompressionReport:
        """The report of a model that had ``before`` bytes of parameters before it was pruned."""
        after = self.stages[0].before
        return replace(self, stages=(Stage("prune", before, after), *self.stages), pruned=pruned)

    def __str__(self) -> str:
        lines = [f"{'stage':<10} {'before':>12} {'after':>12} {'ratio':>7}"]
        lines += [_line(stage.name, stage.before, stage.after) for stage in self.stages]
        if self.file_bytes:
            lines.append(f"file       {_megabytes(self.file_bytes):>25}")
        lines.append(f"bits per weight {self.bits_per_weight:>20.2f}")
        worst = max(self.tensors, key=lambda tensor: tensor.error, default=None)
        if worst is not None and worst.error:
            lines.append(f"largest weight error {worst.error:.2%} in {worst.name}")
        widest = max(self.tensors, key=lambda tensor: tensor.peak, default=None)
        if self.unscaled:
            lines.append(f"inputs of {len(self.unscaled)} linears are not scaled: {next(iter(self.unscaled.values()))}")
        lines += notes(self.zeros, self.unfused)
        if widest is not None and widest.peak:
            lines.append(f"largest input outlier {widest.peak:.0f} times the mean, of {widest.name}")
        if self.vocabulary is not None:
            lines.append(str(self.vocabulary))
        return "\n".join(lines)


def _line(name: str, before: int, after: int) -> str:
    ratio = f"{before / after:.2f}×" if after else "–"
    return f"{name:<10} {_megabytes(before):>12} {_megabytes(after):>12} {ratio:>7}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB"


def notes(zeros: Mapping[str, float], unfused: Mapping[str, str]) -> list[str]:
    """A report's lines of what passes over zeros, and of attention that is not fused."""
    lines = []
    if zeros:
        share = sum(zeros.values()) / len(zeros)
        lines.append(f"{len(zeros)} linears pass over zeros, {share:.0%} of their inputs by groups of four")
    if unfused:
        where, reason = next(iter(unfused.items()))
        lines.append(f"attention of {len(unfused)} layers is not fused; {where}: {reason}")
    return lines
