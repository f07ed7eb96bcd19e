"""Watches the rows that the linears of a plain fp32 graph read, while it runs on a calibration."""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
import zlib
from collections import ChainMap
from collections.abc import Callable, Collection, Iterable, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np

from ..graph import Array, Graph
from ._rounding import observe, rotate
from .calibration import Calibration
from .dataflow import Dataflow
from .operators import CHUNK, Rows, Run

STATISTICS = ("highest", "total", "squares", "moments")

Progress = Callable[[str, float], None]
"""Called with what is being done and the share, 0…1, that is done."""


@dataclass
class Observer:
    """Streaming statistics of the rows that ``weights`` are multiplied by.

    ``highest`` float32, ``total`` and ``squares`` float64 [K] are max |x|, Σ|x| and Σx² of each channel; ``moments``
    float64 [K, K] is Σ xᵀx; ``rows`` is how many there were. Where the rows are those of a model that is rounded as far
    as that, ``cross`` float64 [K, K] is Σ zᵀx, z being the rows of the fp32 model.
    """

    weights: tuple[str, ...]
    width: int
    rows: int = 0
    highest: Array = field(init=False)
    total: Array = field(init=False)
    squares: Array = field(init=False)
    moments: Array = field(init=False)
    cross: Array | None = None

    def __post_init__(self) -> None:
        self.highest = np.zeros(self.width, np.float32)
        self.total, self.squares = np.zeros(self.width), np.zeros(self.width)
        self.moments = np.zeros((self.width, self.width))

    def add(self, x: Array, exact: Array | None = None) -> None:
        """``x`` is float32 [rows, K], and ``exact`` what the fp32 model has there. Their products are float32 too: the
        errors of these drown in the damping of the moments."""
        observe(x, self.highest, self.total, self.squares)
        for begin in range(0, len(x), CHUNK):
            part = x[begin : begin + CHUNK]
            self.moments += part.T @ part
            if exact is not None:
                self.cross = np.zeros_like(self.moments) if self.cross is None else self.cross
                self.cross += exact[begin : begin + CHUNK].T @ part
        self.rows += len(x)

    def rotated(self, block: int) -> Array:
        """``moments`` of the rows rotated by ``block``, a copy: H·moments·H."""
        moments: Array = self.moments.copy()
        for _ in range(2 if block else 0):
            rotate(moments, block)
            moments = np.ascontiguousarray(moments.T)
        return moments

    @property
    def peak(self) -> float:
        """The largest |x| over the mean |x|: how much an outlier costs all others of its row when they are rounded."""
        mean = float(self.total.sum()) / max(self.rows * self.width, 1)
        return float(self.highest.max()) / mean if mean else 0.0


def profile(
    graph: Graph,
    names: Collection[str],
    calibration: Calibration,
    progress: Progress | None = None,
    rounded: MutableMapping[str, Array] | None = None,
) -> Iterator[Observer]:
    """Runs ``graph`` on ``calibration``; yields an observer for all linears ``names`` that see the same rows.

    An observer comes as soon as all its rows have been seen, and has seen none where the rows are chosen by a caller
    (``select``). With ``rounded`` the model runs a second time beside it, with these parameters in the place of its
    own, and the observers see its rows: whoever takes an observer puts there what its linears have become before he
    takes the next, and each is dropped when it was multiplied by for the last time.
    """
    flow = Dataflow(graph)
    groups: dict[tuple[str, ...], tuple[str, ...]] = {}
    for name in names:
        values = flow.rows_of(name)
        groups[values] = (*groups.get(values, ()), name)
    unfinished: dict[tuple[str, ...], Observer] = {}
    wanted = {value for values in groups for value in values}
    for value, exact, rows in values_written(flow, wanted, calibration, progress, rounded):
        for values, weights in groups.items():
            if value not in values:
                continue
            observer = unfinished.pop(weights, None) or Observer(weights, graph.weights[weights[0]]["k"])
            for index, chunk in enumerate(exact or ()):
                if rows is None:
                    observer.add(chunk)
                else:
                    observer.add(rows[index], chunk)
            if value != values[-1]:
                unfinished[weights] = observer
                continue
            yield observer
            del observer  # its moments are the largest matrix here: none waits for the next


def kept_profile(samples: object) -> TypeGuard[str | os.PathLike[str]]:
    """Whether these are not samples but the path of a profile that was kept."""
    return isinstance(samples, str | os.PathLike) and os.fspath(samples).endswith(".npz")


