"""The model as data: a list of operators and their parameters (docs/format.md defines every field)."""

from __future__ import annotations

from .attention import BlockSparse
from .builder import GraphBuilder
from .keys import KEPT_DTYPES, kept_dtype, with_kept_dtype
from .model import (
    GLOBALS,
    IMAGES,
    READS,
    SEEN,
    SELECTED,
    SEQUENCES,
    SKIPPED,
    STATES,
    TENSORS,
    TOKENS,
    Array,
    Graph,
    Op,
    rows_for,
)
from .rows import Table

__all__ = [
    "GLOBALS",
    "IMAGES",
    "KEPT_DTYPES",
    "READS",
    "SEEN",
    "SELECTED",
    "SEQUENCES",
    "SKIPPED",
    "STATES",
    "TENSORS",
    "TOKENS",
    "Array",
    "BlockSparse",
    "Graph",
    "GraphBuilder",
    "Op",
    "Table",
    "kept_dtype",
    "rows_for",
    "with_kept_dtype",
]
