"""Labels of images that nobody trained: any words, by a tower of images and one of texts that were taught to agree."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np

from ..engine import Outputs
from ..errors import TaskError
from ..model import Model
from ..pixels import ImageInput
from .classify import Label, ranked, sigmoid, softmax
from .embed import Embedder, normalized
from .images import ImageEmbedder
from .inputs import as_list

TEMPLATES = ("a photo of a {}.",)


class ZeroShotImageClassifier:
    """Images to any labels, by two pocket files of one CLIP or SigLIP: its vision and its text tower.

    Example:
        >>> model = ZeroShotImageClassifier.load("clip-vision.pocket", "clip-text.pocket")  # doctest: +SKIP
        >>> model.classify("photo.jpg", ["owl", "boat"])[0].label  # doctest: +SKIP
        'owl'

    Raises:
        TaskError: one of the models is of another task.
        ValueError: their embeddings have different widths, or nothing says how to weigh them: they were compressed from
            towers saved alone.
    """

    def __init__(self, images: ImageEmbedder, texts: Embedder) -> None:
        for model, kind in ((images, ImageEmbedder), (texts, Embedder)):
            if not isinstance(model, kind):
                raise TaskError(f"{model!r} is no {kind.__name__}; give the vision tower, then the text tower")
        if images.width != texts.width:
            raise ValueError(f"{images!r} has {images.width} columns and {texts!r} {texts.width}; use two of one model")
        facts = texts.info()
        if "logit_scale" not in facts:
            raise ValueError(f"{facts['path']} has no logit_scale; compress it from the folder that holds both towers")
        self.images, self.texts = images, texts
        self._scale: float = facts["logit_scale"]
        self._bias: float | None = facts.get("logit_bias")

    @classmethod
    def load(
        cls, images: str | os.PathLike[str], texts: str | os.PathLike[str], threads: int | None = None
    ) -> ZeroShotImageClassifier:
        """The vision tower from the file ``images``, the text tower from ``texts``; see ``pocketformer.load``."""
        vision, text = Model.load(images, threads), Model.load(texts, threads)
        return cls(vision, text)  # type: ignore[arg-type]  # looked at there

    def classify(
        self,
        images: ImageInput | Iterable[ImageInput],
        labels: Sequence[str],
        *,
        templates: str | Sequence[str] = TEMPLATES,
        top_k: int | None = None,
    ) -> list[Label] | list[list[Label]]:
        """``labels`` with their probabilities, best first, for each image (a plain list for a single one).

        Each of ``templates`` is a text with ``{}`` where a label goes; of several the mean of their embeddings counts.
        ``top_k`` labels are given, None gives all. The probabilities are a softmax over the labels, or with SigLIP each
        label's own.

        Raises ValueError for no labels or a template without ``{}``, and what ``ImageEmbedder.encode`` raises.
        """
        weights = self.label_embeddings(labels, templates)
        found = self.images.encode(images, normalize=True)
        cosines = [
            (weights * image).sum(axis=1) for image in np.atleast_2d(found)
        ]  # each alone: the same bits in any call
        logits = np.float32(self._scale) * np.reshape(cosines, (-1, len(weights)))
        scores = softmax(logits) if self._bias is None else sigmoid(logits + np.float32(self._bias))
        names = list(labels)
        rows = [ranked(names, row, top_k) for row in scores]
        return rows[0] if found.ndim == 1 else rows

    def label_embeddings(self, labels: Sequence[str], templates: str | Sequence[str] = TEMPLATES) -> Outputs:
        """float32 [labels, width], each row of length 1."""
        listed, single = as_list(labels, "labels")
        if single or not listed:
            raise ValueError(f"labels is {labels!r:.60}; give a list of at least one")
        texts, _ = as_list(templates, "templates")
        wrong = next((text for text in texts if "{}" not in text), None)
        if wrong is not None or not texts:
            raise ValueError(f"templates holds {wrong!r}; each must hold {{}} where the label goes")
        filled = [text.replace("{}", label) for label in listed for text in texts]
        rows = normalized(self.texts.encode(filled)).reshape(len(listed), len(texts), -1)
        return normalized(np.stack([row.mean(axis=0) for row in rows]))
