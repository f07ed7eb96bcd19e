"""Token merging: after each attention of a vision transformer the tokens that say much the same become one (ToMe, Bolya
et al., arXiv 2210.09461), so that layer after layer has fewer of them to work on. Nothing is trained."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import UnsupportedModelError
from ..graph import SEQUENCES, Array, Graph, Op
from .token_domains import TokenRewriter

LOGARITHMS = "merge.logarithms"


def merge_tokens(graph: Graph, count: int) -> Graph:
    """``graph`` with ``count`` tokens fewer after each attention: at most half of the patches that there are.

    A token's keys, the mean of its heads, say whom it is like. Merged ones are means in which each token counts once,
    and attention counts each as often as the tokens that it is. Class tokens and registers stay.

    Raises ValueError for a count below 1, UnsupportedModelError for a graph that is not over images, or ends in what
    needs all patches.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"merge is {count!r}; it must be an integer of at least 1, the tokens that go at each layer")
    if graph.find_input("pixels") is None:
        raise UnsupportedModelError("merge was given, but only models of images merge tokens; leave it out")
    return _Merging(graph, count).run()


class _Merging(TokenRewriter):
    def __init__(self, graph: Graph, count: int) -> None:
        super().__init__(graph)
        self.count, self.kept = count, self.prepended()
        self.rows = self.left = graph.max_rows(self.tokens) if graph.states else 0
        self.stores = {op["state"]: op for op in graph.ops if op["op"] == "store"}
        self.domains: list[dict[str, Any]] = []
        self.match: str | None = None

    def run(self) -> Graph:
        self._check()
        attended = ""
        for op in map(self.current, self.graph.ops):
            if op["op"] == "attention":
                attended, keys = op["out"], self.stores[op["state"]]
                if self.match is not None:
                    op["sizes"] = self.match
            self.ops.append(op)
            if op["op"] == "linear" and op["in"] == attended:
                self._merge(op["out"], keys)
        table: Array = np.log(np.arange(1, self.rows + 1)).astype(np.float32)
        return self.result(self._domains(), **{LOGARITHMS: table})

    def _check(self) -> None:
        whole = "merge was given, but the model ends in what needs all of its patches"
        if not self.kept:
            raise UnsupportedModelError(f"{whole}: there is no class token; leave it out")
        for op in self.graph.ops:
            if self.places_matter(op):
                raise UnsupportedModelError(f"{whole}, or adds a bias by their places; leave it out")
            if op["op"] == "pool" and (op["kind"] != "cls" or op.get("begin", 0) >= self.kept):
                raise UnsupportedModelError(f"{whole}, their {op['kind']}; leave it out")

    def _merge(self, x: str, store: Op) -> None:
        """After the value ``x``, whose tokens have the keys of ``store``."""
        gone = min(self.count, (self.left - self.kept) // 2)
        if gone < 1:
            return
        number = len(self.domains)
        names = {part: f"{part}{number}" for part in ("keys", "alike", "match", "merged")}
        made, heads = f"tokens{number + 1}", self.states[store["state"]]["heads"]
        self.domains.append({"name": made, "kind": "ragged", "of": self.domain, "merged": gone})
        after = {} if self.match is None else {"after": self.match}
        facts = {"domain": SEQUENCES, "merged": gone, "kept": self.kept, "logarithms": LOGARITHMS}
        self.ops += [
            {"op": "head_mean", "in": store["k"], "out": names["keys"], "heads": heads},
            {"op": "normalize", "in": names["keys"], "out": names["alike"]},
            {"op": "match", "in": names["alike"], "out": names["match"], **facts, **after},
            {"op": "merge", "in": x, "out": names["merged"], "domain": made, "matches": names["match"], **after},
        ]
        self.renamed[x] = names["merged"]
        self.match, self.domain, self.left = names["match"], made, self.left - gone

    def _domains(self) -> list[dict[str, Any]]:
        """Those that were made of the tokens are made of those that remain."""
        domains: list[dict[str, Any]] = []
        for domain in self.graph.domains:
            moved = {**domain, "of": self.domain} if domain.get("of") == self.tokens else domain
            domains.append(moved)
            if domain["name"] == self.tokens:
                domains += self.domains
        if not any(domain["name"] == SEQUENCES for domain in domains):
            domains.append({"name": SEQUENCES, "kind": "one", "of": self.domain})
        return domains
