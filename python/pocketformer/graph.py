"""The model as data: a list of operators and their parameters (docs/format.md defines every field)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Op = dict[str, Any]
Array = NDArray[Any]

TOKENS, SEQUENCES, SELECTED = "tokens", "sequences", "selected"
"""The domains of a text model: its tokens, one row a text, and the tokens that the caller names."""

IMAGES = "images"
"""The domain of rows that each image has one of on the way."""

SKIPPED, SEEN, GLOBALS = "skipped", "seen", "globals"
"""Inputs that some text models have, a number for each text: first tokens that are not pooled; first tokens that all
others attend to, the rest to none but them; first tokens that all attend to, as they do to all, beside a window."""

READS = (
    *("in", "with", "q", "k", "v", "global_q", "multiply", "residual"),
    *("matches", "after", "sizes", "moments", "scores", "halts"),
)
STATES = ("state", "global_state")
TENSORS = ("bias", "pair_bias", "frequencies", "rows", "logarithms", "features", "fill")
"""Fields of an operator that name a value that it reads, a state, and a plain parameter."""


@dataclass(frozen=True)
class BlockSparse:
    """What attention sees by blocks of ``size`` rows (BigBird, arXiv 2007.14062).

    A query sees its own block and ``window`` on each side, and of all blocks the first ``globals`` and as many last,
    whose queries see all. To the others' queries the keys of the first ones count ``repeats`` times more. A sequence of
    at most ``dense`` rows is seen whole.
    """

    size: int
    window: int = 1
    globals: int = 1
    repeats: int = 0
    dense: int = 0


@dataclass
class Graph:
    """Operators in execution order, what they work on, and their parameters.

    Before packing, ``params`` holds plain arrays: ``W.weight`` [n, k] of a weight, with ``W.scale`` [n] or [n, k/group]
    where it is rounded and ``W.codebook`` [16] and ``W.minimum`` where it has 4 bits; vectors under the names that
    operators give. After packing it holds the tensors of the pocket file.
    """

    domains: list[dict[str, Any]]
    inputs: list[dict[str, Any]]
    weights: dict[str, dict[str, Any]]
    states: list[dict[str, Any]]
    ops: list[Op]
    output: str
    params: dict[str, Array]

    def description(self) -> dict[str, Any]:
        """All but the parameters, as ``_core.Program`` takes it."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "params"}

    def find_input(self, name: str) -> dict[str, Any] | None:
        return next((entry for entry in self.inputs if entry["name"] == name), None)

    @property
    def vocab_size(self) -> int:
        """Limit of the input ``ids``; 0 in a graph without one."""
        return int((self.find_input("ids") or {"limit": 0})["limit"])

    @property
    def type_vocab_size(self) -> int:
        """Limit of the input ``types``; 0 in a graph without one."""
        return int((self.find_input("types") or {"limit": 0})["limit"])

    @property
    def max_length(self) -> int:
        """Rows of the longest sequence that the caller may give."""
        return next(int(domain.get("max_rows", 1)) for domain in self.domains if "of" not in domain)

    def max_rows(self, domain: str) -> int:
        """Rows of the longest sequence of a domain."""
        entry = next(entry for entry in self.domains if entry["name"] == domain)
        if entry["kind"] == "grid":
            return int(entry["height"] * entry["width"])
        if "of" not in entry:
            return int(entry["max_rows"])
        more = int(entry.get("prepended", 0)) - int(entry.get("merged", 0))
        return self.max_rows(entry["of"]) + more if entry["kind"] == "ragged" else 1

    def domain_of(self, value: str) -> str:
        """The domain of the rows of a value."""
        domains = {entry["name"]: str(entry["domain"]) for entry in self.inputs}
        for op in self.ops:
            read = next((op[field] for field in ("domain", "in", "q") if op.get(field) is not None), None)
            if "out" not in op:
                continue
            if read is None:
                read = next(table["index"] for table in op["tables"] if table["index"] in domains)
            domains[op["out"]] = domains.get(read, read)
        return domains[value]

    def widths(self) -> dict[str, int]:
        """Columns of every value."""
        result = {entry["name"]: int(entry["width"]) for entry in self.inputs if entry["dtype"] == "f32"}
        for op in self.ops:
            if op["op"] == "embed":
                result[op["out"]] = self.weights[op["tables"][0]["weight"]]["k"]
            elif op["op"] == "linear":
                result[op["out"]] = self.weights[op["weight"]]["n"]
            elif op["op"] == "columns":
                result[op["out"]] = op["width"]
            elif op["op"] == "concat":
                result[op["out"]] = result[op["in"]] + result[op["with"]]
            elif op["op"] == "head_mean":
                result[op["out"]] = result[op["in"]] // op["heads"]
            elif op["op"] == "moments":
                result[op["out"]] = 2
            elif op["op"] == "unfold":
                result[op["out"]] = result[op["in"]] * op["height"] * op["width"]
            elif op["op"] == "fold":
                result[op["out"]] = result[op["in"]] // (op["height"] * op["width"])
            elif "out" in op:
                like = {"attention": "q", "linear_attention": "v"}.get(op["op"], "in")
                result[op["out"]] = result[op[like]]
        return result


