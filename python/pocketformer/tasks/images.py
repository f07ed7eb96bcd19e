"""Images to labels, and to features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..batches import BATCH_TOKENS
from ..engine import Outputs
from ..errors import TaskError
from ..model import Model
from ..pixels import ImageInput, ImageReader, as_images
from .classify import Label, ranked, softmax
from .embed import normalized

Pooling: TypeAlias = Literal["cls", "mean", "pooler"]


class ImageModel(Model):
    """What models of images share: a forward pass over a stream of them, a few in memory at a time."""

    _method: ClassVar[str] = ""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._pixels = ImageReader(self._engine.file.model["image"])

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """What the model's method does."""
        return getattr(self, self._method)(*inputs, **options)

    def run(self, *_: Any, **__: Any) -> Outputs:
        raise TaskError(f"{self._source[0]} takes images, not token ids; use Model.{self._method}")

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width to which images are made."""
        return self._pixels.shape[:2]

    def _outputs(self, images: Iterable[ImageInput]) -> Iterator[Outputs]:
        """The output rows of batches of ``images``, of about :data:`~pocketformer.batches.BATCH_TOKENS` rows each where
        they have most."""
        size, batch = max(1, BATCH_TOKENS // self._most_rows), []
        for i, image in enumerate(images):
            batch.append(self._pixels.pixels(image, f"images[{i}]"))
            if len(batch) == size:
                yield self._engine.run_inputs({"pixels": np.concatenate(batch)})
                batch.clear()
        if batch:
            yield self._engine.run_inputs({"pixels": np.concatenate(batch)})

    @property
    def _prepended(self) -> int:
        """Class tokens and registers before the patches."""
        return sum(int(domain.get("prepended", 0)) for domain in self._engine.file.graph.domains)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of an image's patches: the grid of the output, or that it is made from."""
        graph = self._engine.file.graph
        domains = {domain["name"]: domain for domain in graph.domains}
        grid = domains[graph.domain_of(graph.output)]
        while grid["kind"] != "grid":
            grid = domains[grid["of"]]
        return int(grid["height"]), int(grid["width"])

    @property
    def _tokens(self) -> int:
        """Rows of the output that an image has, where they are not one."""
        down, across = self.grid
        return self._prepended + down * across

    @property
    def _most_rows(self) -> int:
        """Rows of the largest value that is made of an image."""
        graph = self._engine.file.graph
        return max(graph.max_rows(domain["name"]) for domain in graph.domains if "of" in domain)

    @property
    def _merged(self) -> bool:
        """Whether tokens become one on the way."""
        return any(domain.get("merged") for domain in self._engine.file.graph.domains)


class ImageClassifier(ImageModel):
    """Images to labels."""

    _method = "classify"

    def classify(self, images: ImageInput | Iterable[ImageInput], top_k: int = 5) -> list[Label] | list[list[Label]]:
        """The ``top_k`` likeliest labels of each image, best first (a plain list for a single image).

        An image is a path, the bytes of a file (JPEG, PNG, WebP, …), a Pillow image or an array [height, width, 3], red
        first. It is turned upright, made RGB, resized, cropped and scaled as the model's preprocessing says; an array
        of the model's own size is not resized or cropped, and one of float32 is taken as it is. Several are an array
        [images, height, width, 3] or any iterable, of which a few are in memory at a time.

        Raises TypeError for what is no image, ValueError for one that is damaged, too large, of an unknown format or a
        wrong shape, ImportError where Pillow is needed and absent.
        """
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
            raise ValueError(f"top_k is {top_k!r}; it must be an integer of at least 1")
        listed, single = as_images(images)
        names = self.labels or [f"LABEL_{i}" for i in range(self.width)]
        found = [ranked(names, scores, top_k) for logits in self._outputs(listed) for scores in softmax(logits)]
        return found[0] if single else found


class ImageEmbedder(ImageModel):
    """Images to embeddings and to features of their patches."""

    _method = "encode"

    @property
    def poolings(self) -> tuple[Pooling, ...]:
        """What :meth:`encode` can give, its default first: ``pooler`` is a head that was trained for it."""
        if self._engine.program.output_kind == "one":
            return ("pooler",)
        if self._merged:
            return ("cls",)
        return ("cls", "mean") if self._prepended else ("mean",)

    def encode(
        self,
        images: ImageInput | Iterable[ImageInput],
        *,
        pooling: Pooling | None = None,
        patches: bool = False,
        normalize: bool = False,
    ) -> NDArray[np.float32]:
        """Embeddings: float32 [images, width], or [width] for a single image; see ``classify`` for what an image is.

        ``pooling`` is one of :attr:`poolings`: the ``cls`` token, the ``mean`` of the patches or the trained
        ``pooler``; None takes the first that the model has. ``normalize`` gives each row the length 1. ``patches=True``
        gives the features of the patches instead, float32 [images, rows, columns, width], row by row of the image.

        Raises ValueError for a pooling, or for patches, that the model does not give; and what ``classify`` raises.
        """
        listed, single = as_images(images)
        parts = list(self.encode_batches(listed, pooling=pooling, patches=patches, normalize=normalize))
        shape = (0, *self.grid, self.width) if patches else (0, self.width)
        result = np.concatenate(parts) if parts else np.zeros(shape, np.float32)
        return result[0] if single else result

    def encode_batches(
        self,
        images: Iterable[ImageInput],
        *,
        pooling: Pooling | None = None,
        patches: bool = False,
        normalize: bool = False,
    ) -> Iterator[NDArray[np.float32]]:
        """The rows of :meth:`encode`, a few images' at a time, for more of them than memory holds: a long video, a
        large folder. What it yields, end to end, is what ``encode`` gives for a list.

        Raises what ``encode`` raises, for an image that cannot be read when its turn comes.
        """
        pooling = self.poolings[0] if pooling is None else pooling
        if pooling not in self.poolings:
            raise ValueError(f"pooling is {pooling!r}; this model gives {', '.join(self.poolings)}")
        if patches and any(domain.get("halting") for domain in self._engine.file.graph.domains):
            raise ValueError("patches is True, but this model's tokens halt; compress the checkpoint without halt")
        if patches and self._engine.program.output_kind == "one":
            raise ValueError(
                "patches is True, but this model's file ends in a pooler; compress the checkpoint without its pooler"
            )
        if patches and self._merged:
            raise ValueError("patches is True, but this model merges patches; compress the checkpoint without merge")
        return self._encoded(as_images(images)[0], pooling, patches, normalize)

    def _encoded(
        self, images: Iterator[ImageInput], pooling: Pooling, patches: bool, normalize: bool
    ) -> Iterator[Outputs]:
        for rows in self._outputs(images):
            result = self._pooled(rows, pooling, patches)
            yield normalized(result.reshape(-1, self.width)).reshape(result.shape) if normalize else result

    def _pooled(self, rows: Outputs, pooling: Pooling, patches: bool) -> Outputs:
        if self._engine.program.output_kind == "one":
            return rows
        left = self._engine.file.graph.max_rows(self._engine.program.output_domain)
        tokens = rows.reshape(-1, left, self.width)
        if patches:
            return np.ascontiguousarray(tokens[:, self._prepended :]).reshape(-1, *self.grid, self.width)
        if pooling == "cls":
            return np.ascontiguousarray(tokens[:, 0])
        return np.stack(
            [image[self._prepended :].mean(axis=0) for image in tokens]
        )  # row by row: the same bits anywhere
