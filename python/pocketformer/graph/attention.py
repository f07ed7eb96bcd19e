"""Operators of attention: what is kept of keys and values, and who sees which of them."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

from .model import SEQUENCES, TOKENS, Array
from .rows import RowOperators


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


class AttentionOperators(RowOperators):
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
        summary_bias: tuple[str, Array] | None = None,
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
        block-sparse. ``summary_bias`` is that of keys that :meth:`summarize` has made, as ``bias`` is of the others.
        """
        options: dict[str, Any] = {"causal": True} if causal else {}
        if softcap:
            options["softcap"] = float(softcap)
        options |= {name: keys for name, keys in (("left", left), ("right", right)) if keys >= 0}
        if bias is not None:
            options["bias"] = self._param(*bias)
        if summary_bias is not None:
            options["summary_bias"] = self._param(*summary_bias)
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
