"""Adaptive tokens: after each layer of a vision transformer the tokens that have said enough leave (A-ViT, Yin et al.,
arXiv 2112.07658). For models that were trained with it, whose first channel says how much that is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from ..errors import UnsupportedModelError
from ..graph import SEQUENCES, Graph
from .token_domains import TokenRewriter

THRESHOLD = 0.99
"""A token leaves where the sum of what it was given after each layer is at least that: one minus the paper's ε."""


def halt_tokens(graph: Graph, scale: float, center: float) -> Graph:
    """``graph``, in which after each layer a token is given 1/(1 + exp(center − scale·x)), by its first channel x, and
    leaves where these add up to 0.99. The class token of the result is the sum of what it was after each layer, each as
    often as it was given; the last layer has what is left of 1. Where the class token leaves, its image is done.

    Raises ValueError for a scale that is not above 0 and numbers that are not finite, UnsupportedModelError for a graph
    that is not over images, or whose output is not made of the class token alone.
    """
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in (scale, center)) or scale <= 0:
        raise ValueError(f"halt is {scale!r}, {center!r}; it must be a scale above 0 and a center, such as 10, 30")
    if graph.find_input("pixels") is None:
        raise UnsupportedModelError("halt was given, but only tokens of images halt; leave it out")
    return _Halting(graph, {"scale": float(scale), "center": float(center), "threshold": THRESHOLD}).run()


class _Halting(TokenRewriter):
    def __init__(self, graph: Graph, gate: dict[str, Any]) -> None:
        super().__init__(graph)
        self.gate = gate

    def run(self) -> Graph:
        self._check()
        ends = list(self._ends())
        for op in map(self.current, self.graph.ops):
            if op["op"] == "pool":  # the class token is what was added up
                self.renamed[op["out"]] = op["in"]
                continue
            self.ops.append(op)
            if op.get("out") in ends:
                self._halt(op["out"], ends.index(op["out"]), len(ends))
        return self.result(self._domains(len(ends)))

    def _check(self) -> None:
        if not self.prepended():
            raise UnsupportedModelError("halt was given, but the model has no class token; leave it out")
        for op in self.graph.ops:
            if op["op"] == "merge" or self.places_matter(op):
                raise UnsupportedModelError("halt was given, but tokens merge, or have a bias by place; leave it out")
            if op["op"] == "pool" and (op["kind"] != "cls" or op.get("begin")):
                raise UnsupportedModelError(
                    "halt was given, but the output is not made of the first token alone; leave it out"
                )

    def _ends(self) -> Iterator[str]:
        """The value after each layer: the last sum before the next attention, or before the output."""
        end = ""
        for op in self.graph.ops:
            if op["op"] == "attention" and end:
                yield end
            if op["op"] == "linear" and "residual" in op and self.graph.domain_of(op["out"]) == self.tokens:
                end = op["out"]
        yield end

    def _halt(self, x: str, layer: int, layers: int) -> None:
        """After the value ``x`` of the tokens that are left."""
        halts, total = f"halt{layer}", f"total{layer}"
        facts = {"in": x, "domain": SEQUENCES}
        after = {"after": f"halt{layer - 1}"} if layer else {}
        before = {"with": f"total{layer - 1}"} if layer else {}
        last = {"last": True} if layer == layers - 1 else {}
        self.ops += [
            {"op": "halt", "out": halts, **facts, **after, **self.gate, **last},
            {"op": "contribute", "out": total, **facts, "halts": halts, **before},
        ]
        self.renamed[x] = total
        if not last:
            self.domain, self.renamed[x] = f"tokens{layer + 1}", f"kept{layer}"
            self.ops.append({"op": "keep", "in": x, "out": f"kept{layer}", "domain": self.domain, "halts": halts})

    def _domains(self, layers: int) -> list[dict[str, Any]]:
        domains = [domain for domain in self.graph.domains if domain["name"] != SEQUENCES]
        names = [self.tokens, *(f"tokens{i + 1}" for i in range(layers - 1))]
        for of, name in pairwise(names):
            domains.append({"name": name, "kind": "ragged", "of": of, "halting": True})
        return [*domains, {"name": SEQUENCES, "kind": "one", "of": self.tokens}]
