"""RoBERTa, XLM-RoBERTa and CamemBERT: BERT's encoder with positions that start after the padding id."""

from __future__ import annotations

from dataclasses import replace

from ..sources.source import Config
from . import bert
from .encoder import EncoderSpec
from .family import ClassifyHead, Family, MaskHead


def spec(config: Config) -> EncoderSpec:
    padding = config.integer("pad_token_id", 1, minimum=0)
    return replace(bert.spec(config), position_offset=padding + 1)


ROBERTA = Family(
    name="roberta",
    classes="Roberta",
    base="roberta",
    spec=spec,
    encode=bert.encode,
    classify=ClassifyHead("classifier.dense", "classifier.out_proj"),
    mask=MaskHead("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias", activation="gelu"),
)
XLM_ROBERTA = replace(ROBERTA, name="xlm-roberta", classes="XLMRoberta")
CAMEMBERT = replace(ROBERTA, name="camembert", classes="Camembert")
