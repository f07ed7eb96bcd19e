"""What a family tells the importer: how to read its config, build its encoder and find its heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..graph import GraphBuilder
from ..sources.config import Config
from ..sources.weights import Weights
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

    ``base`` prefixes the encoder's tensors in checkpoints with a head and ``pad_token_id`` is the default of its
    config. ``encode(builder, config, spec, weights)`` appends the encoder and returns its last hidden state.
    """

    name: str
    base: str
    pad_token_id: int
    spec: Callable[[Config], EncoderSpec]
    encode: Callable[[GraphBuilder, Config, EncoderSpec, Weights], str]
    classify: ClassifyHead
    mask: MaskHead
