"""Labels of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..model import Model
from .classify import Label, softmax


class ImageClassifier(Model):
    """Images of the size that the model was trained on to labels."""

    _method = "classify"

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        return self.classify(*inputs, **options)

    def classify(
        self, images: NDArray[Any] | Sequence[NDArray[Any]], top_k: int = 5
    ) -> list[Label] | list[list[Label]]:
        """The ``top_k`` likeliest labels of each image, best first (a plain list for a single image).

        An image is an array [height, width, 3], red first: uint8, scaled and normalised as the model's preprocessing
        says, or float32, taken as it is. Several are an array [images, height, width, 3] or a list.

        Raises TypeError for another dtype and ValueError for another size, which is named: resize the image before.
        """
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
            raise ValueError(f"top_k is {top_k!r}; it must be an integer of at least 1")
        single = isinstance(images, np.ndarray) and images.ndim == 3
        listed = [images] if single else list(images)
        if not listed:
            return []
        rows = [self._pixels(image, i) for i, image in enumerate(listed)]
        scores = softmax(self._engine.run_inputs({"pixels": np.concatenate(rows)}))
        names = self.labels or [f"LABEL_{i}" for i in range(self.width)]
        order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        found = [[Label(names[i], float(row[i])) for i in best] for row, best in zip(scores, order, strict=True)]
        return found[0] if single else found

    def _pixels(self, image: Any, number: int) -> NDArray[np.float32]:
        """float32 [height · width, 3]."""
        settings = self._engine.file.model["image"]
        shape = (settings["height"], settings["width"], 3)
        if not isinstance(image, np.ndarray) or image.dtype not in (np.uint8, np.float32):
            what = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
            raise TypeError(f"images[{number}] is {what}; pass a numpy array of uint8 or float32")
        if image.shape != shape:
            raise ValueError(
                f"images[{number}] has shape {list(image.shape)}; it must be {list(shape)}: resize it, red first"
            )
        pixels: NDArray[np.float32] = image.astype(np.float32)
        if image.dtype == np.uint8:
            mean, std = (np.array(settings[name], np.float32) for name in ("mean", "std"))
            pixels = np.divide(pixels * np.float32(settings["scale"]) - mean, std, dtype=np.float32)
        return np.ascontiguousarray(pixels.reshape(-1, 3))
