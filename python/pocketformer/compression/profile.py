"""Runs a plain fp32 graph in the runtime, operator by operator, and watches the rows that its linears read.

One operator's weights are in memory at a time, and of the rows those of a chunk of sequences: the rest waits in a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import zipfile
import zlib
from collections import ChainMap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from typing import IO, Any

import numpy as np

from .._core import Program, Session, default_threads
from ..graph import Array, Graph, Op
from ..packing import pack_graph
from ..segments import aligned, as_table
from ._rounding import observe, rotate
from .calibration import Calibration
from .dataflow import Dataflow, parameters

CHUNK = 2048
"""Rows that an operator runs on at once, and that a product of moments takes."""
IN_MEMORY = 64 << 20
"""Bytes of rows that wait in memory; more wait in a file."""
ROW = "row of a value"
"""The input that looks up values."""
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
    for value, exact, rows in _values(flow, wanted, calibration, progress, rounded):
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


def _values(
    flow: Dataflow,
    wanted: Collection[str],
    calibration: Calibration,
    progress: Progress | None,
    rounded: MutableMapping[str, Array] | None,
) -> Iterator[tuple[str, _Rows | None, _Rows | None]]:
    """The rows of the ``wanted`` values in the order in which they are written, exact and rounded; None where there are
    none."""
    runs = [_Run(flow, calibration)]
    if rounded is not None:
        runs.append(_Run(flow, calibration, ChainMap(rounded, dict(flow.graph.params))))
    ops = list(flow.needed(wanted))
    last_use = {value: index for index, op in enumerate(ops) for value in flow.reads(op)}
    last_read = {op["weight"]: index for index, op in enumerate(ops) if op["op"] == "linear"}
    live: list[dict[str, _Rows | None]] = [run.given() for run in runs]

    def rows(value: str) -> tuple[str, _Rows | None, _Rows | None]:
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


class _Memory:
    """How much of the rows that wait is in memory."""

    def __init__(self) -> None:
        self.free = IN_MEMORY


class _Rows:
    """The rows of one value, float32, chunk by chunk."""

    def __init__(self, memory: _Memory, domain: str) -> None:
        self.domain = domain
        self._memory, self._held = memory, 0
        self._chunks: list[Array | tuple[int, tuple[int, ...]]] = []
        self._file: IO[bytes] | None = None

    def append(self, chunk: Array) -> None:
        if self._file is None and chunk.nbytes <= self._memory.free:
            self._memory.free -= chunk.nbytes
            self._held += chunk.nbytes
            self._chunks.append(chunk)
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the rows
        self._chunks.append((self._file.seek(0, os.SEEK_END), chunk.shape))
        self._file.write(np.ascontiguousarray(chunk).data)

    def __getitem__(self, index: int) -> Array:
        chunk = self._chunks[index]
        if not isinstance(chunk, tuple):
            return chunk
        assert self._file is not None
        begin, shape = chunk
        rows = np.empty(shape, np.float32)
        self._file.seek(begin)
        rows[...] = np.frombuffer(self._file.read(rows.nbytes), np.float32).reshape(shape)
        return rows

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Iterator[Array]:
        return (self[index] for index in range(len(self._chunks)))

    def __del__(self) -> None:
        self._memory.free += self._held
        if self._file is not None:
            self._file.close()


class _Run:
    """Operators one by one, on the chunks of a calibration."""

    def __init__(self, flow: Dataflow, calibration: Calibration, params: Mapping[str, Array] | None = None) -> None:
        self.flow, self.graph, self.calibration = flow, flow.graph, calibration
        self.params = self.graph.params if params is None else params
        self.memory = _Memory()
        self.domains = {entry["name"]: entry for entry in self.graph.domains}
        self.chunks = list(calibration.chunks(CHUNK))

    def given(self) -> dict[str, _Rows | None]:
        """The values that the caller of the graph gives."""
        values: dict[str, _Rows | None] = {}
        for entry in self.graph.inputs:
            if entry["dtype"] == "f32":
                rows = values[entry["name"]] = _Rows(self.memory, entry["domain"])
                for part, _ in self.chunks:
                    rows.append(np.asarray(self.calibration.inputs[entry["name"]][part], np.float32))
        return values

    def lengths(self, domain: str, chunk: Array) -> Array:
        """Rows of each sequence of ``domain``, where those of the domain that the caller fills are ``chunk``."""
        entry = self.domains[domain]
        if entry["kind"] == "one":
            return np.ones_like(chunk)
        if entry["kind"] == "grid":
            return np.full_like(chunk, entry["height"] * entry["width"])
        return self.lengths(entry["of"], chunk) + entry.get("prepended", 0) if "of" in entry else chunk

    def run(self, op: Op, values: Mapping[str, _Rows | None]) -> _Rows | None:
        """The result of one operator on ``values``, which a graph of it alone looks up in tables, row by row."""
        given = {value: rows for value, rows in values.items() if rows is not None}
        if op["op"] == "select" or len(given) < len(values):
            return None  # which rows matter is known to callers only
        if "more_globals" in op:  # how many is known to callers only: the first row at least
            op = {**op, "globals": max(1, op.get("globals", 0))}
        op = {field: value for field, value in op.items() if field not in ("skip", "keys", "more_globals")}
        domain = next((rows.domain for rows in given.values()), "") or self._domain_of_tables(op)
        result = _Rows(self.memory, op.get("domain", domain))
        if op["op"] == "columns":
            for chunk in given[op["in"]]:
                result.append(np.ascontiguousarray(chunk[:, op["begin"] : op["begin"] + op["width"]]))
            return result
        segment = _Segment(self, op, domain, given)
        for index in range(len(self.chunks)):
            result.append(segment.run(index))
        return result

    def _domain_of_tables(self, op: Op) -> str:
        inputs = {entry["name"]: entry["domain"] for entry in self.graph.inputs}
        return next(str(inputs[table["index"]]) for table in op["tables"] if table["index"] in inputs)


class _Segment:
    """A graph of one operator, whose weights are packed once."""

    def __init__(self, run: _Run, op: Op, domain: str, values: Mapping[str, _Rows]) -> None:
        self._run, self._op, self._domain, self._values = run, op, domain, values
        graph = run.graph
        params = {name: np.asarray(run.params[name]) for name in parameters(op)}
        weights = {op["weight"]: graph.weights[op["weight"]]} if op["op"] == "linear" else {}
        self._found: dict[str, Array] = {}  # of each index the rows of its tables, of which there are few
        limits: dict[str, int] = {}
        for table in op.get("tables", []):
            name, index = table["weight"], table["index"]
            weight = run.params[f"{name}.weight"]
            if index == "positions":
                params[f"{name}.weight"] = np.asarray(weight[:])
                weights[name] = graph.weights[name]
                continue
            given = run.calibration.inputs.get(index, np.zeros(run.calibration.rows, np.int32))
            distinct, self._found[index] = np.unique(given, return_inverse=True)
            limits[index] = len(distinct)
            params[f"{name}.weight"] = np.concatenate([np.asarray(weight[i : i + 1]) for i in distinct])
            weights[name] = {**graph.weights[name], "n": len(distinct)}
        lookups: list[Op] = []
        for value, rows in values.items():
            table = f"rows of {value}"
            weights[table] = {"format": "f32", "n": 1, "k": rows[0].shape[1]}
            params[f"{table}.weight"] = np.zeros((1, rows[0].shape[1]), np.float32)
            lookups.append({"op": "embed", "out": value, "tables": [{"weight": table, "index": ROW}]})
        if lookups:
            limits[ROW] = 1
        stores = run.flow.stored(op)
        self._segment = replace(
            graph,
            domains=[
                self._root(),
                *({**e, "of": domain} for e in graph.domains if e["name"] == op.get("domain", domain) != domain),
            ],
            inputs=[{"name": name, "domain": domain, "dtype": "i32", "limit": n} for name, n in limits.items()],
            weights=weights,
            states=[state for state in graph.states if state["name"] in {store["state"] for store in stores}],
            ops=[*lookups, *stores, op],
            output=op["out"],
            params=params,
        )
        self._packed = pack_graph(replace(self._segment, domains=graph.domains[:1] + self._segment.domains[1:]))
        self._packed.params = {name: aligned(array) for name, array in self._packed.params.items()}

    def _root(self) -> dict[str, Any]:
        """The domain of the values, filled by the caller."""
        entry = self._run.domains[self._domain]
        if "of" not in entry:
            return dict(entry)
        if entry["kind"] == "grid":
            return {key: value for key, value in entry.items() if key != "of"}
        longest = int(self._run.lengths(self._domain, self._run.calibration.lengths).max())
        return {"name": self._domain, "kind": "ragged", "max_rows": longest}

    def run(self, index: int) -> Array:
        part, chunk = self._run.chunks[index]
        lengths = self._run.lengths(self._domain, chunk)
        count = int(lengths.sum())
        weights, params = dict(self._packed.weights), dict(self._packed.params)
        for value, rows in self._values.items():
            table, chunk_rows = f"rows of {value}", rows[index]
            weights[table] = {**weights[table], "n": count}
            params[f"{table}.weight"] = as_table(chunk_rows)
        inputs = [{**entry, "limit": count} if entry["name"] == ROW else entry for entry in self._segment.inputs]
        graph = replace(self._segment, weights=weights, inputs=inputs, params={})
        feeds: dict[str, Array | None] = {name: found[part].astype(np.int32) for name, found in self._found.items()}
        if self._values:
            feeds[ROW] = np.arange(count, dtype=np.int32)
        if self._segment.domains[0]["kind"] != "grid":
            feeds[self._domain] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Session(Program(graph.description(), params)).run(feeds, default_threads())
