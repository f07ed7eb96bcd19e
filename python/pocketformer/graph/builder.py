"""The builder of graphs: operators over the pixels of an image beside those over rows and attention."""

from __future__ import annotations

from typing import Any

from .attention import AttentionOperators
from .model import IMAGES, TOKENS, Array


class GraphBuilder(AttentionOperators):
    """Collects operators; each method appends one and returns the name of its value.

    A parameter given twice under one name must be the same array: it is stored once (ALBERT's shared layer, tied
    decoders).
    """

    @classmethod
    def text(cls, vocab_size: int, type_vocab_size: int, max_length: int) -> GraphBuilder:
        """A graph over tokens with the inputs ``ids`` and, where there are token types, ``types``."""
        build = cls([{"name": TOKENS, "kind": "ragged", "max_rows": max_length}])
        build.inputs.append({"name": "ids", "domain": TOKENS, "dtype": "i32", "limit": vocab_size})
        if type_vocab_size:
            build.inputs.append(
                {"name": "types", "domain": TOKENS, "dtype": "i32", "limit": type_vocab_size, "optional": True}
            )
        return build

    def unfold(self, x: str, domain: str, *, height: int, width: int, stride: int = 1, padding: int = 0) -> str:
        """Windows of a grid; ``domain`` is the grid of the windows, which may be that of ``x``."""
        options = {name: n for name, n, default in (("stride", stride, 1), ("padding", padding, 0)) if n != default}
        return self._append("unfold", x, domain=domain, height=height, width=width, **options)

    def fold(self, x: str, domain: str, *, height: int, width: int) -> str:
        """The grid ``domain`` that :meth:`unfold` takes apart into ``x``, by windows side by side."""
        return self._append("fold", x, domain=domain, height=height, width=width)

    def depthwise(
        self,
        x: str,
        weight: Array,
        bias: Array | None,
        domain: str,
        *,
        name: str,
        height: int,
        width: int,
        stride: int = 1,
        padding: int = 0,
        activation: str = "none",
    ) -> str:
        """``weight`` [height · width, channels] multiplies the pixels of a window, line by line; ``domain`` is the grid
        of the windows, which may be that of ``x``."""
        options: dict[str, Any] = {} if bias is None else {"bias": self._param(f"{name}.bias", bias)}
        options |= {key: n for key, n, default in (("stride", stride, 1), ("padding", padding, 0)) if n != default}
        if activation != "none":
            options["activation"] = activation
        weight_name = self._param(f"{name}.weight", weight)
        return self._append("depthwise", x, domain=domain, weight=weight_name, height=height, width=width, **options)

    def average(
        self, x: str, domain: str, *, name: str, size: int, stride: int = 1, weight: Array | None = None
    ) -> str:
        """Means of windows of ``size`` × ``size``, of the pixels within the grid; ``domain`` is the grid
        of the windows. With ``weight`` [channels] x + weight · (mean − x)."""
        options: dict[str, Any] = {"height": size, "width": size}
        options |= {key: n for key, n, default in (("stride", stride, 1), ("padding", size // 2, 0)) if n != default}
        if weight is not None:
            options["weight"] = self._param(f"{name}.weight", weight)
        return self._append("average", x, domain=domain, **options)

    def resize(self, x: str, domain: str) -> str:
        """A grid at the size of the grid ``domain``."""
        return self._append("resize", x, domain=domain)

    def standardize(self, x: str, weight: Array, bias: Array, *, name: str, eps: float, of: str) -> str:
        """The norm of a whole image, of all its rows and columns; ``of`` is the domain that the image has."""
        moments = self._append("moments", x, domain=self.domain(IMAGES, "one", of), eps=float(eps))
        names = {"weight": self._param(f"{name}.weight", weight), "bias": self._param(f"{name}.bias", bias)}
        return self._append("standardize", x, moments=moments, **names)

    def soft_pool(self, x: str, scores: str, *, of: str) -> str:
        """A row for each image whose domain is ``of``: the sum of its rows, each by the softmax of ``scores`` over the
        rows; as many scores, as many parts of the columns."""
        return self._append("soft_pool", x, scores=scores, domain=self.domain(IMAGES, "one", of))

    def spread(self, x: str, domain: str) -> str:
        """For each row of ``domain`` that of its image."""
        return self._append("spread", x, domain=domain)
