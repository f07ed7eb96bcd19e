"""Programs from small graphs, and batches to run them on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from helpers.graphs import tiny_graph
from helpers.kernels import aligned
from pocketformer import _core
from pocketformer.compression import QuantizeOptions, quantize
from pocketformer.graph import Array, Graph
from pocketformer.packing import pack_graph

LENGTHS = (1, 40, 2, 7, 17, 39, 16, 3, 33, 4)


def packed(graph: Graph) -> Graph:
    """Packed, in memory that is aligned as a mapped file's."""
    result = pack_graph(graph)
    return replace(result, params={name: aligned(array) for name, array in result.params.items()})


def tensors(graph: Graph) -> dict[str, Array]:
    return packed(graph).params


def program(graph: Graph, isa: str = "") -> _core.Program:
    ready = packed(graph)
    return _core.Program(ready.description(), ready.params, isa)


def quantize_graph(graph: Graph, linear_bits: int = 8, **options: Any) -> Graph:
    """Rounded to the nearest: in a hundredth of the time that feedback takes, and alike on every machine."""
    chosen = QuantizeOptions(random_tokens=0, **options)
    return quantize.quantize_graph(graph, chosen, linear_bits=linear_bits)


def encoder(weights: str, **options: Any) -> Graph:
    """``weights`` is fp32, int8 or int4: that with a table of 5 bits, where it is only looked up."""
    graph = tiny_graph(**options)
    if weights == "int4":
        return quantize_graph(graph, 4, table_bits=5)
    return quantize_graph(graph) if weights == "int8" else graph


def ending_at(graph: Graph, output: str) -> Graph:
    """The same graph with another value as its output."""
    return replace(graph, output=output)


def batch(lengths: Sequence[int], vocab: int = 101, seed: int = 0) -> dict[str, Any]:
    """Random ids and types for sequences of these lengths."""
    rng = np.random.default_rng(seed)
    total = int(sum(lengths))
    return {
        "ids": rng.integers(0, vocab, total, np.int32),
        "tokens": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "types": rng.integers(0, 2, total, np.int32),
    }


def accepted_with_one_field_changed(
    graph: Graph, given: dict[str, Array], names: Sequence[str], count: int = 300
) -> int:
    """How many of ``count`` packed graphs, each with one field of an operator or a domain changed at random, are not
    refused; those run, or are refused then. ``names`` are what a name may become."""
    rng, accepted = np.random.default_rng(0), 0
    numbers = (0, 1, 2, 3, 17, 33, 35, 36, 2**20, -1)
    for _ in range(count):
        described = copy.deepcopy(graph.description())
        part = described["ops"] if rng.integers(3) else described["domains"]
        entry = part[rng.integers(len(part))]
        field = list(entry)[rng.integers(len(entry))]
        kind = type(entry[field])
        if kind is bool:
            entry[field] = not entry[field]
        else:
            entry[field] = names[rng.integers(len(names))] if kind is str else numbers[rng.integers(len(numbers))]
        try:
            compiled = _core.Program(described, graph.params)
        except ValueError:
            continue
        accepted += 1
        with suppress(ValueError):
            _core.Session(compiled).run(given, 2)
    return accepted
