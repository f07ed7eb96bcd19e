"""Structured pruning: which units of a graph leave, chosen and refitted on what its linears read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..graph import Array, Graph
from .calibration import takes_tokens
from .channels import Channels, Space
from .gradients import gradient_scores
from .importance import GRADIENTS, NAMES, NORMS, Seen, importance
from .profile import Observer
from .quantize import Profiler, random_profiler
from .refit import DAMPING, error, refit
from .surgery import keep_units, remove_units

MULTIPLE = 64
"""Widths of hidden channels are multiples of this: whole panels of 16 outputs, and a rotation block of 64 and more."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class PruneOptions:
    """``criterion``: ``obs`` (what removing costs after the refit; the default), ``wanda``, ``activation``, ``l1``,
    ``l2``, or with torch ``taylor`` or ``hessian``. ``refit``: whether the weights that read what is left take over
    what was removed, with ``damping`` as a share of the mean second moment. ``tokens``: how many random ones the model
    is run on.

    Raises ValueError for another criterion.
    """

    criterion: str = "obs"
    refit: bool = True
    damping: float = DAMPING
    tokens: int = 2048

    def __post_init__(self) -> None:
        if self.criterion not in NAMES:
            raise ValueError(f"criterion is {self.criterion!r}; it must be one of {', '.join(NAMES)}")


@dataclass(frozen=True)
class PrunedSpace:
    """What pruning did to one space: its widths ``before`` and ``after``, and how far its readers' products moved.

    ``plain`` and ``refitted`` are root mean squares relative to the products before, without and with the refit; 0
    where no profile was taken.
    """

    name: str
    before: int
    after: int
    plain: float
    refitted: float


