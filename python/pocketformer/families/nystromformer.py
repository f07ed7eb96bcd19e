"""Nyströmformer: BERT with attention by way of landmarks, and a convolution of the values beside it (arXiv 2102.03902).

Where `num_landmarks` is `segment_means_seq_len`, transformers computes full attention. Where it is less, it takes texts
of one length alone, which shorter ones are padded to: padding is then part of the landmarks and of the convolution, and
only as a key it is not seen. So it is here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ..attentions import nystrom
from ..graph import TOKENS, Array, GraphBuilder, Table
from ..lazy import row_slice
from ..sources.source import Config, Tensors
from . import bert, heads
from .encoder import EncoderSpec, embeddings
from .family import ClassifyHead, Family
from .transformer import Layer, norm

PADDED = "padded"
"""The domain of texts that are all of one length."""


@dataclass(frozen=True)
class NystromformerSpec(EncoderSpec):
    """``padded`` tokens of every text and ``landmarks`` of them, or 0 of both where attention is full; ``taps`` of the
    convolution; ``padding`` is the token that texts are filled up with."""

    padded: int = 0
    landmarks: int = 0
    taps: int = 0
    padding: int = 0

    @property
    def max_length(self) -> int:
        return min(super().max_length, self.padded) if self.padded else super().max_length


def spec(config: Config) -> NystromformerSpec:
    config = replace(config, values={"hidden_act": "gelu_new", "layer_norm_eps": 1e-5, **config.values})
    base = bert.spec(config)
    exact = config.values.get("inv_coeff_init_option", False)
    config.refuse("inv_coeff_init_option", exact, "transformers itself has no other start of the inverse than of false")
    config.refuse("hidden_size", base.hidden % 16, "it must be a multiple of 16")
    taps = config.integer("conv_kernel_size", 65)
    config.refuse("conv_kernel_size", taps % 2 == 0 or taps > 255, "it must be odd and at most 255")
    landmarks, length = config.integer("num_landmarks", 64), config.integer("segment_means_seq_len", 64)
    config.refuse("num_landmarks", landmarks > length, f"there are no more than 'segment_means_seq_len', {length}")
    config.refuse("num_landmarks", landmarks < length and landmarks > 1024, "at most 1024 are supported")
    padded = length // landmarks * landmarks if landmarks < length else 0
    if padded > base.positions:
        config.refuse("segment_means_seq_len", length, f"texts are padded to it, of {base.positions} positions")
    return NystromformerSpec.extending(
        replace(base, positions=base.positions + 2, position_offset=2),
        padded=padded,
        landmarks=landmarks if padded else 0,
        taps=taps,
        padding=config.integer("pad_token_id", 1, minimum=0),
    )


def encode(b: GraphBuilder, spec: EncoderSpec, tensors: Tensors, prefix: str) -> str:
    assert isinstance(spec, NystromformerSpec)
    x = _padded(b, spec, tensors, prefix) if spec.padded else embeddings(b, spec, tensors, prefix)
    for i in range(spec.layers):
        layer = Layer.read(f"layers.{i}", spec.layer, tensors, f"{prefix}encoder.layer.{i}.", bert.NAMES)
        kernel = _kernel(spec, tensors, f"{prefix}encoder.layer.{i}.attention.self.conv.weight")
        x = layer.append_to(b, x, attend=partial(_attend, b, spec, kernel, f"layers.{i}.convolution"))
    return b.fit(x, TOKENS) if spec.padded else x


def _padded(b: GraphBuilder, spec: NystromformerSpec, tensors: Tensors, prefix: str) -> str:
    """Embeddings of as many rows for every text."""

    def table(name: str, part: str, rows: int, index: str, offset: int = 0) -> Table:
        return Table(name, tensors.weight(f"{prefix}embeddings.{part}.weight", rows, spec.hidden), index, offset)

    words = table("embed.words", "word_embeddings", spec.vocab, "ids")
    tables = [words]
    fill = np.asarray(row_slice(words.weight, spec.padding, spec.padding + 1))[0]
    if spec.types:
        tables.append(table("embed.types", "token_type_embeddings", spec.types, "types"))
        fill = fill + np.asarray(row_slice(tables[1].weight, 0, 1))[0]
    b.domain(PADDED, "grid", TOKENS, height=1, width=spec.padded)
    x = b.fit(b.embed(tables), PADDED, ("embed.padding", fill))
    positions = table("embed.positions", "position_embeddings", spec.positions, "positions", spec.position_offset)
    weight, bias = norm(tensors, f"{prefix}embeddings.LayerNorm", spec.hidden)
    return b.norm(b.embed([positions], add_to=x), weight, bias, name="embed.norm", eps=spec.layer.eps)


def _kernel(spec: NystromformerSpec, tensors: Tensors, name: str) -> Array:
    """[taps, channels] of the one that the file has for each head."""
    kernel = np.asarray(tensors.weight(name, spec.layer.heads, 1, spec.taps, 1)).reshape(spec.layer.heads, spec.taps)
    return np.ascontiguousarray(np.repeat(kernel, spec.layer.head_width, axis=0).T)


def _attend(b: GraphBuilder, spec: NystromformerSpec, kernel: Array, name: str, qkv: str) -> str:
    heads, width = spec.layer.heads, spec.layer.head_width
    if spec.padded:
        q, k, v = (b.columns(qkv, i * spec.hidden, spec.hidden) for i in range(3))
        mixed = nystrom(b, q, k, v, heads=heads, landmarks=spec.landmarks, of=PADDED, seen=TOKENS)
    else:
        mixed = b.attention(qkv, heads=heads, head_dim=width)
        v = b.columns(qkv, 2 * spec.hidden, spec.hidden)
    return b.convolve(v, kernel, name=name, residual=mixed)


def _classify(b: GraphBuilder, x: str, family: Family, spec: EncoderSpec, tensors: Tensors) -> str:
    activated = replace(family, classify=ClassifyHead("classifier.dense", "classifier.out_proj", spec.layer.activation))
    return heads.classify(b, x, activated, spec, tensors)


NYSTROMFORMER = Family(
    name="nystromformer",
    classes="Nystromformer",
    base="nystromformer",
    spec=spec,
    encode=encode,
    mask=bert.BERT.mask,
    heads={"classify": _classify},
)