def save_profile(path: str | os.PathLike[str], observers: Iterable[Observer]) -> Iterator[Observer]:
    """Yields ``observers`` and writes each before that; the file, an ``.npz``, is there when all were taken."""
    folder, name = os.path.split(os.fspath(path))
    temporary = os.path.join(folder, f".{name}.{os.urandom(4).hex()}.tmp")
    described: list[dict[str, Any]] = []
    try:
        with zipfile.ZipFile(temporary, "x") as archive:
            for index, observer in enumerate(observers):
                for statistic in STATISTICS:
                    array = getattr(observer, statistic)
                    with archive.open(f"{index}.{statistic}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array.astype(np.float32) if array.ndim > 1 else array)
                described.append({"weights": observer.weights, "width": observer.width, "rows": observer.rows})
                yield observer
            text = np.frombuffer(json.dumps(described).encode(), np.uint8)
            with archive.open("observers.npy", "w") as member:
                np.lib.format.write_array(member, text)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def load_profile(path: str | os.PathLike[str], graph: Graph, names: Collection[str]) -> Iterator[Observer]:
    """The observers of ``names`` that ``save_profile`` wrote, one at a time.

    Raises ValueError when the file is no profile, or not of these linears of ``graph``.
    """
    what = f"profile {os.fspath(path)!r}"
    with open(path, "rb") as file, _readable(what), np.load(file, allow_pickle=False) as arrays:
        described = json.loads(arrays["observers"].tobytes())
        seen = {str(name): int(entry["width"]) for entry in described for name in entry["weights"]}
    for name in names:
        width = graph.weights[name]["k"]
        if seen.get(name) != width:
            known = f"has seen {seen[name]} inputs" if name in seen else "knows nothing"
            raise ValueError(f"{what} {known} of {name!r}, which has {width}; make it anew from this model")
    return _loaded(what, path, described, names)


def _loaded(
    what: str, path: str | os.PathLike[str], described: list[dict[str, Any]], names: Collection[str]
) -> Iterator[Observer]:
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        for index, entry in enumerate(described):
            weights = tuple(name for name in entry["weights"] if name in names)
            if not weights:
                continue
            observer = Observer(weights, entry["width"], entry["rows"])
            for statistic in STATISTICS:
                with _readable(what):
                    array, into = arrays[f"{index}.{statistic}"], getattr(observer, statistic)
                if array.shape != into.shape or array.dtype.kind != "f" or not np.isfinite(array).all():
                    raise ValueError(f"{what} is damaged: {statistic} of {weights[0]!r}; make it anew")
                into[...] = array
            yield observer


@contextlib.contextmanager
def _readable(what: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{what} cannot be read ({error}); make it anew") from None


def values_written(
    flow: Dataflow,
    wanted: Collection[str],
    calibration: Calibration,
    progress: Progress | None = None,
    rounded: MutableMapping[str, Array] | None = None,
) -> Iterator[tuple[str, Rows | None, Rows | None]]:
    """The rows of the ``wanted`` values in the order in which they are written, exact and rounded; None where there are
    none."""
    runs = [Run(flow, calibration)]
    if rounded is not None:
        runs.append(Run(flow, calibration, ChainMap(rounded, dict(flow.graph.params))))
    ops = list(flow.needed(wanted))
    last_use = {value: index for index, op in enumerate(ops) for value in flow.reads(op)}
    last_read = {op["weight"]: index for index, op in enumerate(ops) if op["op"] == "linear"}
    live: list[dict[str, Rows | None]] = [run.given() for run in runs]

    def rows(value: str) -> tuple[str, Rows | None, Rows | None]:
        return value, live[0][value], live[1][value] if rounded is not None else None

    for value in [value for value in live[0] if value in wanted]:
        yield rows(value)
    for index, op in enumerate(ops):
        if progress:
            progress(op["out"], index / len(ops))
        for run, values in zip(runs, live, strict=True):
            values[op["out"]] = run.run(op, {value: values[value] for value in flow.reads(op)})
        if rounded is not None and last_read.get(op.get("weight", "")) == index:
            rounded.pop(f"{op['weight']}.weight", None)
        if op["out"] in wanted:
            yield rows(op["out"])
        for value in (op["out"], *flow.reads(op)):
            if last_use.get(value, index) <= index:
                for values in live:
                    values.pop(value, None)