@dataclass
class Table:
    """One embedding table: ``weight`` [rows, width], looked up by ``index``: an input's name or ``positions``."""

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

    domains: list[dict[str, Any]] = field(default_factory=list)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    weights: dict[str, dict[str, Any]] = field(default_factory=dict)
    states: list[dict[str, Any]] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    params: dict[str, Array] = field(default_factory=dict)

    @classmethod
    def text(cls, vocab_size: int, type_vocab_size: int, max_length: int) -> GraphBuilder:
        """A graph over tokens with the inputs ``ids`` and, where there are token types, ``types``."""
        build = cls([{"name": TOKENS, "kind": "ragged", "max_rows": max_length}])
        build.inputs.append({"name": "ids", "domain": TOKENS, "dtype": "i32", "limit": vocab_size})
        if type_vocab_size:
            build.inputs.append(
                {"name": "types", "domain": TOKENS, "dtype": "i32", "limit": type_vocab_size, "optional": True}
            )
        return build

    def domain(self, name: str, kind: str, of: str | None = None, **sizes: int) -> str:
        """Declares a domain, once."""
        entry = {"name": name, "kind": kind, **({} if of is None else {"of": of}), **sizes}
        known = next((domain for domain in self.domains if domain["name"] == name), None)
        if known is None:
            self.domains.append(entry)
        elif known != entry:
            raise ValueError(f"domain {name!r} was declared as {known}; use another name")
        return name

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

    def width(self, value: str) -> int:
        """Columns of a value."""
        return self.build(value).widths()[value]

    def columns(self, x: str, begin: int, width: int) -> str:
        return self._append("columns", x, begin=begin, width=width)

    def concat(self, parts: Sequence[str]) -> str:
        """The columns of ``parts`` side by side, in order."""
        x, *rest = parts
        for part in rest:
            x = self._append("concat", x, **{"with": part})
        return x

    def sequence_index(self, name: str, limit: int, of: str = TOKENS) -> str:
        """Declares, once, an optional input with an index below ``limit`` for each sequence."""
        domain = self.domain(SEQUENCES, "one", of)
        entry = {"name": name, "domain": domain, "dtype": "i32", "limit": limit, "optional": True}
        if entry not in self.inputs:
            self.inputs.append(entry)
        return name

    def store(self, k: str, v: str, *, heads: int, head_dim: int, domain: str = TOKENS, kept: bool = False) -> str:
        """Keys and values, ``heads`` × ``head_dim`` columns each; returns the name of a state.

        ``kept`` states outlive a run in a ``_core.StateCache``.
        """
        state = f"state{len(self.states)}"
        entry = {"name": state, "domain": domain, "dtype": "fp32", "heads": heads, "head_dim": head_dim}
        self.states.append({**entry, "kept": True} if kept else entry)
        self.ops.append({"op": "store", "k": k, "v": v, "state": state})
        return state

    def attend(
        self,
        q: str,
        state: str,
        *,
        scale: float,
        causal: bool = False,
        left: int = -1,
        right: int = -1,
        bias: tuple[str, Array] | None = None,
        pair_bias: tuple[str, Array] | None = None,
        globals: int = 0,
        more_globals: str | None = None,
        global_q: str | None = None,
        global_state: str | None = None,
        softcap: float = 0.0,
        blocks: BlockSparse | None = None,
    ) -> str:
        """``globals`` first rows of a sequence, and as many more as the input ``more_globals`` says, see all keys of
        ``global_state`` with the queries of ``global_q``; the others see their keys beside their own range.
        ``softcap`` c makes c·tanh(s/c) of each score s; 0 leaves them. ``pair_bias`` [heads, keys, queries] is added to
        the scores of as many rows as the domain has at most. ``blocks`` say what is seen where attention is
        block-sparse.
        """
        options: dict[str, Any] = {"causal": True} if causal else {}
        if softcap:
            options["softcap"] = float(softcap)
        options |= {name: keys for name, keys in (("left", left), ("right", right)) if keys >= 0}
        if bias is not None:
            options["bias"] = self._param(*bias)
        if pair_bias is not None:
            options["pair_bias"] = self._param(*pair_bias)
        if globals:
            options["globals"] = globals
        named = {"more_globals": more_globals, "global_q": global_q, "global_state": global_state}
        options |= {field: name for field, name in named.items() if name is not None}
        if blocks is not None:
            fields = ("", "_window", "_globals", "_repeats", "_dense")
            options |= {f"block{field}": n for field, n in zip(fields, astuple(blocks), strict=True) if n}
        return self._append("attention", q=q, state=state, scale=float(scale), **options)

    def attend_to_first(self, name: str, max_length: int, of: str = TOKENS) -> None:
        """Every attention so far sees only as many first keys of a sequence as the input ``name`` says; 0: all."""
        self.sequence_index(name, max_length + 1, of)
        for op in self.ops:
            if op["op"] == "attention":
                op["keys"] = name

    def attention(
        self,
        qkv: str,
        *,
        heads: int,
        head_dim: int,
        kv_heads: int | None = None,
        scale: float | None = None,
        domain: str = TOKENS,
        rope: tuple[str, Array, float] | None = None,
        norms: tuple[tuple[str, Array], tuple[str, Array]] | None = None,
        eps: float = 1e-6,
        kept: bool = False,
        global_qkv: str | None = None,
        **options: Any,
    ) -> str:
        """Attention of a sequence to itself; ``qkv`` holds ``heads`` queries, then ``kv_heads`` keys and values.

        ``global_qkv`` holds the same for rows that are global.

        ``rope`` is the name, the frequencies and the factor by which queries and keys turn, ``norms`` the name and the
        weight [head_dim] of the RMS norm, with ``eps``, of each head of the queries and of the keys before that.
        """
        kv_heads = heads if kv_heads is None else kv_heads
        q_width, k_width = heads * head_dim, kv_heads * head_dim
        if norms is not None:
            q, k = (
                self.norm(self.columns(qkv, begin, n * head_dim), weight, name=name, eps=eps, kind="rms", heads=n)
                for begin, n, (name, weight) in ((0, heads, norms[0]), (q_width, kv_heads, norms[1]))
            )
            if rope is not None:
                q, k = (self.rope(x, rope[1], name=rope[0], head_dim=head_dim, factor=rope[2]) for x in (q, k))
        else:
            qk = qkv
            if rope is not None:
                qk = self.columns(qkv, 0, q_width + k_width)  # in one pass: a row's angles are those of all its heads
                qk = self.rope(qk, rope[1], name=rope[0], head_dim=head_dim, factor=rope[2])
            q, k = self.columns(qk, 0, q_width), self.columns(qk, q_width, k_width)
        v = self.columns(qkv, q_width + k_width, k_width)
        state = self.store(k, v, heads=kv_heads, head_dim=head_dim, domain=domain, kept=kept)
        if global_qkv is not None:
            k, v = (self.columns(global_qkv, q_width + i * k_width, k_width) for i in range(2))
            options["global_q"] = self.columns(global_qkv, 0, q_width)
            options["global_state"] = self.store(k, v, heads=kv_heads, head_dim=head_dim, domain=domain)
        return self.attend(q, state, scale=head_dim**-0.5 if scale is None else scale, **options)

    def rope(self, x: str, frequencies: Array, *, name: str, head_dim: int, factor: float = 1.0) -> str:
        """``frequencies`` [rotated/2] turn the first channels of each head; ``factor`` multiplies sine and cosine."""
        fields = {"head_dim": head_dim, "rotated": 2 * len(frequencies), "factor": factor}
        return self._append("rope", x, frequencies=self._param(name, frequencies), **fields)

    def unfold(self, x: str, domain: str, *, height: int, width: int, stride: int = 1, padding: int = 0) -> str:
        """Windows of a grid; ``domain`` is the grid of the windows, which may be that of ``x``."""
        options = {name: n for name, n, default in (("stride", stride, 1), ("padding", padding, 0)) if n != default}
        return self._append("unfold", x, domain=domain, height=height, width=width, **options)

    def fold(self, x: str, domain: str, *, height: int, width: int) -> str:
        """The grid ``domain`` that :meth:`unfold` takes apart into ``x``, by windows side by side."""
        return self._append("fold", x, domain=domain, height=height, width=width)

    def depthwise(
        self,
        x: str,
        weight: Array,
        bias: Array | None,
        domain: str,
        *,
        name: str,
        height: int,
        width: int,
        stride: int = 1,
        padding: int = 0,
        activation: str = "none",
    ) -> str:
        """``weight`` [height · width, channels] multiplies the pixels of a window, line by line; ``domain`` is the grid
        of the windows, which may be that of ``x``."""
        options: dict[str, Any] = {} if bias is None else {"bias": self._param(f"{name}.bias", bias)}
        options |= {key: n for key, n, default in (("stride", stride, 1), ("padding", padding, 0)) if n != default}
        if activation != "none":
            options["activation"] = activation
        weight_name = self._param(f"{name}.weight", weight)
        return self._append("depthwise", x, domain=domain, weight=weight_name, height=height, width=width, **options)

    def resize(self, x: str, domain: str) -> str:
        """A grid at the size of the grid ``domain``."""
        return self._append("resize", x, domain=domain)

    def prepend(self, x: str, rows: Array, domain: str, *, name: str) -> str:
        """``rows`` [prepended, width] before those of every sequence."""
        return self._append("prepend", x, domain=domain, rows=self._param(name, rows))

    def linear_attention(
        self,
        q: str,
        k: str,
        v: str,
        features: Array,
        *,
        name: str,
        heads: int,
        scale: float,
        eps: float,
        causal: bool = False,
        of: str = TOKENS,
    ) -> str:
        """Attention by the random ``features`` [count, columns of a head of ``q``] of FAVOR+."""
        options: dict[str, Any] = {"causal": True} if causal else {}
        options |= {"features": self._param(name, features), "count": len(features), "heads": heads}
        sequences = self.domain(f"{of}.each" if of != TOKENS else SEQUENCES, "one", of)
        options |= {"q": q, "k": k, "v": v, "sequences": sequences, "scale": float(scale), "eps": float(eps)}
        return self._append("linear_attention", **options)

    def nystrom(self, q: str, k: str, x: str, *, heads: int, scale: float, iterations: int, of: str) -> str:
        """``x`` times the pseudo-inverse of softmax(q · kᵀ · scale) of the rows of a grid ``of``, head by head."""
        sequences = self.domain(f"{of}.each", "one", of)
        fields = {"q": q, "k": k, "sequences": sequences, "scale": float(scale), "iterations": iterations}
        return self._append("nystrom", x, heads=heads, **fields)

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

    def normalize(self, x: str) -> str:
        return self._append("normalize", x)

    def standardize(self, x: str, weight: Array, bias: Array, *, name: str, eps: float, of: str) -> str:
        """The norm of a whole image, of all its rows and columns; ``of`` is the domain that the image has."""
        moments = self._append("moments", x, domain=self.domain(IMAGES, "one", of), eps=float(eps))
        names = {"weight": self._param(f"{name}.weight", weight), "bias": self._param(f"{name}.bias", bias)}
        return self._append("standardize", x, moments=moments, **names)

    def soft_pool(self, x: str, scores: str, *, of: str) -> str:
        """A row for each image whose domain is ``of``: the sum of its rows, each by the softmax of ``scores`` over the
        rows; as many scores, as many parts of the columns."""
        return self._append("soft_pool", x, scores=scores, domain=self.domain(IMAGES, "one", of))

    def spread(self, x: str, domain: str) -> str:
        """For each row of ``domain`` that of its image."""
        return self._append("spread", x, domain=domain)

    def average(
        self, x: str, domain: str, *, name: str, size: int, stride: int = 1, weight: Array | None = None
    ) -> str:
        """Means of windows of ``size`` × ``size``, of the pixels within the grid; ``domain`` is the grid
        of the windows. With ``weight`` [channels] x + weight · (mean − x)."""
        options: dict[str, Any] = {"height": size, "width": size}
        options |= {key: n for key, n, default in (("stride", stride, 1), ("padding", size // 2, 0)) if n != default}
        if weight is not None:
            options["weight"] = self._param(f"{name}.weight", weight)
        return self._append("average", x, domain=domain, **options)

    def softcap(self, x: str, cap: float) -> str:
        """cap·tanh(x/cap)"""
        return self._append("softcap", x, cap=float(cap))

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
