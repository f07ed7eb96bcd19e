"""The layer that transformers share, as data: a specification, the names of its parameters, and what builds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import CheckpointError
from ..graph import TOKENS, Array, BlockSparse, GraphBuilder
from ..lazy import concatenate, row_slice
from ..sources.source import Tensors
from .rope import Rope

Pair = tuple[Array, Array | None]
"""Weight, and bias where there is one."""


@dataclass(frozen=True)
class LayerSpec:
    """One layer of an encoder or decoder.

    ``norm`` says where it normalises: ``post`` (BERT) after each residual sum, ``pre`` (ViT, Llama) before each
    sublayer, ``sandwich`` (Gemma) before each and also after it, before the sum. ``attention_norm`` is False where a
    pre-norm layer's attention takes its input as it is (the first of ModernBERT). ``kv_heads`` and ``head_dim`` follow
    from ``heads`` and ``hidden`` if None. ``window`` is the farthest that a query looks to each side. ``rope`` turns
    queries and keys by their positions. ``globals`` first tokens, and as many more as the input ``more_globals`` says,
    see all by projections of their own and are seen by all, beside the window. ``summaries`` rows make a block whose
    sum, normalised by itself, all see as a key too. ``blocks`` say what is seen where
    attention is block-sparse. ``gated`` says that the activation of
    one linear multiplies another (GLU, arXiv 2002.05202). ``qk_norm`` normalises each head of queries and keys before
    they turn; ``scale`` multiplies q·k, and is 1/√head_dim if None; ``softcap`` c then makes c·tanh(s/c) of a score s,
    unless it is 0. ``norm_offset`` is added to the weight of every norm (Gemma's 1). ``kept`` says that keys and values
    outlive a run. The ``…_bias`` say which biases exist.

    Raises:
        CheckpointError: the heads do not divide the width, the key-value heads the heads, or more channels turn than
            a head has.
    """

    hidden: int
    heads: int
    ffn: int
    activation: str
    eps: float
    kv_heads: int | None = None
    head_dim: int | None = None
    norm: Literal["pre", "post", "sandwich"] = "post"
    norm_kind: Literal["layer", "rms"] = "layer"
    attention_norm: bool = True
    causal: bool = False
    window: int | None = None
    rope: Rope | None = None
    globals: int = 0
    more_globals: str | None = None
    summaries: int = 0
    blocks: BlockSparse | None = None
    gated: bool = False
    qk_norm: bool = False
    scale: float | None = None
    softcap: float = 0.0
    norm_offset: float = 0.0
    kept: bool = False
    qkv_bias: bool = True
    out_bias: bool = True
    ffn_bias: bool = True
    norm_bias: bool = True

    def __post_init__(self) -> None:
        if self.head_dim is None and self.hidden % self.heads:
            raise CheckpointError(
                f"hidden size {self.hidden} is not a multiple of {self.heads} heads; check config.json"
            )
        if self.heads % self.key_heads:
            raise CheckpointError(
                f"{self.heads} heads cannot share {self.key_heads} key-value heads evenly; check config.json"
            )
        if self.rope and 2 * len(self.rope.frequencies) > self.head_width:
            raise CheckpointError(
                f"{2 * len(self.rope.frequencies)} channels of a head of {self.head_width} cannot turn; check "
                "config.json"
            )

    @property
    def head_width(self) -> int:
        return self.hidden // self.heads if self.head_dim is None else self.head_dim

    @property
    def key_heads(self) -> int:
        return self.heads if self.kv_heads is None else self.kv_heads


@dataclass(frozen=True)
class LayerNames:
    """Where a checkpoint keeps the parameters of one layer, without ``.weight`` and ``.bias``.

    ``qkv`` lists query, key and value, or the one matrix that holds them below each other, and ``global_qkv`` those of
    global tokens. ``ffn_gate`` is the linear
    of a gated layer whose result is activated; where it is None, the upper half of ``ffn_up`` is. ``qk_norms`` are the
    norms of queries and keys, ``after`` those behind attention and FFN of a sandwich, ``summary_norm`` that of the sums
    of blocks.
    """

    qkv: tuple[str, ...]
    attention_out: str
    attention_norm: str
    ffn_up: str
    ffn_down: str
    ffn_norm: str
    ffn_gate: str | None = None
    qk_norms: tuple[str, str] = ("", "")
    after: tuple[str, str] = ("", "")
    global_qkv: tuple[str, ...] = ()
    summary_norm: str = ""


@dataclass(frozen=True)
class Layer:
    """The parameters of one layer, which a graph may run several times; ``name`` is their prefix in the graph."""

    name: str
    spec: LayerSpec
    qkv: Pair
    attention_out: Pair
    attention_norm: Pair | None
    ffn_up: Pair
    ffn_down: Pair
    ffn_norm: Pair
    ffn_gate: Pair | None = None
    qk_norms: tuple[Array, ...] = ()
    after: tuple[Pair, ...] = ()
    global_qkv: Pair | None = None
    summary_norm: Array | None = None

    @classmethod
    def read(cls, name: str, spec: LayerSpec, tensors: Tensors, prefix: str, names: LayerNames) -> Layer:
        """The parameters under ``prefix``. Raises CheckpointError when one is missing or has another shape."""

        def pair(part: str, n: int, k: int, bias: bool) -> Pair:
            return linear(tensors, prefix + part, n, k, bias=bias)

        def norm_pair(part: str) -> Pair:
            return norm(tensors, prefix + part, spec.hidden, bias=spec.norm_bias, offset=spec.norm_offset)

        inner, outer = spec.heads * spec.head_width, spec.key_heads * spec.head_width

        def projections(where: tuple[str, ...]) -> Pair:
            heights = (inner, outer, outer) if len(where) == 3 else (inner + 2 * outer,)
            parts = [pair(part, n, spec.hidden, spec.qkv_bias) for part, n in zip(where, heights, strict=True)]
            biases = [bias for _, bias in parts if bias is not None]
            return concatenate([weight for weight, _ in parts]), np.concatenate(biases) if biases else None

        qkv, gate = projections(names.qkv), None
        if spec.gated and names.ffn_gate is None:
            gate, up = _halves(pair(names.ffn_up, 2 * spec.ffn, spec.hidden, spec.ffn_bias))
        else:
            up = pair(names.ffn_up, spec.ffn, spec.hidden, spec.ffn_bias)
        if spec.gated and names.ffn_gate is not None:
            gate = pair(names.ffn_gate, spec.ffn, spec.hidden, spec.ffn_bias)
        return cls(
            name,
            spec,
            qkv,
            pair(names.attention_out, spec.hidden, inner, spec.out_bias),
            norm_pair(names.attention_norm) if spec.attention_norm else None,
            up,
            pair(names.ffn_down, spec.hidden, spec.ffn, spec.ffn_bias),
            norm_pair(names.ffn_norm),
            gate,
            tuple(
                norm(tensors, prefix + part, spec.head_width, bias=False, offset=spec.norm_offset)[0]
                for part in names.qk_norms
            )
            if spec.qk_norm
            else (),
            tuple(norm_pair(part) for part in names.after) if spec.norm == "sandwich" else (),
            projections(names.global_qkv) if spec.globals or spec.more_globals else None,
            norm_pair(names.summary_norm)[0] if spec.summaries else None,
        )

    def append_to(
        self,
        b: GraphBuilder,
        x: str,
        bias: tuple[str, Array] | None = None,
        attend: Callable[[str], str] | None = None,
        summary_bias: tuple[str, Array] | None = None,
    ) -> str:
        """Appends the operators; returns the value after the layer.

        ``bias`` is a name and a table [heads, 2·max_length−1] that attention adds by relative position, and
        ``summary_bias`` that of the sums of blocks. ``attend`` mixes queries, keys and values, side by side, where that
        is not the attention of a sequence to itself.
        """
        spec, pre = self.spec, self.spec.norm != "post"
        h = self._norm(b, x, "attention_norm", self.attention_norm) if pre else x
        if self.summary_norm is not None:
            mixed = self._attend_with_summaries(b, h, self.summary_norm, bias, summary_bias)
        else:
            qkv = b.linear(h, *self.qkv, name=f"{self.name}.qkv")
            mixed = attend(qkv) if attend else self._attend(b, h, qkv, bias)
        x = self._sublayer(b, mixed, self.attention_out, "attention_out", x, 0)
        x = x if pre else self._norm(b, x, "attention_norm", self.attention_norm)
        h = self._norm(b, x, "ffn_norm", self.ffn_norm) if pre else x
        up = f"{self.name}.ffn_up"
        if self.ffn_gate is None:
            wide = b.linear(h, *self.ffn_up, name=up, activation=spec.activation)
        else:
            wide = b.linear(h, *self.ffn_up, name=up)
            gate = f"{self.name}.ffn_gate"
            wide = b.linear(h, *self.ffn_gate, name=gate, activation=spec.activation, multiply=wide)
        x = self._sublayer(b, wide, self.ffn_down, "ffn_down", x, 1)
        return x if pre else self._norm(b, x, "ffn_norm", self.ffn_norm)

    def _attend(self, b: GraphBuilder, h: str, qkv: str, bias: tuple[str, Array] | None) -> str:
        spec = self.spec
        own = None if self.global_qkv is None else b.linear(h, *self.global_qkv, name=f"{self.name}.global_qkv")
        return b.attention(
            qkv,
            global_qkv=own,
            globals=spec.globals,
            more_globals=spec.more_globals,
            heads=spec.heads,
            head_dim=spec.head_width,
            kv_heads=spec.key_heads,
            scale=spec.scale,
            causal=spec.causal,
            left=-1 if spec.window is None else spec.window,
            right=-1 if spec.window is None else spec.window,
            rope=None if spec.rope is None else (spec.rope.name, spec.rope.array, spec.rope.factor),
            norms=self._head_norms(),
            eps=spec.eps,
            kept=spec.kept,
            bias=bias,
            softcap=spec.softcap,
            blocks=spec.blocks,
        )

    def _attend_with_summaries(
        self,
        b: GraphBuilder,
        h: str,
        weight: Array,
        bias: tuple[str, Array] | None,
        summary_bias: tuple[str, Array] | None,
    ) -> str:
        """Keys and values of the sums come from the same linear as those of the tokens."""
        spec, (qkv, qkv_bias) = self.spec, self.qkv
        inner, outer = spec.heads * spec.head_width, spec.key_heads * spec.head_width
        keys = b.domain("keys", "ragged", TOKENS, summarized=spec.summaries)
        rows = b.summarize(h, weight, keys, name=f"{self.name}.summary_norm", eps=spec.eps)
        first, second = (None, None) if qkv_bias is None else (qkv_bias[:inner], qkv_bias[inner:])
        kv = b.linear(rows, row_slice(qkv, inner, inner + 2 * outer), second, name=f"{self.name}.kv")
        k, v = b.columns(kv, 0, outer), b.columns(kv, outer, outer)
        state = b.store(k, v, heads=spec.key_heads, head_dim=spec.head_width, domain=keys)
        return b.attend(
            b.linear(h, row_slice(qkv, 0, inner), first, name=f"{self.name}.q"),
            state,
            scale=spec.head_width**-0.5 if spec.scale is None else spec.scale,
            left=-1 if spec.window is None else spec.window,
            right=-1 if spec.window is None else spec.window,
            bias=bias,
            summary_bias=summary_bias,
        )

    def _sublayer(self, b: GraphBuilder, h: str, pair: Pair, role: str, x: str, which: int) -> str:
        """The last linear of a sublayer, and its sum with ``x``."""
        if not self.after:
            return b.linear(h, *pair, name=f"{self.name}.{role}", residual=x)
        h = b.linear(h, *pair, name=f"{self.name}.{role}")
        name, spec = f"{self.name}.{role}_norm", self.spec
        return b.norm(h, *self.after[which], name=name, eps=spec.eps, kind=spec.norm_kind, residual=x)

    def _head_norms(self) -> tuple[tuple[str, Array], tuple[str, Array]] | None:
        if not self.qk_norms:
            return None
        query, key = self.qk_norms
        return (f"{self.name}.q_norm", query), (f"{self.name}.k_norm", key)

    def _norm(self, b: GraphBuilder, x: str, role: str, pair: Pair | None) -> str:
        if pair is None:
            return x
        return b.norm(x, *pair, name=f"{self.name}.{role}", eps=self.spec.eps, kind=self.spec.norm_kind)


def _halves(pair: Pair) -> tuple[Pair, Pair]:
    """The upper and the lower half of the outputs."""
    weight, bias = pair
    middle = len(weight) // 2
    first, second = (None, None) if bias is None else (bias[:middle], bias[middle:])
    return (row_slice(weight, 0, middle), first), (row_slice(weight, middle, len(weight)), second)


def linear(tensors: Tensors, name: str, n: int, k: int, *, bias: bool = True) -> Pair:
    """Weight ``[n, k]`` and bias ``[n]``."""
    return tensors.weight(f"{name}.weight", n, k), tensors.vector(f"{name}.bias", n) if bias else None


def norm(tensors: Tensors, name: str, width: int, *, bias: bool = True, offset: float = 0.0) -> Pair:
    """Weight, with ``offset`` added, and bias ``[width]``; converted from TensorFlow they are called gamma and beta."""
    weight, shift = ("gamma", "beta") if f"{name}.gamma" in tensors else ("weight", "bias")
    scale = tensors.vector(f"{name}.{weight}", width)
    return scale + np.float32(offset) if offset else scale, tensors.vector(f"{name}.{shift}", width) if bias else None
