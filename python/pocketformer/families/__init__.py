"""Architectures: each file turns a config and its weights into a list of operators.

To add one: write a file with a :class:`~pocketformer.families.family.Family`, list it here under the ``model_type`` of
its ``config.json``, and add it to the parity tests.
"""

from __future__ import annotations

from . import vit
from .albert import ALBERT
from .bert import BERT
from .distilbert import DISTILBERT
from .family import Family
from .modernbert import MODERNBERT
from .mpnet import MPNET
from .roberta import CAMEMBERT, ROBERTA, XLM_ROBERTA

FAMILIES: dict[str, Family] = {
    family.name: family for family in (BERT, DISTILBERT, ROBERTA, XLM_ROBERTA, CAMEMBERT, MPNET, ALBERT, MODERNBERT)
}

IMAGE_FAMILIES = {vit.NAME: vit}
"""Families over pixels, by ``model_type``: modules with ``BASE``, ``PATCH_TABLE``, ``CLASSES`` and ``classifier``."""

TASKS = {
    "Model": "embed",
    "ForSequenceClassification": "classify",
    "ForTokenClassification": "tag",
    "ForQuestionAnswering": "answer",
    "ForMaskedLM": "fill_mask",
    "ForPreTraining": "fill_mask",
}
"""What follows a family's name in an entry of ``architectures``, and the task that its tensors serve."""

CLASSES = {family.classes + suffix: task for family in FAMILIES.values() for suffix, task in TASKS.items()}
"""The classes of transformers that are understood, and their tasks."""

__all__ = ["CLASSES", "FAMILIES", "IMAGE_FAMILIES", "TASKS", "Family"]
