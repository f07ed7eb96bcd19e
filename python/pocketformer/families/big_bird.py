"""BigBird: BERT over blocks of keys, with an FFN before its answers (Zaheer et al., arXiv 2007.14062).

Up to (5 + 2 · num_random_blocks) · block_size tokens transformers computes full attention, whatever `attention_type`
says. Of longer texts a query sees its own block, its two neighbours, the first and the last block, and what training
drew at random is in evaluation the first block again, once for each of `num_random_blocks` (with none it fails).
"""

from __future__ import annotations

from dataclasses import replace

from ..graph import BlockSparse, GraphBuilder
from ..sources.source import Config, Tensors
from . import bert, heads
from .encoder import EncoderSpec, encoder
from .family import ClassifyHead, Family
from .transformer import linear, norm


def spec(config: Config) -> EncoderSpec:
    config = replace(config, values={"hidden_act": "gelu_new", **config.values})
    base = bert.spec(config)
    config.refuse("rescale_embeddings", config.flag("rescale_embeddings"), "scaled embeddings are not supported")
    kind = config.text("attention_type", "block_sparse")
    config.refuse(
        "attention_type", kind not in ("original_full", "block_sparse"), "supported: 'original_full' and 'block_sparse'"
    )
    blocks = None
    if kind == "block_sparse":
        size, drawn = config.integer("block_size", 64), config.integer("num_random_blocks", 3)
        blocks = BlockSparse(size, repeats=drawn, dense=(5 + 2 * drawn) * size)
    return replace(base, layer=replace(base.layer, qkv_bias=config.flag("use_bias", True), blocks=blocks))


def encode(b: GraphBuilder, spec: EncoderSpec, tensors: Tensors, prefix: str) -> str:
    return encoder(b, spec, tensors, prefix, bert.NAMES)


def _classify(b: GraphBuilder, x: str, family: Family, spec: EncoderSpec, tensors: Tensors) -> str:
    activated = replace(family, classify=ClassifyHead("classifier.dense", "classifier.out_proj", spec.layer.activation))
    return heads.classify(b, x, activated, spec, tensors)


def _answer(b: GraphBuilder, x: str, family: Family, spec: EncoderSpec, tensors: Tensors) -> str:
    """Tokens of the question are no answers: who reads the logits leaves them out."""
    ffn, where = spec.layer.ffn, "qa_classifier"
    up = linear(tensors, f"{where}.intermediate.dense", ffn, spec.hidden)
    down = linear(tensors, f"{where}.output.dense", spec.hidden, ffn)
    h = b.linear(x, *up, name="answer.ffn_up", activation=spec.layer.activation)
    h = b.linear(h, *down, name="answer.ffn_down", residual=x)
    h = b.norm(h, *norm(tensors, f"{where}.output.LayerNorm", spec.hidden), name="answer.norm", eps=spec.layer.eps)
    return heads.span_output(b, h, f"{where}.qa_outputs", spec, tensors)


BIG_BIRD = Family(
    name="big_bird",
    classes="BigBird",
    base="bert",
    spec=spec,
    encode=encode,
    mask=bert.BERT.mask,
    heads={"classify": _classify, "answer": _answer},
)
