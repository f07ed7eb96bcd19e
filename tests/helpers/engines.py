"""The two executors of a graph under one signature: the numpy interpreter and the C++ runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helpers.kernels import aligned
from pocketformer.graph import Graph

Ids = NDArray[np.integer[Any]]
Engine = Callable[..., NDArray[np.float32]]


def feeds(
    ids: Ids, lengths: Sequence[int], types: Ids | None, rows: Ids | None, counts: dict[str, Ids] | None = None
) -> dict[str, Any]:
    """What a text model's program takes: ``ids`` holds the sequences of ``lengths`` end to end, ``rows`` tokens,
    ``counts`` further inputs of a number for each sequence.
    """
    result = {name: values.astype(np.int32) for name, values in (counts or {}).items()}
    result |= {"ids": ids.astype(np.int32), "tokens": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)}
    if types is not None:
        result["types"] = types.astype(np.int32)
    if rows is not None:
        result["selected"] = rows.astype(np.int64)
    return result


def reference(
    graph: Graph,
    ids: Ids,
    lengths: Sequence[int],
    types: Ids | None = None,
    rows: Ids | None = None,
    counts: dict[str, Ids] | None = None,
) -> NDArray[np.float32]:
    """Runs ``graph`` in numpy; arguments as in :func:`feeds`."""
    from pocketformer.reference import run

    return run(graph, feeds(ids, lengths, types, rows, counts))


def native(
    graph: Graph,
    ids: Ids,
    lengths: Sequence[int],
    types: Ids | None = None,
    rows: Ids | None = None,
    counts: dict[str, Ids] | None = None,
    *,
    threads: int = 2,
) -> NDArray[np.float32]:
    """Packs ``graph`` and runs it in C++; arguments as in :func:`feeds`."""
    from pocketformer.packing import pack_graph

    packed = pack_graph(graph)
    packed.params = {name: aligned(array) for name, array in packed.params.items()}
    return native_packed(packed, ids, lengths, types, rows, counts, threads=threads)


def native_packed(
    graph: Graph,
    ids: Ids,
    lengths: Sequence[int],
    types: Ids | None = None,
    rows: Ids | None = None,
    counts: dict[str, Ids] | None = None,
    *,
    threads: int = 2,
) -> NDArray[np.float32]:
    """Runs a packed graph, as a pocket file holds it, in C++."""
    from pocketformer._core import Program, Session

    session = Session(Program(graph.description(), graph.params))
    return session.run(feeds(ids, lengths, types, rows, counts), threads)


ENGINES: dict[str, Engine] = {"reference": reference, "native": native}
