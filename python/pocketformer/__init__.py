"""Compressed transformers on CPU-only boards: one small file, the same bits on every CPU.

Example:
    >>> import pocketformer
    >>> pocketformer.compress("all-MiniLM-L6-v2", "minilm.pocket")  # doctest: +SKIP
    >>> model = pocketformer.load("minilm.pocket")  # doctest: +SKIP
    >>> model.encode(["A cat sits on the mat.", "Es regnet."]).shape  # doctest: +SKIP
    (2, 384)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import kernels
    from .compression import compress
    from .errors import CheckpointError, PocketFileError, TaskError, UnsupportedModelError
    from .model import Model, load
    from .tasks.answer import Reader
    from .tasks.classify import Classifier
    from .tasks.embed import Embedder
    from .tasks.embed_sparse import SparseEmbedder
    from .tasks.embed_tokens import MultiVectorEmbedder
    from .tasks.features import Features
    from .tasks.fill_mask import MaskFiller
    from .tasks.generate import Generator
    from .tasks.images import ImageClassifier, ImageEmbedder
    from .tasks.rank import Ranker
    from .tasks.tag import Tagger
    from .tasks.zero_shot_images import ZeroShotImageClassifier

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "Classifier",
    "Embedder",
    "Features",
    "Generator",
    "ImageClassifier",
    "ImageEmbedder",
    "MaskFiller",
    "Model",
    "MultiVectorEmbedder",
    "PocketFileError",
    "Ranker",
    "Reader",
    "SparseEmbedder",
    "Tagger",
    "TaskError",
    "UnsupportedModelError",
    "ZeroShotImageClassifier",
    "__version__",
    "compress",
    "kernels",
    "load",
]

# Imported on first use (PEP 562): importing the package costs nothing, and running never imports compression.
_HOMES = {
    "CheckpointError": "errors",
    "Classifier": "tasks.classify",
    "Embedder": "tasks.embed",
    "Features": "tasks.features",
    "Generator": "tasks.generate",
    "ImageClassifier": "tasks.images",
    "ImageEmbedder": "tasks.images",
    "MaskFiller": "tasks.fill_mask",
    "Model": "model",
    "MultiVectorEmbedder": "tasks.embed_tokens",
    "PocketFileError": "errors",
    "Ranker": "tasks.rank",
    "Reader": "tasks.answer",
    "SparseEmbedder": "tasks.embed_sparse",
    "Tagger": "tasks.tag",
    "TaskError": "errors",
    "UnsupportedModelError": "errors",
    "ZeroShotImageClassifier": "tasks.zero_shot_images",
    "compress": "compression",
    "load": "model",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "kernels":
        return import_module(".kernels", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
