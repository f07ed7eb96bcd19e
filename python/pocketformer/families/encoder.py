"""Text encoders with learned absolute positions: tables, then layers; families differ in sizes, names and heads.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers" (arXiv 1810.04805).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar

from ..errors import CheckpointError
from ..graph import Array, GraphBuilder, Table
from ..sources.source import Tensors
from .transformer import Layer, LayerNames, LayerSpec, norm

WORD_TABLE = "embeddings.word_embeddings.weight"
"""The word table of every family here, below the family's ``base``."""

Spec = TypeVar("Spec", bound="EncoderSpec")


@dataclass(frozen=True)
class EncoderSpec:
    """Tables and layers; ``embedding`` is the tables' width and ``types`` is 0 without such a table.

    Positions count from ``position_offset``; ``tied`` says that the word table decodes masked tokens. Raises
    CheckpointError when no position is left.
    """

    vocab: int
    types: int
    positions: int
    layer: LayerSpec
    layers: int
    embedding: int
    position_offset: int = 0
    tied: bool = True

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise CheckpointError(
                f"a position table of {self.positions} rows leaves no position after the {self.position_offset} "
                "reserved ones; check max_position_embeddings in config.json"
            )

    @classmethod
    def extending(cls: type[Spec], base: EncoderSpec, **more: Any) -> Spec:
        """``base`` with the fields ``more``, those that a family adds among them."""
        return cls(**{**{field.name: getattr(base, field.name) for field in fields(base)}, **more})

    @property
    def max_length(self) -> int:
        longest = self.layer.rope.longest if self.layer.rope is not None else None
        length = self.positions - self.position_offset
        return length if longest is None else min(length, longest)

    @property
    def hidden(self) -> int:
        return self.layer.hidden


def embeddings(b: GraphBuilder, spec: EncoderSpec, tensors: Tensors, prefix: str) -> str:
    """Sum of the word, position and type tables under ``prefix``, normalised."""

    def table(name: str, part: str, rows: int, index: str, offset: int = 0) -> Table:
        return Table(name, tensors.weight(f"{prefix}embeddings.{part}.weight", rows, spec.embedding), index, offset)

    tables = [
        table("embed.words", "word_embeddings", spec.vocab, "ids"),
        table("embed.positions", "position_embeddings", spec.positions, "positions", spec.position_offset),
    ]
    if spec.types:
        tables.append(table("embed.types", "token_type_embeddings", spec.types, "types"))
    weight, bias = norm(tensors, f"{prefix}embeddings.LayerNorm", spec.embedding)
    return b.norm(b.embed(tables), weight, bias, name="embed.norm", eps=spec.layer.eps)


def encoder(
    b: GraphBuilder,
    spec: EncoderSpec,
    tensors: Tensors,
    prefix: str,
    names: LayerNames,
    *,
    layers: str = "encoder.layer.",
    bias: tuple[str, Array] | None = None,
) -> str:
    """Embeddings and layers with weights of their own, found under ``prefix`` + ``layers`` + index."""
    x = embeddings(b, spec, tensors, prefix)
    for i in range(spec.layers):
        x = Layer.read(f"layers.{i}", spec.layer, tensors, f"{prefix}{layers}{i}.", names).append_to(b, x, bias)
    return x
