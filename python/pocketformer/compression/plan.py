"""What is done to a model, decided before it is done: a plan that can be printed, saved, edited and used again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..graph import Graph
from .channels import Channels
from .options import QuantizeOptions
from .pipeline import WEIGHTS, no_pairs
from .precision import Precision
from .prune import Progress, PrunedSpace, PruneOptions, check_width, prune_graph, widths_by_share
from .quantize import Profiler
from .report import TrimmedVocabulary

if TYPE_CHECKING:
    from ..sources.huggingface import Checkpoint

VERSION = 1


@dataclass(frozen=True)
class Layer:
    """What becomes of one space of channels: its ``width``, ``of`` how many, and the ``error`` that this alone makes.

    ``heads`` tells attention heads from hidden channels. ``error`` is 1 − cosine at the model's output, None where it
    was not measured.
    """

    width: int
    of: int
    heads: bool
    error: float | None = None


@dataclass(frozen=True)
class Bits:
    """The precision of one weight, as :class:`Precision` has it, and the ``error`` that this alone makes."""

    bits: int
    group: int = 0
    bounded_pairs: bool = False
    error: float | None = None


@dataclass(frozen=True)
class Plan:
    """``layers`` by the name of the weight that reads the channels; ``weights`` is the precision of all weights that
    ``bits`` does not name, by name.

    ``file_bytes`` is what the file will have, exactly, ``error`` the sum of what layers and weights lose,
    ``memory_bytes`` (the mapped file and working memory) and ``seconds`` those of a run; None where that was not
    computed. ``vocabulary`` says how it was trimmed before the plan was made; None where it was not. ``width`` is the
    share of the residual stream's columns that was left before.
    """

    weights: str
    layers: dict[str, Layer] = field(default_factory=dict)
    bits: dict[str, Bits] = field(default_factory=dict)
    file_bytes: int | None = None
    error: float | None = None
    vocabulary: TrimmedVocabulary | None = None
    memory_bytes: int | None = None
    seconds: float | None = None
    width: float = 1.0

    @property
    def prunes(self) -> bool:
        """Whether some space is narrower than it was."""
        return any(layer.width < layer.of for layer in self.layers.values())

    @property
    def widths(self) -> dict[str, int]:
        """Columns that are left of each space of hidden channels, by its name."""
        return {name: layer.width for name, layer in self.layers.items()}

    def options(self, options: QuantizeOptions) -> QuantizeOptions:
        """``options`` with the bits of the plan, where they do not name those of a weight themselves.

        What skips zeros says so in the file, which would not have the bytes that were counted then: no linear does.
        """
        planned = {name: Precision(entry.bits, entry.group, entry.bounded_pairs) for name, entry in self.bits.items()}
        skip_zeros = options.skip_zeros if self.file_bytes is None else 1.0
        return replace(options, precision={**planned, **options.precision}, skip_zeros=skip_zeros)

    def check_vocabulary(self, graph: Graph) -> None:
        """Raises ValueError where the plan was made for another vocabulary than that of ``graph``."""
        if self.vocabulary is not None and self.vocabulary.after != graph.vocab_size:
            raise ValueError(
                f"the plan is of a vocabulary trimmed to {self.vocabulary.after:,} entries, and here are "
                f"{graph.vocab_size:,}; give the same --keep-script and --keep-vocab (keep_scripts, keep_vocabulary)"
            )

    def check_width(self, width: float) -> None:
        """Raises ValueError where the plan was made for another ``width`` of the residual stream."""
        if self.width != width:
            raise ValueError(
                f"the plan is of a model of width {self.width:g}, and the width given is {width:g}; give --width "
                f"{self.width:g} (width={self.width:g}), or make a plan anew"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan as JSON for :func:`read_plan`. Widths, bits, groups and ``weights`` may be edited."""
        Path(path).write_text(json.dumps(as_json(self), indent=2) + "\n", encoding="utf-8")


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan ready for JSON."""
    return {"version": VERSION, **asdict(plan)}


def read_plan(path: str | os.PathLike[str], graph: Graph, stream: float = 1.0) -> Plan:
    """A plan for ``graph``, which has the share ``stream`` of its residual stream's columns left; layers that the plan
    leaves out stay as they are. What it says of bytes and errors is not read.

    Raises ValueError for a file that is no plan, for a layer that the model does not have and a width that it cannot,
    and for a plan of another width of the stream.
    """
    where = os.fspath(path)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{where} is no plan ({error}); make one with --dry-run --plan FILE") from None
    if (
        not isinstance(content, dict)
        or content.get("version") != VERSION
        or not isinstance(content.get("layers"), dict)
    ):
        raise ValueError(f"{where} is no plan of version {VERSION}; make one with --dry-run --plan FILE")
    made_for = content.get("width", 1.0)
    if isinstance(made_for, bool) or not isinstance(made_for, int | float) or not 0 < made_for <= 1:
        raise ValueError(f"{where}: the width is {made_for!r}; it is a share of the residual, above 0 and up to 1")
    Plan("", width=made_for).check_width(stream)
    channels = Channels(graph)
    layers = {}
    for name, entry in content["layers"].items():
        width = entry.get("width") if isinstance(entry, dict) else None
        if not isinstance(width, int) or isinstance(width, bool):
            raise ValueError(f"{where}: the width of {name!r} is {width!r}; it must be an integer")
        try:
            space = channels.space(name)
            check_width(space, width)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        layers[name] = Layer(width, space.width, space.heads)
    bits = {}
    for name, entry in content.get("bits", {}).items():
        numbers = [entry.get("bits"), entry.get("group", 0)] if isinstance(entry, dict) else [None]
        if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
            raise ValueError(f"{where}: the precision of {name!r} is {entry!r}; it must have integers: bits, group")
        bounded = entry.get("bounded_pairs", False)
        if not isinstance(bounded, bool):
            raise ValueError(f"{where}: bounded_pairs of {name!r} is {bounded!r}; it must be true or false")
        bits[name] = Bits(numbers[0], numbers[1], bounded_pairs=bounded)
    vocabulary = content.get("vocabulary")
    if vocabulary is not None:
        try:
            vocabulary = TrimmedVocabulary(**vocabulary)
        except TypeError as error:
            raise ValueError(f"{where}: the vocabulary is {vocabulary!r:.60} ({error}); leave it as it was") from None
    plan = Plan(str(content.get("weights", "int8")), layers, bits, vocabulary=vocabulary, width=made_for)
    if plan.weights == "fp32" and bits:
        raise ValueError(f"{where}: weights is 'fp32', where nothing is rounded; leave bits out")
    try:
        plan.options(QuantizeOptions()).precisions(graph)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return plan


def plan_by_shares(
    graph: Graph, weights: str, ffn: float = 0.0, heads: float = 0.0, options: QuantizeOptions | None = None
) -> Plan:
    """A plan that removes about the share ``ffn`` of the hidden channels, and ``heads`` of the heads, of every layer;
    it says which weights have bounded pairs by ``options``.

    Raises ValueError for shares outside 0…1, and where pairs are to be bounded and nothing has any.
    """
    channels = Channels(graph)
    widths = widths_by_share(channels, ffn) | widths_by_share(channels, heads, heads=True)
    chosen = {} if options is None or weights == "fp32" else options.precisions(graph, WEIGHTS[weights])
    bits = bounded_bits(chosen)
    if options is not None and options.bounded_pairs and not bits:
        raise no_pairs(weights)
    return replace(make_plan(channels, weights, widths), bits=bits)


def bounded_bits(chosen: Mapping[str, Precision]) -> dict[str, Bits]:
    """What a plan says of weights that have bounded pairs from the outset."""
    return {name: Bits(of.bits, bounded_pairs=True) for name, of in chosen.items() if of.bounded_pairs}


def make_plan(channels: Channels, weights: str, widths: Mapping[str, int]) -> Plan:
    """A plan with ``widths`` and nothing measured."""
    spaces = channels.spaces
    layers = {name: Layer(widths.get(name, space.width), space.width, space.heads) for name, space in spaces.items()}
    return Plan(weights, layers)


def carry_out(
    loaded: Checkpoint,
    plan: Plan,
    options: PruneOptions | None = None,
    profiler: Profiler | None = None,
    progress: Progress | None = None,
) -> tuple[Checkpoint, list[PrunedSpace]]:
    """``loaded`` pruned as ``plan`` says, and what that did; ``profiler`` runs the model, on random tokens if None."""
    graph, results = prune_graph(loaded.graph, plan.widths, options, profiler=profiler, progress=progress)
    model: dict[str, Any] = {**loaded.model, "params": sum(array.size for array in graph.params.values())}
    return replace(loaded, graph=graph, model=model), results
