"""What follows an encoder: the operators of each task."""

from __future__ import annotations

from typing import TypeVar

from ..errors import CheckpointError, UnsupportedModelError
from ..graph import GraphBuilder
from ..lazy import same_values
from ..sources.source import Tensors
from .encoder import EncoderSpec
from .family import Family, Head
from .transformer import linear, norm


def classify(b: GraphBuilder, x: str, family: Family, spec: EncoderSpec, tensors: Tensors) -> str:
    """Logits ``[sequences, labels]`` from the first token."""
    head = _known(family, family.classify, "classification")
    pooled = b.linear(
        b.pool(x, "cls"),
        *linear(tensors, head.dense, spec.hidden, spec.hidden),
        name="pooler",
        activation=head.activation,
    )
    return output(b, pooled, head.out, spec, tensors)


def tag(b: GraphBuilder, x: str, family: Family, spec: EncoderSpec, tensors: Tensors) -> str:
    """Logits ``[tokens, labels]``."""
    return output(b, x, "classifier", spec, tensors)


def answer(b: GraphBuilder, x: str, family: Family, spec: EncoderSpec, tensors: Tensors) -> str:
    """Logits ``[tokens, 2]`` of being the first and the last token of the answer."""
    return span_output(b, x, "qa_outputs", spec, tensors)


def fill_mask(b: GraphBuilder, x: str, family: Family, spec: EncoderSpec, tensors: Tensors) -> str:
    """Logits ``[rows, vocab]`` of the token rows that the caller asks for."""
    return _vocabulary(b, b.select(x), family, spec, tensors)


def embed_sparse(b: GraphBuilder, x: str, family: Family, spec: EncoderSpec, tensors: Tensors) -> str:
    """The largest logit ``[sequences, vocab]`` that any token gives each entry of the vocabulary."""
    return b.pool(_vocabulary(b, x, family, spec, tensors), "max")


def _vocabulary(b: GraphBuilder, x: str, family: Family, spec: EncoderSpec, tensors: Tensors) -> str:
    """Logits over the vocabulary for each row.

    The decoder is stored once, under the name of the word table, unless the checkpoint holds another matrix.
    """
    head = _known(family, family.mask, "masked words")
    x = b.linear(
        x,
        *linear(tensors, head.dense, spec.embedding, spec.hidden),
        name="mask.dense",
        activation=head.activation or spec.layer.activation,
    )
    x = b.norm(x, *norm(tensors, head.norm, spec.embedding), name="mask.norm", eps=spec.layer.eps)
    own_bias = f"{head.decoder}.bias"
    bias = own_bias if own_bias in tensors else head.bias
    return decode(b, x, head.decoder, bias, spec, tensors)


def decode(b: GraphBuilder, x: str, name: str, bias: str | None, spec: EncoderSpec, tensors: Tensors) -> str:
    """Logits over the vocabulary by the matrix ``name`` of the checkpoint, or by the word table where it has none."""
    found, decoder = "embed.words", b.params["embed.words.weight"]
    if f"{name}.weight" in tensors:
        own = tensors.weight(f"{name}.weight", spec.vocab, spec.embedding)
        if not same_values(own, decoder):
            found, decoder = "mask.decoder", own
    elif not spec.tied:
        raise CheckpointError(
            f"tensor '{name}.weight' is missing, and config.json says 'tie_word_embeddings': false, so that "
            "the word table does not stand for it; save the complete model with save_pretrained"
        )
    return b.linear(x, decoder, None if bias is None else tensors.vector(bias, spec.vocab), name=found)


def span_output(b: GraphBuilder, x: str, name: str, spec: EncoderSpec, tensors: Tensors) -> str:
    """Logits of start and end by the linear ``name`` of the checkpoint."""
    outputs = tensors.shape(f"{name}.weight")[0]
    if outputs != 2:
        raise CheckpointError(f"{name}.weight has {outputs} rows, not 2 (start, end); this is no span-answering head")
    return output(b, x, name, spec, tensors)


def output(b: GraphBuilder, x: str, name: str, spec: EncoderSpec, tensors: Tensors) -> str:
    """The linear ``name`` of the checkpoint: as many outputs as it has rows."""
    outputs = tensors.shape(f"{name}.weight")[0]
    return b.linear(x, *linear(tensors, name, outputs, spec.hidden), name="classifier")


H = TypeVar("H")


def _known(family: Family, head: H | None, name: str) -> H:
    if head is None:
        raise UnsupportedModelError(f"models of type {family.name!r} are not supported with a head for {name}")
    return head


HEADS: dict[str, Head] = {
    "classify": classify,
    "tag": tag,
    "answer": answer,
    "fill_mask": fill_mask,
    "embed_sparse": embed_sparse,
}
