"""What a graph is built in, and operators that see each row by itself or gather rows of a sequence into others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .model import SELECTED, SEQUENCES, TOKENS, Array, Graph, Op


@dataclass
class Table:
    """One embedding table: ``weight`` [rows, width], looked up by ``index``: an input's name or ``positions``."""

    name: str
    weight: Array
    index: str
    offset: int = 0


@dataclass
class RowOperators:
    """What was collected so far, and the operators that need no state and no grid."""

    domains: list[dict[str, Any]] = field(default_factory=list)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    weights: dict[str, dict[str, Any]] = field(default_factory=dict)
    states: list[dict[str, Any]] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    params: dict[str, Array] = field(default_factory=dict)

    def domain(self, name: str, kind: str, of: str | None = None, **sizes: int) -> str:
        """Declares a domain, once."""
        entry = {"name": name, "kind": kind, **({} if of is None else {"of": of}), **sizes}
        known = next((domain for domain in self.domains if domain["name"] == name), None)
        if known is None:
            self.domains.append(entry)
        elif known != entry:
            raise ValueError(f"domain {name!r} was declared as {known}; use another name")
        return name

    def sequence_index(self, name: str, limit: int, of: str = TOKENS) -> str:
        """Declares, once, an optional input with an index below ``limit`` for each sequence."""
        domain = self.domain(SEQUENCES, "one", of)
        entry = {"name": name, "domain": domain, "dtype": "i32", "limit": limit, "optional": True}
        if entry not in self.inputs:
            self.inputs.append(entry)
        return name

    def width(self, value: str) -> int:
        """Columns of a value."""
        return self.build(value).widths()[value]

    def embed(
        self, tables: Sequence[Table], add_to: str | None = None, *, scale: float = 1.0, domain: str | None = None
    ) -> str:
        """``domain`` is that of the rows where nothing else tells it: of positions alone."""
        entries = []
        for table in tables:
            self._weight(table.name, table.weight)
            offset = {"offset": table.offset} if table.offset else {}
            entries.append({"weight": table.name, "index": table.index, **offset})
        options: dict[str, Any] = {"scale": float(scale)} if scale != 1 else {}
        if domain is not None:
            options["domain"] = domain
        return self._append("embed", add_to, tables=entries, **options)

    def norm(
        self,
        x: str,
        weight: Array,
        bias: Array | None = None,
        *,
        name: str,
        eps: float,
        kind: str = "layer",
        heads: int = 1,
        residual: str | None = None,
    ) -> str:
        """Each of ``heads`` parts of a row by itself; ``weight`` is that of one."""
        options: dict[str, Any] = {} if bias is None else {"bias": self._param(f"{name}.bias", bias)}
        options |= {"kind": kind, "eps": float(eps)}
        if heads != 1:
            options["heads"] = heads
        if residual is not None:
            options["residual"] = residual
        return self._append("norm", x, weight=self._param(f"{name}.weight", weight), **options)

    def linear(
        self,
        x: str,
        weight: Array,
        bias: Array | None = None,
        *,
        name: str,
        activation: str = "none",
        multiply: str | None = None,
        residual: str | None = None,
    ) -> str:
        """``weight`` is [n, k] as PyTorch stores it."""
        self._weight(name, weight)
        options: dict[str, Any] = {} if bias is None else {"bias": self._param(f"{name}.bias", bias)}
        if activation != "none":
            options["activation"] = activation
        if multiply is not None:
            options["multiply"] = multiply
        if residual is not None:
            options["residual"] = residual
        return self._append("linear", x, weight=name, **options)

    def columns(self, x: str, begin: int, width: int) -> str:
        return self._append("columns", x, begin=begin, width=width)

    def concat(self, parts: Sequence[str]) -> str:
        """The columns of ``parts`` side by side, in order."""
        x, *rest = parts
        for part in rest:
            x = self._append("concat", x, **{"with": part})
        return x

    def rope(self, x: str, frequencies: Array, *, name: str, head_dim: int, factor: float = 1.0) -> str:
        """``frequencies`` [rotated/2] turn the first channels of each head; ``factor`` multiplies sine and cosine."""
        fields = {"head_dim": head_dim, "rotated": 2 * len(frequencies), "factor": factor}
        return self._append("rope", x, frequencies=self._param(name, frequencies), **fields)

    def normalize(self, x: str) -> str:
        return self._append("normalize", x)

    def softcap(self, x: str, cap: float) -> str:
        """cap·tanh(x/cap)"""
        return self._append("softcap", x, cap=float(cap))

    def summarize(self, x: str, weight: Array, domain: str, *, name: str, eps: float) -> str:
        """The RMS norm of the sum of each block of a sequence's rows, then these: rows of a ``summarized`` domain."""
        weight_name = self._param(f"{name}.weight", weight)
        return self._append("summarize", x, domain=domain, weight=weight_name, eps=float(eps))

    def prepend(self, x: str, rows: Array, domain: str, *, name: str) -> str:
        """``rows`` [prepended, width] before those of every sequence."""
        return self._append("prepend", x, domain=domain, rows=self._param(name, rows))

    def pool(
        self,
        x: str,
        kind: str,
        of: str = TOKENS,
        begin: int = 0,
        skip: str | None = None,
        into: str | None = None,
    ) -> str:
        """A row for each sequence, its first ``begin`` rows left out, or for each of as many parts of it as the grid
        ``into`` has rows.

        ``skip`` names a :meth:`sequence_index`: how many more are.
        """
        left_out: dict[str, Any] = {"begin": begin} if begin else {}
        if skip is not None:
            left_out["skip"] = skip
        domain = self.domain(SEQUENCES, "one", of) if into is None else into
        return self._append("pool", x, domain=domain, kind=kind, **left_out)

    def select(self, x: str, of: str = TOKENS) -> str:
        return self._append("select", x, domain=self.domain(SELECTED, "selected", of))

    def fit(self, x: str, domain: str, fill: tuple[str, Array] | None = None) -> str:
        """As many first rows of ``x`` in each sequence as ``domain`` has, ``fill`` [width] (zeros) behind the last."""
        return self._append("fit", x, domain=domain, **({} if fill is None else {"fill": self._param(*fill)}))

    def convolve(self, x: str, weight: Array, *, name: str, residual: str | None = None) -> str:
        """``weight`` [taps, channels], of odd length, slides along each sequence, every channel by itself."""
        options: dict[str, Any] = {} if residual is None else {"residual": residual}
        return self._append("convolve", x, weight=self._param(name, weight), taps=len(weight), **options)

    def mix(
        self, x: str, weight: Array, domain: str = TOKENS, *, name: str, heads: int = 1, softmax: bool = False
    ) -> str:
        """Rows of ``domain`` as sums over the rows of ``x`` of their sequence.

        ``weight`` [heads, rows of the longest sequence of ``domain``, of that of ``x``] has a matrix for each of
        ``heads`` parts of a row, cut to a sequence's length; ``softmax`` is then taken of its rows.
        """
        options: dict[str, Any] = {"heads": heads} if heads != 1 else {}
        if softmax:
            options["softmax"] = True
        return self._append("mix", x, domain=domain, weight=self._param(name, weight), **options)

    def build(self, output: str) -> Graph:
        return Graph(self.domains, self.inputs, self.weights, self.states, self.ops, output, self.params)

    def _weight(self, name: str, weight: Array) -> None:
        self._param(f"{name}.weight", weight)
        n, k = weight.shape
        self.weights[name] = {"format": "f32", "n": n, "k": k}

    def _param(self, name: str, array: Array) -> str:
        known = self.params.setdefault(name, array)
        if known is not array and not np.array_equal(known, array):
            raise ValueError(f"parameter {name!r} was given twice with different values; use another name")
        return name

    def _append(self, op: str, x: str | None = None, **fields: Any) -> str:
        out = f"{op}{len(self.ops)}"
        self.ops.append({"op": op, **({} if x is None else {"in": x}), "out": out, **fields})
        return out
