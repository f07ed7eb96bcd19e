"""Architectures: each file turns a config and its weights into a list of operators.

To add one: write a file with a :class:`~pocketformer.families.family.Family`, list it here under the ``model_type`` of
its ``config.json``, and add it to the parity tests.
"""

from __future__ import annotations

from .albert import ALBERT
from .beit import BEIT
from .bert import BERT
from .big_bird import BIG_BIRD
from .clip import CLIP_TEXT, CLIP_VISION, SIGLIP_TEXT, SIGLIP_VISION, TextTower
from .decoder import DecoderFamily
from .decoder_encoder import as_encoder
from .dinov2 import DINOV2, DINOV2_WITH_REGISTERS
from .distilbert import DISTILBERT
from .efficientformer import EFFICIENTFORMER
from .eurobert import EUROBERT
from .family import Family
from .gemma import GEMMA2, GEMMA3
from .gpt2 import GPT2
from .gte import GTE
from .image import ImageFamily
from .llama import LLAMA, MISTRAL
from .longformer import LONGFORMER
from .longt5 import LONGT5
from .mobilevit import MOBILEVIT
from .mobilevitv2 import MOBILEVITV2
from .modernbert import MODERNBERT
from .mpnet import MPNET
from .nomic import NOMIC_BERT
from .nystromformer import NYSTROMFORMER
from .phi3 import PHI3
from .qwen import QWEN2, QWEN3
from .roberta import CAMEMBERT, ROBERTA, XLM_ROBERTA
from .t5 import T5
from .vit import DEIT, VIT

_BERTS = (BERT, DISTILBERT, ROBERTA, XLM_ROBERTA, CAMEMBERT, MPNET, ALBERT)
_TEXT = (*_BERTS, MODERNBERT, NOMIC_BERT, EUROBERT, GTE, T5, LONGT5, LONGFORMER, BIG_BIRD, NYSTROMFORMER)
_TRANSFORMERS = (VIT, DEIT, BEIT, DINOV2, DINOV2_WITH_REGISTERS, CLIP_VISION, SIGLIP_VISION)
_DECODERS = (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, PHI3, GPT2)
DECODERS: dict[str, DecoderFamily] = {family.name: family for family in _DECODERS}
"""Families that predict the next token, by ``model_type``."""

FAMILIES: dict[str, Family] = {family.name: family for family in (*_TEXT, *map(as_encoder, _DECODERS))}
"""Families over texts, decoders that embed or classify among them, by ``model_type``."""

IMAGE_FAMILIES: dict[str, ImageFamily] = {
    family.name: family for family in (*_TRANSFORMERS, MOBILEVIT, MOBILEVITV2, EFFICIENTFORMER)
}
"""Families over pixels, by ``model_type``."""

TEXT_TOWERS: dict[str, TextTower] = {tower.name: tower for tower in (CLIP_TEXT, SIGLIP_TEXT)}
"""The texts' half of models of images and texts, by ``model_type``."""

TASKS = {
    "Model": "embed",
    "ForSequenceClassification": "classify",
    "ForTokenClassification": "tag",
    "ForQuestionAnswering": "answer",
    "ForMaskedLM": "fill_mask",
    "ForPreTraining": "fill_mask",
}
"""What follows a family's name in an entry of ``architectures``, and the task that its tensors serve."""

CLASSES = {
    family.classes + suffix: task
    for family in FAMILIES.values()
    for suffix, task in TASKS.items()
    if family.name not in DECODERS or task in ("embed", *family.heads)
}
"""The classes of transformers that are understood, and their tasks."""

__all__ = ["CLASSES", "DECODERS", "FAMILIES", "IMAGE_FAMILIES", "TASKS", "TEXT_TOWERS", "Family", "ImageFamily"]