def widths_by_share(channels: Channels, share: float, *, heads: bool = False) -> dict[str, int]:
    """Widths that remove about ``share`` of every space of hidden channels, or of heads.

    Channels are kept in multiples of 64 where there are more than that. Raises ValueError for a share outside 0…1.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share is {share}; it must be at least 0 and below 1")
    return {
        space.name: rounded_width(space, (1 - share) * space.width)
        for space in channels.spaces.values()
        if space.heads == heads
    }


def rounded_width(space: Space, width: float) -> int:
    """The width nearest to ``width`` that ``space`` can have, at most its own."""
    multiple = space.size if space.heads else MULTIPLE
    return min(max(round(width / multiple), 1) * multiple, space.width)


def collect(
    graph: Graph,
    spaces: Iterable[Space],
    options: PruneOptions,
    profiler: Profiler | None = None,
    known: Mapping[str, Seen] | None = None,
) -> dict[str, Seen]:
    """Statistics of what each reader of ``spaces`` reads, as ``profiler`` sees it, or else on random tokens; those that
    are ``known`` are not taken again.

    Empty for criteria that need none, without refit.

    Raises ValueError where they are needed and no inputs can be made up for ``graph``, or where gradients are and
    ``profiler`` is a profile that was kept; ImportError where they are and torch is missing.
    """
    spaces = list(spaces)
    names = [name for space in spaces for name in space.readers]
    if not names or (options.criterion in NORMS and not options.refit):
        return {}
    profiler = _runs(graph, options, profiler)
    scores: Mapping[str, Array] = {}
    if options.criterion in GRADIENTS:
        if profiler.calibration is None:
            raise ValueError(
                f"criterion is {options.criterion!r}, which needs gradients, and a profile that was kept has none; "
                "give the texts"
            )
        scores = gradient_scores(options.criterion, graph, Channels(graph), spaces, profiler.calibration)
    found = dict(known or {})
    for observer in profiler([name for name in names if name not in found], None):
        found |= dict.fromkeys(observer.weights, seen_by(observer))
    found |= {name: replace(found[name], scores=of) for name, of in scores.items()}
    return found


def _runs(graph: Graph, options: PruneOptions, profiler: Profiler | None) -> Profiler:
    """``profiler``, or what runs ``graph`` on random tokens."""
    if profiler is None:
        if not takes_tokens(graph):
            raise ValueError("random inputs cannot be made up for this model; use criterion l2 without refit")
        profiler = random_profiler(graph, options.tokens)
    return profiler


def seen_by(observer: Observer) -> Seen:
    return Seen(observer.rows, observer.total, observer.moments)


def prune_graph(
    graph: Graph,
    widths: Mapping[str, int],
    options: PruneOptions | None = None,
    seen: Mapping[str, Seen] | None = None,
    progress: Progress | None = None,
    profiler: Profiler | None = None,
) -> tuple[Graph, list[PrunedSpace]]:
    """``graph``, plain fp32, with each space that ``widths`` names cut to so many columns; and what that did.

    ``seen`` are statistics by weight as ``collect`` gives them, which it is else asked for, with ``profiler``. The
    input is left as it is. Raises ValueError for a name that no space has and for a width that it cannot have.
    """
    options = options or PruneOptions()
    channels = Channels(graph)
    spaces = {name: channels.space(name) for name in widths}
    for name, space in spaces.items():
        check_width(space, widths[name])
    spaces = {name: space for name, space in spaces.items() if widths[name] < space.width}
    removed: list[Array] = []
    params: dict[str, Array] = {}
    results: dict[str, PrunedSpace] = {}
    for space, of in _with_statistics(graph, list(spaces.values()), options, profiler, seen):
        if progress:
            progress(f"prune {space.name}", len(results) / len(spaces))
        count = widths[space.name] // space.size
        scores = importance(options.criterion, graph, channels, space, of, count)
        leaving = keep_units(space, count, scores)
        removed.append(leaving)
        fitted, results[space.name] = _fitted(graph, space, leaving, of, options)
        params |= fitted
    if not removed:
        return graph, []
    pruned = remove_units(graph, channels, np.concatenate(removed))
    return replace(pruned, params={**pruned.params, **params}), [results[name] for name in spaces]


def _with_statistics(
    graph: Graph,
    spaces: list[Space],
    options: PruneOptions,
    profiler: Profiler | None,
    seen: Mapping[str, Seen] | None,
) -> Iterator[tuple[Space, Mapping[str, Seen]]]:
    """Each of ``spaces`` with what is known of the rows of its readers: as soon as these were seen, and forgotten when
    the next is asked for, since those of all layers of a large model are gigabytes."""
    if seen is not None or options.criterion in GRADIENTS or (options.criterion in NORMS and not options.refit):
        seen = collect(graph, spaces, options, profiler) if seen is None else seen
        yield from ((space, seen) for space in spaces)
        return
    waiting, found = {space.name: space for space in spaces}, dict[str, Seen]()
    names = [name for space in spaces for name in space.readers]
    for observer in _runs(graph, options, profiler)(names, None) if names else ():
        found |= dict.fromkeys(observer.weights, seen_by(observer))
        del observer
        for space in [space for space in waiting.values() if found.keys() >= set(space.readers)]:
            yield waiting.pop(space.name), found
            for name in space.readers:
                del found[name]


def at_widths(
    graph: Graph,
    channels: Channels,
    space: Space,
    widths: Sequence[int],
    options: PruneOptions,
    seen: Mapping[str, Seen],
) -> Iterator[Graph]:
    """``graph`` with ``space`` of its ``channels`` alone cut to each of ``widths``, judged together: what leaves is
    nested."""
    scores = importance(options.criterion, graph, channels, space, seen, min(widths) // space.size)
    for width in widths:
        leaving = keep_units(space, width // space.size, scores)
        fitted, _ = _fitted(graph, space, leaving, seen, options, judged=False)
        pruned = remove_units(graph, channels, leaving)
        yield replace(pruned, params={**pruned.params, **fitted})


def check_width(space: Space, width: int) -> None:
    """Raises ValueError where ``space`` cannot have ``width`` columns."""
    if not 0 < width <= space.width or width % space.size:
        raise ValueError(
            f"{space.name} cannot have {width} columns; it must be a multiple of {space.size}, from {space.size} to "
            f"{space.width}"
        )


def _fitted(
    graph: Graph,
    space: Space,
    leaving: Array,
    seen: Mapping[str, Seen],
    options: PruneOptions,
    judged: bool = True,
) -> tuple[dict[str, Array], PrunedSpace]:
    """The refitted readers of ``space`` where that is asked for, and how far their products moved where ``judged``."""
    gone = np.isin(space.units, leaving)
    kept = np.sort(space.columns[~gone].ravel())
    fitted: dict[str, Array] = {}
    plain = after = whole = 0.0
    for name in space.readers:
        if name in seen:
            moments = seen[name].moments
            weight = np.asarray(graph.params[f"{name}.weight"], np.float64)
            new = refit(weight, moments, kept, options.damping) if options.refit else weight[:, kept]
            if options.refit:
                fitted[f"{name}.weight"] = new.astype(np.float32)
            if judged:
                whole += error(weight, np.zeros((len(weight), 0)), moments, kept[:0])
                plain += error(weight, weight[:, kept], moments, kept)
                after += error(weight, new, moments, kept)
    relative = [float(np.sqrt(max(value, 0) / whole)) if whole else 0.0 for value in (plain, after)]
    return fitted, PrunedSpace(space.name, space.width, len(kept), *relative)
