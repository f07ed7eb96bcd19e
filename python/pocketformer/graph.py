"""The model as data: a list of operators and their parameters (docs/format.md defines every field)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Op = dict[str, Any]
Array = NDArray[Any]


@dataclass
class Graph:
    """Operators in execution order and their parameters.

    Before packing, ``params`` holds plain arrays: ``W.weight`` [N, K] and ``W.bias`` [N] of a linear, ``T.weight``
    [rows, width] of a table, ``G.weight`` / ``G.bias`` [width] of a norm, attention biases [heads, 2·max_length−1].
    After packing it holds the tensors of the pocket file.
    """

    ops: list[Op]
    params: dict[str, Array]
    output: str
    vocab_size: int
    type_vocab_size: int
    max_length: int

    def description(self) -> dict[str, Any]:
        """All but the parameters, as ``_core.Program`` and the pocket file take it."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "params"}


@dataclass
class Table:
    """One embedding table: ``weight`` [rows, width], looked up by ``index`` (``ids``, ``positions`` or ``types``)."""

    name: str
    weight: Array
    index: str
    offset: int = 0


@dataclass
class GraphBuilder:
    """Collects operators; each method appends one and returns the name of its value.

    A parameter given twice under one name must be the same array: it is stored once (ALBERT's shared layer, tied
    decoders).
    """

    vocab_size: int
    type_vocab_size: int
    max_length: int
    ops: list[Op] = field(default_factory=list)
    params: dict[str, Array] = field(default_factory=dict)

    def embed(self, tables: Sequence[Table]) -> str:
        for table in tables:
            self._param(f"{table.name}.weight", table.weight)
        entries = [
            {"weight": t.name, "rows": t.weight.shape[0], "index": t.index, "offset": t.offset, "rotate": 0}
            for t in tables
        ]
        return self._append("embed", width=tables[0].weight.shape[1], tables=entries)

    def norm(
        self, x: str, weight: Array, bias: Array | None = None, *, name: str, eps: float, kind: str = "layer"
    ) -> str:
        self._param(f"{name}.weight", weight)
        if bias is not None:
            self._param(f"{name}.bias", bias)
        return self._append("norm", x, weight=name, width=weight.shape[0], kind=kind, eps=float(eps))

    def linear(
        self,
        x: str,
        weight: Array,
        bias: Array | None = None,
        *,
        name: str,
        activation: str = "none",
        residual: str | None = None,
    ) -> str:
        """``weight`` is [N, K] as PyTorch stores it."""
        self._param(f"{name}.weight", weight)
        if bias is not None:
            self._param(f"{name}.bias", bias)
        n, k = weight.shape
        return self._append("linear", x, weight=name, n=n, k=k, activation=activation, residual=residual, rotate=0)

    def attention(
        self,
        qkv: str,
        *,
        heads: int,
        head_dim: int,
        kv_heads: int | None = None,
        scale: float | None = None,
        causal: bool = False,
        left: int = -1,
        right: int = -1,
        bias: tuple[str, Array] | None = None,
    ) -> str:
        if bias is not None:
            self._param(*bias)
        return self._append(
            "attention",
            qkv,
            heads=heads,
            kv_heads=heads if kv_heads is None else kv_heads,
            head_dim=head_dim,
            scale=float(head_dim**-0.5 if scale is None else scale),
            causal=causal,
            left=left,
            right=right,
            dtype="fp32",
            bias=None if bias is None else bias[0],
        )

    def pool(self, x: str, kind: str) -> str:
        return self._append("pool", x, kind=kind)

    def select(self, x: str) -> str:
        return self._append("select", x)

    def normalize(self, x: str) -> str:
        return self._append("normalize", x)

    def build(self, output: str) -> Graph:
        return Graph(self.ops, self.params, output, self.vocab_size, self.type_vocab_size, self.max_length)

    def _param(self, name: str, array: Array) -> None:
        known = self.params.setdefault(name, array)
        if known is not array and not np.array_equal(known, array):
            raise ValueError(f"parameter {name!r} was given twice with different values; use another name")

    def _append(self, op: str, x: str | None = None, **fields: Any) -> str:
        out = f"{op}{len(self.ops)}"
        self.ops.append({"op": op, **({} if x is None else {"in": x}), "out": out, **fields})
        return out
