"""One module for each task: its typed model, which turns texts into results, and the types of those."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..engine import Engine

# Task: module, class and the methods on texts. Imported when a file of the task is loaded.
MODELS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "embed": ("embed", "Embedder", ("encode", "encode_query", "encode_document", "similarity")),
    "embed_sparse": (
        "embed_sparse",
        "SparseEmbedder",
        ("encode", "encode_query", "encode_document", "similarity", "decode"),
    ),
    "embed_tokens": (
        "embed_tokens",
        "MultiVectorEmbedder",
        ("encode", "encode_query", "encode_document", "similarity", "rank"),
    ),
    "classify": ("classify", "Classifier", ("classify",)),
    "rank": ("rank", "Ranker", ("rank",)),
    "tag": ("tag", "Tagger", ("tag",)),
    "answer": ("answer", "Reader", ("answer",)),
    "fill_mask": ("fill_mask", "MaskFiller", ("fill_mask", "mask_token")),
    "classify_image": ("images", "ImageClassifier", ("classify",)),
    "embed_image": ("images", "ImageEmbedder", ("encode", "encode_batches")),
    "generate": ("generate", "Generator", ("generate", "chat", "chat_ids", "tokenize", "logits", "perplexity")),
    "features": ("features", "Features", ()),
}


def model_class(engine: Engine) -> type[Any]:
    """The subclass of ``Model`` for an open file: a classifier with a single label is a ranker too."""
    task = engine.file.model["task"]
    module, name, _ = MODELS["rank" if task == "classify" and engine.width == 1 else task]
    found: type[Any] = getattr(import_module(f".{module}", __name__), name)
    return found
