"""LongT5's encoder: T5's over windows of keys (Guo et al., arXiv 2112.07916)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ..sources.source import Config
from . import t5
from .encoder import EncoderSpec
from .family import Family

_ATTENTION = "LocalSelfAttention"
_RADIUS, _POSITIONS = 127, 4096


def spec(config: Config) -> EncoderSpec:
    kind = config.text("encoder_attention_type", "local")
    problem = "supported: local; with transient-global every block of a text is a key too, as the sum of its rows"
    config.refuse("encoder_attention_type", kind != "local", problem)
    known = t5.spec(config)
    radius = config.integer("local_radius", _RADIUS)  # on each side, inclusive
    layer = replace(known.layer, window=radius)
    return replace(known, layer=layer, positions=config.integer("n_positions", _POSITIONS))


LONGT5 = Family(
    name="longt5",
    classes="LongT5Encoder",
    base="transformer",
    spec=spec,
    encode=partial(t5.encode, attention=_ATTENTION),
    table=t5.bias_table(_ATTENTION),
)
