"""The post-norm encoder that BERT introduced; families differ in names, positions and heads.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers" (arXiv 1810.04805).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import CheckpointError
from ..graph import Array, GraphBuilder, Table
from ..sources.weights import Weights


@dataclass(frozen=True)
class EncoderSpec:
    """Sizes and options of an encoder; ``embedding`` is the tables' width, ``types`` is 0 without such a table."""

    vocab: int
    types: int
    positions: int
    hidden: int
    heads: int
    layers: int
    ffn: int
    activation: str
    eps: float
    embedding: int
    position_offset: int = 0

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise CheckpointError(
                f"hidden size {self.hidden} is not a multiple of {self.heads} heads; check config.json"
            )
        if self.max_length < 1:
            raise CheckpointError(
                f"a position table of {self.positions} rows leaves no position after the {self.position_offset} "
                "reserved ones; check max_position_embeddings in config.json"
            )

    @property
    def max_length(self) -> int:
        return self.positions - self.position_offset


@dataclass(frozen=True)
class LayerNames:
    """Where a checkpoint keeps the parameters of one layer."""

    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    attention_out: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    ffn_up: str = "intermediate.dense"
    ffn_down: str = "output.dense"
    ffn_norm: str = "output.LayerNorm"


def embeddings(b: GraphBuilder, spec: EncoderSpec, weights: Weights) -> str:
    """Sum of the word, position and type tables, normalised."""
    scope = weights.under("embeddings.")
    tables = [
        Table("embed.words", scope.tensor("word_embeddings.weight", spec.vocab, spec.embedding), "ids"),
        Table(
            "embed.positions",
            scope.tensor("position_embeddings.weight", spec.positions, spec.embedding),
            "positions",
            spec.position_offset,
        ),
    ]
    if spec.types:
        tables.append(
            Table("embed.types", scope.tensor("token_type_embeddings.weight", spec.types, spec.embedding), "types")
        )
    return b.norm(b.embed(tables), *scope.norm("LayerNorm", spec.embedding), name="embed.norm", eps=spec.eps)


@dataclass(frozen=True)
class Layer:
    """The parameters of one layer, which a graph may run several times; ``name`` is their prefix in the graph."""

    name: str
    qkv: tuple[Array, Array]
    attention_out: tuple[Array, Array]
    attention_norm: tuple[Array, Array]
    ffn_up: tuple[Array, Array]
    ffn_down: tuple[Array, Array]
    ffn_norm: tuple[Array, Array]

    @classmethod
    def read(cls, name: str, spec: EncoderSpec, weights: Weights, names: LayerNames) -> Layer:
        qkv = [weights.linear(part, spec.hidden, spec.hidden) for part in (names.query, names.key, names.value)]
        return cls(
            name,
            (np.concatenate([w for w, _ in qkv]), np.concatenate([bias for _, bias in qkv])),
            weights.linear(names.attention_out, spec.hidden, spec.hidden),
            weights.norm(names.attention_norm, spec.hidden),
            weights.linear(names.ffn_up, spec.ffn, spec.hidden),
            weights.linear(names.ffn_down, spec.hidden, spec.ffn),
            weights.norm(names.ffn_norm, spec.hidden),
        )

    def apply(self, b: GraphBuilder, x: str, spec: EncoderSpec, bias: tuple[str, Array] | None = None) -> str:
        """``x = norm(x + attention(x)); x = norm(x + ffn(x))``."""
        qkv = b.linear(x, *self.qkv, name=f"{self.name}.qkv")
        mixed = b.attention(qkv, heads=spec.heads, head_dim=spec.hidden // spec.heads, bias=bias)
        x = b.linear(mixed, *self.attention_out, name=f"{self.name}.attention_out", residual=x)
        x = b.norm(x, *self.attention_norm, name=f"{self.name}.attention_norm", eps=spec.eps)
        wide = b.linear(x, *self.ffn_up, name=f"{self.name}.ffn_up", activation=spec.activation)
        x = b.linear(wide, *self.ffn_down, name=f"{self.name}.ffn_down", residual=x)
        return b.norm(x, *self.ffn_norm, name=f"{self.name}.ffn_norm", eps=spec.eps)


def encoder(
    b: GraphBuilder,
    spec: EncoderSpec,
    weights: Weights,
    *,
    layers: str = "encoder.layer.",
    names: LayerNames = LayerNames(),  # noqa: B008
    bias: tuple[str, Array] | None = None,
) -> str:
    """Embeddings and ``spec.layers`` layers of their own weights, found under ``layers`` + index."""
    x = embeddings(b, spec, weights)
    for i in range(spec.layers):
        layer = Layer.read(f"layers.{i}", spec, weights.under(f"{layers}{i}."), names)
        x = layer.apply(b, x, spec, bias)
    return x
