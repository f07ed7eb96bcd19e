"""A graph: what it works on, its operators and their parameters (docs/format.md defines every field)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from numpy.typing import NDArray

Op = dict[str, Any]
Array = NDArray[Any]

TOKENS, SEQUENCES, SELECTED = "tokens", "sequences", "selected"
"""The domains of a text model: its tokens, one row a text, and the tokens that the caller names."""

IMAGES = "images"
"""The domain of rows that each image has one of on the way."""

SKIPPED, SEEN, GLOBALS = "skipped", "seen", "globals"
"""Inputs that some text models have, a number for each text: first tokens that are not pooled; first tokens that all
others attend to, the rest to none but them; first tokens that all attend to, as they do to all, beside a window."""

READS = (
    *("in", "with", "q", "k", "v", "global_q", "multiply", "residual"),
    *("matches", "after", "sizes", "moments", "scores", "halts"),
)
STATES = ("state", "global_state")
TENSORS = ("bias", "summary_bias", "pair_bias", "frequencies", "rows", "logarithms", "features", "fill")
"""Fields of an operator that name a value that it reads, a state, and a plain parameter."""


def rows_for(domain: dict[str, Any], rows: Any) -> Any:
    """Of a ragged ``domain`` in a sequence that has ``rows``, or an array of them, of what it is made from."""
    blocks = rows // domain["summarized"] if domain.get("summarized") else 0
    return rows + domain.get("prepended", 0) - domain.get("merged", 0) + blocks


@dataclass
class Graph:
    """Operators in execution order, what they work on, and their parameters.

    Before packing, ``params`` holds plain arrays: ``W.weight`` [n, k] of a weight, with ``W.scale`` [n] or [n, k/group]
    where it is rounded and ``W.codebook`` [16] and ``W.minimum`` where it has 4 bits; vectors under the names that
    operators give. After packing it holds the tensors of the pocket file.
    """

    domains: list[dict[str, Any]]
    inputs: list[dict[str, Any]]
    weights: dict[str, dict[str, Any]]
    states: list[dict[str, Any]]
    ops: list[Op]
    output: str
    params: dict[str, Array]

    def description(self) -> dict[str, Any]:
        """All but the parameters, as ``_core.Program`` takes it."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "params"}

    def find_input(self, name: str) -> dict[str, Any] | None:
        return next((entry for entry in self.inputs if entry["name"] == name), None)

    @property
    def vocab_size(self) -> int:
        """Limit of the input ``ids``; 0 in a graph without one."""
        return int((self.find_input("ids") or {"limit": 0})["limit"])

    @property
    def type_vocab_size(self) -> int:
        """Limit of the input ``types``; 0 in a graph without one."""
        return int((self.find_input("types") or {"limit": 0})["limit"])

    @property
    def max_length(self) -> int:
        """Rows of the longest sequence that the caller may give."""
        return next(int(domain.get("max_rows", 1)) for domain in self.domains if "of" not in domain)

    def max_rows(self, domain: str) -> int:
        """Rows of the longest sequence of a domain."""
        entry = next(entry for entry in self.domains if entry["name"] == domain)
        if entry["kind"] == "grid":
            return int(entry["height"] * entry["width"])
        if "of" not in entry:
            return int(entry["max_rows"])
        return int(rows_for(entry, self.max_rows(entry["of"]))) if entry["kind"] == "ragged" else 1

    def domain_of(self, value: str) -> str:
        """The domain of the rows of a value."""
        domains = {entry["name"]: str(entry["domain"]) for entry in self.inputs}
        for op in self.ops:
            read = next((op[field] for field in ("domain", "in", "q") if op.get(field) is not None), None)
            if "out" not in op:
                continue
            if read is None:
                read = next(table["index"] for table in op["tables"] if table["index"] in domains)
            domains[op["out"]] = domains.get(read, read)
        return domains[value]

    def widths(self) -> dict[str, int]:
        """Columns of every value."""
        result = {entry["name"]: int(entry["width"]) for entry in self.inputs if entry["dtype"] == "f32"}
        for op in self.ops:
            if op["op"] == "embed":
                result[op["out"]] = self.weights[op["tables"][0]["weight"]]["k"]
            elif op["op"] == "linear":
                result[op["out"]] = self.weights[op["weight"]]["n"]
            elif op["op"] == "columns":
                result[op["out"]] = op["width"]
            elif op["op"] == "concat":
                result[op["out"]] = result[op["in"]] + result[op["with"]]
            elif op["op"] == "head_mean":
                result[op["out"]] = result[op["in"]] // op["heads"]
            elif op["op"] == "moments":
                result[op["out"]] = 2
            elif op["op"] == "unfold":
                result[op["out"]] = result[op["in"]] * op["height"] * op["width"]
            elif op["op"] == "fold":
                result[op["out"]] = result[op["in"]] // (op["height"] * op["width"])
            elif "out" in op:
                like = {"attention": "q", "linear_attention": "v"}.get(op["op"], "in")
                result[op["out"]] = result[op[like]]
        return result
