"""What a family tells the importer: how to read its config, build its encoder and find its heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..graph import GraphBuilder
from ..sources.source import Config, Tensors
from .encoder import EncoderSpec


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
    under ``prefix`` and returns its last hidden state.
    """

    name: str
    classes: str
    base: str
    spec: Callable[[Config], EncoderSpec]
    encode: Callable[[GraphBuilder, EncoderSpec, Tensors, str], str]
    classify: ClassifyHead
    mask: MaskHead
