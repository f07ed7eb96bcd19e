"""A graph rewritten operator by operator so that fewer tokens are left from one on: what merging and halting share."""

from __future__ import annotations

from typing import Any

from ..graph import READS, Graph, Op


class TokenRewriter:
    """``ops`` are those that were written; ``domain`` is that of the tokens that are left, and ``renamed`` has the
    value that stands for one of ``graph`` from now on."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.tokens: str = graph.states[0]["domain"] if graph.states else ""
        self.states = {state["name"]: dict(state) for state in graph.states}
        self.ops: list[Op] = []
        self.domain = self.tokens
        self.renamed: dict[str, str] = {}

    def prepended(self) -> int:
        """Rows before the patches of an image."""
        first = next((domain for domain in self.graph.domains if domain["name"] == self.tokens), {})
        return int(first.get("prepended", 0))

    def places_matter(self, op: Op) -> bool:
        """Whether ``op`` is attention that knows tokens by their places, or is not over all of them."""
        if op["op"] != "attention":
            return False
        return self.states[op["state"]]["domain"] != self.tokens or bool({"bias", "pair_bias"} & set(op))

    def current(self, op: Op) -> Op:
        """``op`` as it reads the values that there are now; keys and values are stored of the tokens that are left."""
        changed = {field: self.renamed.get(op[field], op[field]) for field in READS if op.get(field) is not None}
        if op["op"] == "store":
            self.states[op["state"]]["domain"] = self.domain
        return {**op, **changed}

    def result(self, domains: list[dict[str, Any]], **params: Any) -> Graph:
        """What was written, over ``domains``; ``params`` are added."""
        output = self.renamed.get(self.graph.output, self.graph.output)
        states = list(self.states.values())
        params = {**self.graph.params, **params}
        return Graph(domains, self.graph.inputs, self.graph.weights, states, self.ops, output, params)
