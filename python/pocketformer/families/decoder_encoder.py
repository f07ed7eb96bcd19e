"""Decoders that embed or classify texts: Qwen3-Embedding, EmbeddingGemma, E5-Mistral and their like.

A causal model's last token has seen the whole text, so that it is what embedders pool and classifiers read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from ..graph import GraphBuilder
from ..sources.source import Config, Tensors
from . import decoder, heads
from .decoder import DecoderFamily, DecoderSpec
from .encoder import EncoderSpec
from .family import Family
from .transformer import linear


@dataclass(frozen=True)
class _Spec(EncoderSpec):
    decoder: DecoderSpec | None = None


def as_encoder(family: DecoderFamily) -> Family:
    """``family`` without the head that predicts tokens."""
    return Family(
        name=family.name,
        classes=family.classes,
        base=family.base,
        spec=partial(_spec, family),
        encode=partial(_encode, family),
        heads={"classify": _classify, "tag": _tag},
        table=family.words,
    )


def _spec(family: DecoderFamily, config: Config) -> _Spec:
    own = family.spec(config)
    first = own.layers[0]
    return _Spec(own.vocab, 0, own.positions, first, len(own.layers), first.hidden, tied=own.tied, decoder=own)


def _encode(family: DecoderFamily, b: GraphBuilder, spec: EncoderSpec, tensors: Tensors, prefix: str) -> str:
    assert isinstance(spec, _Spec)
    assert spec.decoder is not None
    x = decoder.layers(b, family, spec.decoder, tensors)
    return decoder.final_norm(b, x, family, spec.decoder, tensors)


def _classify(b: GraphBuilder, x: str, family: Family, spec: EncoderSpec, tensors: Tensors) -> str:
    """Logits ``[sequences, labels]`` from the last token."""
    labels = tensors.shape("score.weight")[0]
    return b.linear(b.pool(x, "last"), *linear(tensors, "score", labels, spec.hidden, bias=False), name="classifier")


def _tag(b: GraphBuilder, x: str, family: Family, spec: EncoderSpec, tensors: Tensors) -> str:
    """Logits ``[tokens, labels]``."""
    return heads.output(b, x, "score" if "score.weight" in tensors else "classifier", spec, tensors)
