"""A plain fp32 graph run operator by operator on the chunks of a calibration.

One operator's weights are in memory at a time, and of the rows those of a chunk of sequences: the rest waits in a file.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import IO, Any

import numpy as np

from .._core import Program, Session, default_threads
from ..graph import Array, Op, rows_for
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
        if entry["kind"] == "one":
            return np.ones_like(chunk)
        if entry["kind"] == "grid":
            return np.full_like(chunk, entry["height"] * entry["width"])
        return rows_for(entry, self.lengths(entry["of"], chunk)) if "of" in entry else chunk

    def run(self, op: Op, values: Mapping[str, Rows | None]) -> Rows | None:
        """The result of one operator on ``values``, which a graph of it alone looks up in tables, row by row."""
        given = {value: rows for value, rows in values.items() if rows is not None}
        if op["op"] == "select" or len(given) < len(values):
            return None  # which rows matter is known to callers only
        if "more_globals" in op:  # how many is known to callers only: the first row at least
            op = {**op, "globals": max(1, op.get("globals", 0))}
        op = {field: value for field, value in op.items() if field not in ("skip", "keys", "more_globals")}
        domain = next((rows.domain for rows in given.values()), "") or self._domain_of_tables(op)
        result = Rows(self.memory, op.get("domain", domain))
        if op["op"] == "columns":
            for chunk in given[op["in"]]:
                result.append(np.ascontiguousarray(chunk[:, op["begin"] : op["begin"] + op["width"]]))
            return result
        segment = Segment(self, op, domain, given)
        for index in range(len(self.chunks)):
            result.append(segment.run(index))
        return result

    def _domain_of_tables(self, op: Op) -> str:
        inputs = {entry["name"]: entry["domain"] for entry in self.graph.inputs}
        return op.get("domain") or next(str(inputs[t["index"]]) for t in op["tables"] if t["index"] in inputs)


class Segment:
    """A graph of one operator, whose weights are packed once."""

    def __init__(self, run: Run, op: Op, domain: str, values: Mapping[str, Rows]) -> None:
        self._run, self._op, self._values = run, op, values
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
        stores = run.flow.stored(op)
        self._segment = replace(
            graph,
            domains=self._domains([name for name in read if name not in given_as]),
            inputs=inputs,
            weights=weights,
            states=[state for state in graph.states if state["name"] in {store["state"] for store in stores}],
            ops=[*lookups, *stores, op],
            output=op["out"],
            params=params,
        )
        self._packed = pack_graph(self._segment)
        self._packed.params = {name: aligned(array) for name, array in self._packed.params.items()}

    def _domains(self, read: list[str]) -> list[dict[str, Any]]:
        """Those of the values that are ``read``, filled by the caller, each by itself, and those made of the first."""
        base, *others = sorted(read, key=lambda name: self._run.domains[name]["kind"] == "one")
        filled, made = [self._filled(base)], []
        named = [self._op[field] for field in ("domain", "sequences") if field in self._op]
        for name in dict.fromkeys((*others, *named)):
            entry = self._run.domains[name]
            follows = "of" in entry and name not in read and (entry["kind"] != "ragged" or entry["of"] == base)
            if follows or (entry["kind"] == "one" and name != base):
                made.append({**entry, "of": base})
            elif name != base:
                filled.append(self._filled(name))
        filled += [{**self._filled(name), "name": given} for given, name in self._placed.items()]
        made += [self._run.domains[name] for name in self._placed.values()]
        return [*filled, *made]

    def _filled(self, name: str) -> dict[str, Any]:
        """A domain that the caller fills."""
        entry = self._run.domains[name]
        if entry["kind"] == "grid":
            return {key: value for key, value in entry.items() if key != "of"}
        return {"name": name, "kind": "ragged", "max_rows": self._run.graph.max_rows(name)}

    def run(self, index: int) -> Array:
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
        for value, rows in self._values.items():
            table, chunk_rows = f"{ROWS}{value}", rows[index]
            weights[table] = {**weights[table], "n": len(chunk_rows)}
            params[f"{table}.weight"] = as_table(chunk_rows)
        for entry in self._segment.domains:
            if entry["kind"] == "ragged" and "of" not in entry:
                lengths = self._run.lengths(self._placed.get(entry["name"], entry["name"]), chunk)
                feeds[entry["name"]] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        graph = replace(self._segment, weights=weights, inputs=inputs, params={})
        return Session(Program(graph.description(), params)).run(feeds, default_threads())
