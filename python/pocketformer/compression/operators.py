"""A plain fp32 graph run operator by operator on the chunks of a calibration.

One operator's weights are in memory at a time, and of the rows those of a chunk of sequences: the rest waits in a file.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import IO, Any

import numpy as np

from .._core import Program, Session, default_threads
from ..graph import SELECTED, Array, Op, rows_for
from ..packing import pack_graph
from ..segments import aligned, as_table
from .calibration import Calibration
from .dataflow import Dataflow, parameters

CHUNK = 2048
"""Rows that an operator runs on at once, and that a product of moments takes."""
IN_MEMORY = 64 << 20
"""Bytes of rows that wait in memory; more wait in a file."""
ROWS = "rows of "
"""What begins the names of the tables that values are looked up in, and of the inputs by which they are, one for each
domain."""
PLACED = " as given"


class _Memory:
    """How much of the rows that wait is in memory."""

    def __init__(self) -> None:
        self.free = IN_MEMORY


class Rows:
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


class Run:
    """Operators one by one, on the chunks of a calibration."""

    def __init__(self, flow: Dataflow, calibration: Calibration, params: Mapping[str, Array] | None = None) -> None:
        self.flow, self.graph, self.calibration = flow, flow.graph, calibration
        self.params = self.graph.params if params is None else params
        self.memory = _Memory()
        self.domains = {entry["name"]: entry for entry in self.graph.domains}
        self.chunks = list(calibration.chunks(CHUNK))

    def given(self) -> dict[str, Rows | None]:
        """The values that the caller of the graph gives."""
        values: dict[str, Rows | None] = {}
        for entry in self.graph.inputs:
            if entry["dtype"] == "f32":
                rows = values[entry["name"]] = Rows(self.memory, entry["domain"])
                for part, _ in self.chunks:
                    rows.append(np.asarray(self.calibration.inputs[entry["name"]][part], np.float32))
        return values

    def lengths(self, domain: str, chunk: Array) -> Array:
        """Rows of each sequence of ``domain``, where those of the domain that the caller fills are ``chunk``."""
        entry = self.domains[domain]
        if entry["kind"] in ("one", "selected"):
            return np.ones_like(chunk)
        if entry["kind"] == "grid":
            return np.full_like(chunk, entry["height"] * entry["width"])
        return rows_for(entry, self.lengths(entry["of"], chunk)) if "of" in entry else chunk

    def run(self, op: Op, values: Mapping[str, Rows | None]) -> Rows | None:
        """The result of one operator on ``values``, which a graph of it alone looks up in tables, row by row."""
        given = {value: rows for value, rows in values.items() if rows is not None}
        if op["op"] == "select" or len(given) < len(values):
            return None  # which rows matter is known to callers only
        op = alone(op)
        domain = next((rows.domain for rows in given.values()), "") or self.domain_of_tables(op)
        result = Rows(self.memory, op.get("domain", domain))
        if op["op"] == "columns":
            for chunk in given[op["in"]]:
                result.append(np.ascontiguousarray(chunk[:, op["begin"] : op["begin"] + op["width"]]))
            return result
        segment = Segment(self, [*self.flow.stored(op), op], domain, given)
        for index in range(len(self.chunks)):
            result.append(segment.run(index))
        return result

    def domain_of_tables(self, op: Op) -> str:
        inputs = {entry["name"]: entry["domain"] for entry in self.graph.inputs}
        return op.get("domain") or next(str(inputs[t["index"]]) for t in op["tables"] if t["index"] in inputs)


def alone(op: Op) -> Op:
    """``op`` without what callers alone know: prompts that are passed over, and tokens that all see, of which there is
    then the first at least."""
    if "more_globals" in op:
        op = {**op, "globals": max(1, op.get("globals", 0))}
    return {field: value for field, value in op.items() if field not in ("skip", "keys", "more_globals")}


class Segment:
    """A graph of a few operators, whose weights are packed once. What they read is among ``values``, or from tables of
    indices in ``domain``; the last of them writes the result."""

    def __init__(self, run: Run, ops: Sequence[Op], domain: str, values: Mapping[str, Rows]) -> None:
        self._run, self._ops, self._values = run, ops, values
        graph = run.graph
        params = {name: np.asarray(run.params[name]) for op in ops for name in parameters(op)}
        weights = {op["weight"]: graph.weights[op["weight"]] for op in ops if op["op"] == "linear"}
        tables = [table for op in ops for table in op.get("tables", [])]
        whole = any(table["weight"] in weights for table in tables)  # a head that shares the table
        self._found: dict[str, Array] = {}  # of each index the rows of its tables, of which there are few
        limits: dict[str, int] = {}
        for table in tables:
            name, index = table["weight"], table["index"]
            weight = run.params[f"{name}.weight"]
            if index == "positions" or whole:
                params[f"{name}.weight"] = np.asarray(weight[:])
                weights[name] = graph.weights[name]
            if index == "positions":
                continue
            given = run.calibration.inputs.get(index, np.zeros(run.calibration.rows, np.int32))
            if whole:
                self._found[index], limits[index] = given, len(weight)
                continue
            distinct, self._found[index] = np.unique(given, return_inverse=True)
            limits[index] = len(distinct)
            params[f"{name}.weight"] = np.concatenate([np.asarray(weight[i : i + 1]) for i in distinct])
            weights[name] = {**graph.weights[name], "n": len(distinct)}
        lookups: list[Op] = []
        read = list(dict.fromkeys((domain, *(rows.domain for rows in values.values()))))
        # Rows that begin with those of blocks are given by themselves, and then said to be what they are.
        self._placed = {
            f"{name}{PLACED}": name for name in read if run.domains[name].get("summarized") and name != domain
        }
        given_as = {name: given for given, name in self._placed.items()}
        for value, rows in values.items():
            table, index = f"{ROWS}{value}", f"{ROWS}{rows.domain}"
            weights[table] = {"format": "f32", "n": 1, "k": rows[0].shape[1]}
            params[f"{table}.weight"] = np.zeros((1, rows[0].shape[1]), np.float32)
            looked_up = f"{value}{PLACED}" if rows.domain in given_as else value
            lookups.append({"op": "embed", "out": looked_up, "tables": [{"weight": table, "index": index}]})
            if looked_up != value:
                lookups.append({"op": "fit", "in": looked_up, "out": value, "domain": rows.domain})
        inputs = [{"name": name, "domain": domain, "dtype": "i32", "limit": n} for name, n in limits.items()]
        inputs += [
            {"name": f"{ROWS}{name}", "domain": given_as.get(name, name), "dtype": "i32", "limit": 1} for name in read
        ]
        states = {op["state"] for op in ops if op["op"] == "store"}
        self._segment = replace(
            graph,
            domains=self._domains([name for name in read if name not in given_as]),
            inputs=inputs,
            weights=weights,
            states=[state for state in graph.states if state["name"] in states],
            ops=[*lookups, *ops],
            output=ops[-1]["out"],
            params=params,
        )
        self._packed = pack_graph(self._segment)
        self._packed.params = {name: aligned(array) for name, array in self._packed.params.items()}

    def _domains(self, read: list[str]) -> list[dict[str, Any]]:
        """Those of the values that are ``read``, filled by the caller, each by itself, and those made of the first."""
        base, *others = sorted(read, key=lambda name: self._run.domains[name]["kind"] == "one")
        named = {op[field] for op in self._ops for field in ("domain", "sequences") if field in op} | set(others)
        for name in list(named):  # and what lies between them and the first
            between: list[str] = []
            while name and name != base:
                between.append(name)
                name = self._run.domains[name].get("of", "")
            named.update(between if name else [])
        filled, made, present = [self._filled(base)], [], {base}
        for name, entry in self._run.domains.items():
            if name not in named or name == base or name in self._placed.values():
                continue
            follows = "of" in entry and name not in read and (entry["kind"] != "ragged" or entry["of"] in present)
            if follows or entry["kind"] == "one":
                made.append({**entry, "of": entry["of"] if entry["of"] in present else base})
            else:
                filled.append(self._filled(name))
            present.add(name)
        filled += [{**self._filled(name), "name": given} for given, name in self._placed.items()]
        made += [self._run.domains[name] for name in self._placed.values()]
        return [*filled, *made]

    def _filled(self, name: str) -> dict[str, Any]:
        """A domain that the caller fills."""
        entry = self._run.domains[name]
        if entry["kind"] == "grid":
            return {key: value for key, value in entry.items() if key != "of"}
        return {"name": name, "kind": "ragged", "max_rows": self._run.graph.max_rows(name)}

    def run(self, index: int, values: Mapping[str, Rows] | None = None) -> Array:
        """The result of one chunk; ``values`` other than those that were given at first are shaped as they were."""
        part, chunk = self._run.chunks[index]
        weights, params = dict(self._packed.weights), dict(self._packed.params)
        feeds: dict[str, Array | None] = {name: found[part].astype(np.int32) for name, found in self._found.items()}
        inputs = []
        for entry in self._segment.inputs:
            if entry["name"] not in feeds:
                count = int(self._run.lengths(self._placed.get(entry["domain"], entry["domain"]), chunk).sum())
                feeds[entry["name"]] = np.arange(count, dtype=np.int32)
                entry = {**entry, "limit": count}
            inputs.append(entry)
        for value, rows in (self._values if values is None else values).items():
            table, chunk_rows = f"{ROWS}{value}", rows[index]
            weights[table] = {**weights[table], "n": len(chunk_rows)}
            params[f"{table}.weight"] = as_table(chunk_rows)
        for entry in self._segment.domains:
            if entry["kind"] == "ragged" and "of" not in entry:
                lengths = self._run.lengths(self._placed.get(entry["name"], entry["name"]), chunk)
                feeds[entry["name"]] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
            elif entry["kind"] == "selected":
                lengths = self._run.lengths(entry["of"], chunk)
                feeds[SELECTED] = np.cumsum(lengths) - (lengths + 1) // 2  # where a text has words before and after
        graph = replace(self._segment, weights=weights, inputs=inputs, params={})
        return Session(Program(graph.description(), params)).run(feeds, default_threads())
