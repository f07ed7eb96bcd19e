"""What the caller gives to a graph, as its operators look at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..graph import Array, Graph, rows_for


@dataclass
class Batch:
    """What the caller gives: indices and rows by input, and the rows of every sequence by domain."""

    inputs: dict[str, Array]
    sequences: dict[str, list[slice]]
    selected: dict[str, Array]
    states: dict[str, tuple[Array, Array]]

    def rows(self, domain: str) -> int:
        return self.sequences[domain][-1].stop if self.sequences[domain] else 0

    def positions(self, domain: str) -> Array:
        return np.concatenate([np.arange(rows.stop - rows.start) for rows in self.sequences[domain]])


def make_batch(graph: Graph, given: Mapping[str, ArrayLike | None]) -> Batch:
    def index(name: str, limit: int) -> Array:
        array = np.asarray(given.get(name, ()), np.int64).reshape(-1)
        if array.size and not (array.min() >= 0 and array.max() < limit):
            raise ValueError(f"{name} holds {array.min()}…{array.max()}; it must lie in 0…{limit - 1}")
        return array

    batch = Batch({}, {}, {}, {})
    count = 0
    for domain in graph.domains:
        name, of = domain["name"], domain.get("of", "")
        if domain["kind"] == "ragged" and not of:
            lengths = np.diff(np.asarray(given[name], np.int64))
            if lengths.size and not (lengths.min() >= 1 and lengths.max() <= domain["max_rows"]):
                raise ValueError(
                    f"{name} has lengths {lengths.min()}…{lengths.max()}; they must lie in 1…{domain['max_rows']}"
                )
        elif domain["kind"] == "ragged":
            lengths = rows_for(domain, np.array([rows.stop - rows.start for rows in batch.sequences[of]], np.int64))
        elif domain["kind"] == "grid":
            size = domain["height"] * domain["width"]
            filled = [len(np.asarray(given[entry["name"]])) for entry in graph.inputs if entry["domain"] == name]
            lengths = np.full(filled[0] // size if filled else count, size)
        elif domain["kind"] == "one":
            lengths = np.ones(count, np.int64)
        else:
            batch.selected[name] = index(name, batch.rows(of))
            continue
        count = len(lengths)
        ends = np.cumsum(lengths)
        batch.sequences[name] = [slice(int(e - n), int(e)) for e, n in zip(ends, lengths, strict=True)]
    for entry in graph.inputs:
        name, rows = entry["name"], batch.rows(entry["domain"])
        if entry["dtype"] == "f32":
            batch.inputs[name] = np.asarray(given[name], np.float32)
        elif given.get(name) is None and entry.get("optional"):
            batch.inputs[name] = np.zeros(rows, np.int64)
        else:
            batch.inputs[name] = index(name, entry["limit"])
        if len(batch.inputs[name]) != rows:
            raise ValueError(f"{name} has {len(batch.inputs[name])} entries; the sequences have {rows}")
    return batch
