"""What a family tells the importer: how to read its config, build its encoder and find its heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from ..graph import GraphBuilder
from ..sources.source import Config, Tensors
from .encoder import WORD_TABLE, EncoderSpec


@dataclass(frozen=True)
class ClassifyHead:
    """``out(activation(dense(first token)))``, by tensor names."""

    dense: str
    out: str
    activation: str = "tanh"


@dataclass(frozen=True)
class MaskHead:
    """``decoder(norm(activation(dense(row))))``, by tensor names.

    ``activation`` is that of the encoder if None. Where the file has no decoder of its own, the word table is its
    weight and ``bias`` its bias.
    """

    dense: str
    norm: str
    decoder: str
    bias: str
    activation: str | None = None


@dataclass(frozen=True)
class Family:
    """One architecture.

    ``name`` is the ``model_type`` and ``classes`` what its classes' names begin with. ``base`` prefixes the encoder's
    tensors in checkpoints with a head. ``encode(builder, spec, tensors, prefix)`` appends the encoder whose tensors lie
    under ``prefix`` and returns its last hidden state. ``for_task`` changes a spec as a task asks for. ``heads`` are
    those by task that are not as ``heads.HEADS`` builds them of ``classify`` and ``mask``. ``table`` is a tensor that
    tells where the encoder lies, below ``base``.
    """

    name: str
    classes: str
    base: str
    spec: Callable[[Config], EncoderSpec]
    encode: Callable[[GraphBuilder, EncoderSpec, Tensors, str], str]
    classify: ClassifyHead | None = None
    mask: MaskHead | None = None
    heads: Mapping[str, Head] = field(default_factory=dict)
    table: str = WORD_TABLE
    for_task: Callable[[EncoderSpec, str], EncoderSpec] = lambda spec, task: spec


Head: TypeAlias = Callable[[GraphBuilder, str, Family, EncoderSpec, Tensors], str]
"""Appends the head of a task to the last hidden state and returns its output."""
