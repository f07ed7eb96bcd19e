"""Checks a packed graph operator by operator, so that what runs afterwards may trust it.

Only small tensors (scales, sums, biases, norms) are read; the pages of large weights stay untouched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np

from .errors import PocketFileError
from .graph import Graph, Op
from .layout import (
    LANES,
    MAX_HEAD_DIM,
    MAX_INT8_K,
    attention_bias_width,
    fp32_panels,
    int8_panels,
    round_up,
    table_rows,
)

MAX_OPS = 100_000
MAX_TABLES = 16
MAX_COUNT = 2**31 - 1
MAX_LENGTH = 2**20
ACTIVATIONS = ("none", "gelu", "gelu_tanh", "relu", "silu", "tanh")

TOKENS, SEQUENCES, ROWS = "tokens", "sequences", "rows"


class Value(NamedTuple):
    domain: str
    width: int


@dataclass(frozen=True)
class Field:
    """What a JSON value must be."""

    accepts: Callable[[Any], bool]
    expected: str


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def integer(low: int, high: int = MAX_COUNT) -> Field:
    return Field(lambda value: is_int(value) and low <= value <= high, f"an integer in {low}…{high}")


def one_of(*choices: str) -> Field:
    return Field(lambda value: isinstance(value, str) and value in choices, f"one of {', '.join(choices)}")


def real(low: float) -> Field:
    """A float32 number above ``low``."""
    largest = float(np.finfo(np.float32).max)
    return Field(
        lambda value: isinstance(value, float | int) and not isinstance(value, bool) and low < value <= largest,
        f"a float32 number above {low}",
    )


NAME = Field(is_name, "a name")
NAME_OR_NULL = Field(lambda value: value is None or is_name(value), "a name or null")
FLAG = Field(lambda value: isinstance(value, bool), "true or false")
ROTATE = Field(
    lambda value: is_int(value) and 0 <= value <= MAX_COUNT and value & (value - 1) == 0, "0 or a power of two"
)
LIST = Field(lambda value: isinstance(value, list), "a list")

GRAPH: dict[str, Field] = {
    "ops": LIST,
    "output": NAME,
    "vocab_size": integer(1),
    "type_vocab_size": integer(0),
    "max_length": integer(1, MAX_LENGTH),
}

OPERATORS: dict[str, dict[str, Field]] = {
    "embed": {"out": NAME, "width": integer(1), "tables": LIST},
    "norm": {
        "in": NAME,
        "out": NAME,
        "weight": NAME,
        "width": integer(1),
        "kind": one_of("layer", "rms"),
        "eps": real(0.0),
    },
    "linear": {
        "in": NAME,
        "out": NAME,
        "weight": NAME,
        "n": integer(1),
        "k": integer(1),
        "activation": one_of(*ACTIVATIONS),
        "residual": NAME_OR_NULL,
        "rotate": ROTATE,
    },
    "attention": {
        "in": NAME,
        "out": NAME,
        "heads": integer(1),
        "kv_heads": integer(1),
        "head_dim": integer(1, MAX_HEAD_DIM),
        "scale": real(0.0),
        "causal": FLAG,
        "left": integer(-1),
        "right": integer(-1),
        "dtype": one_of("int8", "fp32"),
        "bias": NAME_OR_NULL,
    },
    "pool": {"in": NAME, "out": NAME, "kind": one_of("mean", "cls", "max")},
    "select": {"in": NAME, "out": NAME},
    "normalize": {"in": NAME, "out": NAME},
}

TABLE: dict[str, Field] = {
    "weight": NAME,
    "rows": integer(1),
    "index": one_of("ids", "positions", "types"),
    "offset": integer(0),
    "rotate": ROTATE,
}


def check_fields(where: str, record: dict[str, Any], fields: dict[str, Field]) -> None:
    """``record`` has exactly ``fields``, each of its kind."""
    for name, field in fields.items():
        if name not in record:
            raise PocketFileError(f"{where}: field {name!r} is missing; it must be {field.expected}")
        if not field.accepts(record[name]):
            raise PocketFileError(f"{where}: field {name!r} is {brief(record[name])}; it must be {field.expected}")
    unknown = [name for name in record if name not in fields]
    if unknown:
        raise PocketFileError(f"{where}: field {unknown[0]!r} is unknown; known are {', '.join(fields)}")


def brief(value: Any) -> str:
    """A JSON value for a message, in few characters however large or deep it is."""
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else f"{value[:59]}…")
    return "an integer of many digits" if is_int(value) and abs(value) >= 10**30 else repr(value)


def validate_graph(graph: Graph) -> None:
    """Raises PocketFileError, naming operator and field, unless ``graph`` is packed and keeps every rule."""
    _Validator(graph).run()


class _Validator:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.values: dict[str, Value] = {}
        self.used: set[str] = set()
        self.rotations: dict[str, int] = {}
        self.where = "graph"

    def run(self) -> None:
        graph = self.graph
        check_fields("graph", graph.description(), GRAPH)
        if not 1 <= len(graph.ops) <= MAX_OPS:
            self.fail("ops", f"has {len(graph.ops)} operators; it must have 1…{MAX_OPS}")
        for index, op in enumerate(graph.ops):
            self.where = f"op {index}"
            if not isinstance(op, dict):
                raise PocketFileError(f"{self.where} is {brief(op)}; it must be an object")
            kind = op.get("op")
            if not isinstance(kind, str) or kind not in OPERATORS:
                self.fail("op", f"is {brief(kind)}; it must be one of {', '.join(OPERATORS)}")
            self.where = f"op {index} ({kind})"
            check_fields(self.where, {name: value for name, value in op.items() if name != "op"}, OPERATORS[kind])
            if op["out"] in self.values:
                self.fail("out", f"{op['out']!r} was written by an earlier operator")
            self.values[op["out"]] = getattr(self, f"_{kind}")(op)
        self.where = "graph"
        if graph.output not in self.values:
            self.fail("output", f"{graph.output!r} is written by no operator")
        unused = next((name for name in graph.params if name not in self.used), None)
        if unused is not None:
            raise PocketFileError(f"tensor {unused!r} belongs to no operator; remove it")

    def fail(self, field: str, problem: str) -> NoReturn:
        raise PocketFileError(f"{self.where}: field {field!r} {problem}")

    def value(self, op: Op, field: str = "in") -> Value:
        if op[field] not in self.values:
            self.fail(field, f"names {op[field]!r}, which no earlier operator writes")
        return self.values[op[field]]

    def tokens(self, op: Op) -> Value:
        value = self.value(op)
        if value.domain != TOKENS:
            self.fail("in", f"names {op['in']!r}, which has one row per {value.domain[:-1]}; {op['op']} takes tokens")
        return value

    def tensor(self, name: str, *kinds: tuple[type[np.generic], tuple[int, ...]]) -> np.ndarray[Any, Any]:
        """The tensor, which must have one of the (dtype, shape) ``kinds``."""
        array = self.graph.params.get(name)
        if array is None:
            raise PocketFileError(f"{self.where}: tensor {name!r} is missing")
        if (array.dtype.type, array.shape) not in kinds:
            expected = " or ".join(f"{np.dtype(dtype).name} {list(shape)}" for dtype, shape in kinds)
            raise PocketFileError(
                f"{self.where}: tensor {name!r} is {array.dtype.name} {list(array.shape)}; it must be {expected}"
            )
        self.used.add(name)
        return array

    def floats(self, name: str, *shape: int, positive: bool = False) -> None:
        """A float32 tensor of finite numbers; ``positive`` also refuses numbers below zero."""
        array = self.tensor(name, (np.float32, shape))
        if not np.isfinite(array).all():
            raise PocketFileError(f"{self.where}: tensor {name!r} holds NaN or infinity; every entry must be finite")
        if positive and array.min() < 0:
            raise PocketFileError(f"{self.where}: tensor {name!r} holds negative numbers; scales are ≥ 0")

    def rotation(self, op: Op, weight: str, k: int) -> None:
        rotate = op["rotate"]
        if rotate and k % rotate:
            self.fail("rotate", f"is {rotate}, which does not divide the {k} inputs")
        if self.rotations.setdefault(weight, rotate) != rotate:
            self.fail("rotate", f"is {rotate}, but {weight!r} was used with {self.rotations[weight]} before")

    def panels(self, name: str, n: int, k: int) -> None:
        """The weight of a linear, int8 or fp32, with its scales and sums."""
        weight = self.tensor(f"{name}.weight", (np.int8, int8_panels(n, k)), (np.float32, fp32_panels(n, k)))
        if weight.dtype != np.int8:
            return
        if k > MAX_INT8_K:
            self.fail("k", f"is {k}; int8 products overflow int32 beyond {MAX_INT8_K}, use fp32 weights")
        channels = round_up(n, LANES)
        self.floats(f"{name}.scale", channels, positive=True)
        colsum = self.tensor(f"{name}.colsum", (np.int32, (channels,)))
        if int(colsum.max()) > 128 * k or int(colsum.min()) < -128 * k:
            raise PocketFileError(f"{self.where}: tensor {name + '.colsum'!r} exceeds what {k} int8 weights can sum to")

    def _embed(self, op: Op) -> Value:
        width, tables, graph = op["width"], op["tables"], self.graph
        if not 1 <= len(tables) <= MAX_TABLES:
            self.fail("tables", f"has {len(tables)} entries; it must have 1…{MAX_TABLES}")
        operator = self.where
        for position, table in enumerate(tables):
            self.where = f"{operator}, table {position}"
            if not isinstance(table, dict):
                raise PocketFileError(f"{self.where} is {brief(table)}; it must be an object")
            check_fields(self.where, table, TABLE)
            limits = {"ids": graph.vocab_size, "positions": graph.max_length, "types": graph.type_vocab_size}
            needed = limits[table["index"]] + (table["offset"] if table["index"] == "positions" else 0)
            if table["rows"] < needed:
                self.fail("rows", f"is {table['rows']}, but {table['index']} (offset included) reach row {needed - 1}")
            if table["offset"] and table["index"] != "positions":
                self.fail("offset", f"is {table['offset']}; only positions have an offset")
            if table["rotate"] and position > 0:
                self.fail("rotate", f"is {table['rotate']}; only the first table may be rotated")
            self.rotation(table, table["weight"], width)
            self._table(table["weight"], table["rows"], width)
        self.where = operator
        return Value(TOKENS, width)

    def _table(self, name: str, rows: int, width: int) -> None:
        stored = self.graph.params.get(f"{name}.weight")
        if stored is not None and stored.ndim > 2:
            self.panels(name, rows, width)
            return
        weight = self.tensor(
            f"{name}.weight",
            (np.int8, (table_rows(rows, width, 1), width)),
            (np.float32, (table_rows(rows, width, 4), width)),
        )
        if weight.dtype == np.int8:
            self.floats(f"{name}.scale", round_up(rows, LANES), positive=True)

    def _norm(self, op: Op) -> Value:
        value, name = self.value(op), op["weight"]
        if value.width != op["width"]:
            self.fail("width", f"is {op['width']}, but {op['in']!r} is {value.width} wide")
        self.floats(f"{name}.weight", round_up(value.width, LANES))
        if f"{name}.bias" in self.graph.params:
            self.floats(f"{name}.bias", round_up(value.width, LANES))
        return value

    def _linear(self, op: Op) -> Value:
        value, name, n, k = self.value(op), op["weight"], op["n"], op["k"]
        if value.width != k:
            self.fail("k", f"is {k}, but {op['in']!r} is {value.width} wide")
        self.rotation(op, name, k)
        self.panels(name, n, k)
        if op["rotate"] and self.graph.params[f"{name}.weight"].dtype != np.int8:
            self.fail("rotate", f"is {op['rotate']}; only int8 weights are rotated")
        if f"{name}.bias" in self.graph.params:
            self.floats(f"{name}.bias", round_up(n, LANES))
        result = Value(value.domain, n)
        if op["residual"] is not None and self.value(op, "residual") != result:
            other = self.values[op["residual"]]
            wrong, right = (f"{value.domain} × {value.width}" for value in (other, result))
            self.fail("residual", f"names {op['residual']!r}, which is {wrong}; the result is {right}")
        return result

    def _attention(self, op: Op) -> Value:
        value, heads, kv_heads, head_dim = self.tokens(op), op["heads"], op["kv_heads"], op["head_dim"]
        if heads % kv_heads:
            self.fail("kv_heads", f"is {kv_heads}, which does not divide the {heads} heads")
        expected = (heads + 2 * kv_heads) * head_dim
        if value.width != expected:
            self.fail("in", f"names {op['in']!r}, which is {value.width} wide; heads × head_dim ask for {expected}")
        if op["bias"] is not None:
            self.floats(op["bias"], heads, attention_bias_width(self.graph.max_length))
        return Value(TOKENS, heads * head_dim)

    def _pool(self, op: Op) -> Value:
        return Value(SEQUENCES, self.tokens(op).width)

    def _select(self, op: Op) -> Value:
        return Value(ROWS, self.tokens(op).width)

    def _normalize(self, op: Op) -> Value:
        return self.value(op)
