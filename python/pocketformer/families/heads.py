"""What follows an encoder: the operators of each task."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import CheckpointError
from ..graph import GraphBuilder
from ..sources.weights import Weights
from .encoder import EncoderSpec
from .family import Family


def classify(b: GraphBuilder, x: str, family: Family, spec: EncoderSpec, weights: Weights) -> str:
    """Logits ``[sequences, labels]`` from the first token."""
    head = family.classify
    pooled = b.linear(
        b.pool(x, "cls"),
        *weights.linear(head.dense, spec.hidden, spec.hidden),
        name="pooler",
        activation=head.activation,
    )
    return _output(b, pooled, head.out, spec, weights)


def tag(b: GraphBuilder, x: str, family: Family, spec: EncoderSpec, weights: Weights) -> str:
    """Logits ``[tokens, labels]``."""
    return _output(b, x, "classifier", spec, weights)


def answer(b: GraphBuilder, x: str, family: Family, spec: EncoderSpec, weights: Weights) -> str:
    """Logits ``[tokens, 2]`` of being the first and the last token of the answer."""
    outputs = weights.shape("qa_outputs.weight")[0]
    if outputs != 2:
        raise CheckpointError(
            f"qa_outputs.weight has {outputs} rows, not 2 (start, end); this is no span-answering head"
        )
    return _output(b, x, "qa_outputs", spec, weights)


def fill_mask(b: GraphBuilder, x: str, family: Family, spec: EncoderSpec, weights: Weights) -> str:
    """Logits ``[rows, vocab]`` of the token rows that the caller asks for.

    The decoder is stored once, under the name of the word table, unless the checkpoint holds another matrix.
    """
    head = family.mask
    x = b.linear(
        b.select(x),
        *weights.linear(head.dense, spec.embedding, spec.hidden),
        name="mask.dense",
        activation=head.activation or spec.activation,
    )
    x = b.norm(x, *weights.norm(head.norm, spec.embedding), name="mask.norm", eps=spec.eps)
    name, decoder = "embed.words", b.params["embed.words.weight"]
    if f"{head.decoder}.weight" in weights:
        own = weights.tensor(f"{head.decoder}.weight", spec.vocab, spec.embedding)
        if not np.array_equal(own, decoder):
            name, decoder = "mask.decoder", own
    own_bias = f"{head.decoder}.bias"
    bias = own_bias if own_bias in weights else head.bias
    return b.linear(x, decoder, weights.tensor(bias, spec.vocab), name=name)


def _output(b: GraphBuilder, x: str, name: str, spec: EncoderSpec, weights: Weights) -> str:
    outputs = weights.shape(f"{name}.weight")[0]
    return b.linear(x, *weights.linear(name, outputs, spec.hidden), name="classifier")


Head = Callable[[GraphBuilder, str, Family, EncoderSpec, Weights], str]
HEADS: dict[str, Head] = {"classify": classify, "tag": tag, "answer": answer, "fill_mask": fill_mask}
