"""MPNet: BERT's encoder with T5's relative position bias shared by all layers (arXiv 2004.09297)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..graph import GraphBuilder
from ..sources.source import Config, Tensors
from . import bert
from .encoder import EncoderSpec, encoder
from .family import ClassifyHead, Family, MaskHead

_PADDING = 1  # fixed by the architecture, whatever the config's pad_token_id
_BUCKETS = 32
_MAX_DISTANCE = 128
_NAMES = replace(
    bert.NAMES,
    qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
    attention_out="attention.attn.o",
    attention_norm="attention.LayerNorm",
)


def spec(config: Config) -> EncoderSpec:
    buckets = config.integer("relative_attention_num_buckets", _BUCKETS)
    config.refuse("relative_attention_num_buckets", buckets != _BUCKETS, f"the architecture fixes {_BUCKETS}")
    return replace(bert.spec(config), types=0, position_offset=_PADDING + 1)


def relative_bucket(distance: NDArray[np.int64]) -> NDArray[np.int64]:
    """T5's bucket of ``distance`` = query position − key position, in 0 … 31.

    Half of the buckets serve keys after the query; in each half distances below 8 have their own bucket and longer ones
    share logarithmic buckets up to 128. Computed in float32 like the training code, so that edges fall alike.
    """
    half = _BUCKETS // 2
    exact = half // 2
    size = np.abs(distance)
    octave = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        math.log(_MAX_DISTANCE / exact)
    )
    coarse = exact + (octave * np.float32(half - exact)).astype(np.int64)
    bucket = np.where(size < exact, size, np.minimum(coarse, half - 1))
    return np.where(distance < 0, bucket + half, bucket)


def encode(b: GraphBuilder, spec: EncoderSpec, tensors: Tensors, prefix: str) -> str:
    table = np.asarray(tensors.weight(f"{prefix}encoder.relative_attention_bias.weight", _BUCKETS, spec.layer.heads))
    distance = np.arange(1 - spec.max_length, spec.max_length)
    bias = np.ascontiguousarray(table[relative_bucket(distance)].T)
    return encoder(b, spec, tensors, prefix, _NAMES, bias=("encoder.relative_bias", bias))


MPNET = Family(
    name="mpnet",
    classes="MPNet",
    base="mpnet",
    spec=spec,
    encode=encode,
    classify=ClassifyHead("classifier.dense", "classifier.out_proj"),
    mask=MaskHead("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias", activation="gelu"),
)
