"""What ``model`` and ``text`` of a pocket file may hold (docs/format.md), and how its JSON is judged by fields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import _core
from .errors import PocketFileError

TASKS = (
    *("embed", "embed_sparse", "embed_tokens", "classify", "tag", "answer", "fill_mask", "features"),
    *("classify_image", "embed_image", "generate"),
)


@dataclass(frozen=True)
class Field:
    """What a JSON value must be."""

    accepts: Callable[[Any], bool]
    expected: str


def integer(low: int, high: int = 2**31 - 1) -> Field:
    return Field(lambda value: type(value) is int and low <= value <= high, f"an integer in {low}…{high}")


def one_of(*choices: str) -> Field:
    return Field(lambda value: isinstance(value, str) and value in choices, f"one of {', '.join(choices)}")


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
    return "an integer of many digits" if type(value) is int and abs(value) >= 10**30 else repr(value)


def object_of(what: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PocketFileError(f"{what} is {brief(value)}; it must be an object")
    return value


def are_sizes(value: Any, low: int, most: int) -> bool:
    return isinstance(value, list) and len(value) <= most and all(type(n) is int and low <= n < 2**63 for n in value)


def _are_fields(value: Any, fields: dict[str, Field]) -> bool:
    return isinstance(value, dict) and set(value) == set(fields) and all(fields[k].accepts(v) for k, v in value.items())


def _are_numbers(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(type(n) in (int, float) for n in value)


_TEXT = Field(lambda value: isinstance(value, str), "a string")
_MODEL = {
    "name": _TEXT,
    "family": Field(lambda value: isinstance(value, str) and value != "", "a name"),
    "task": one_of(*TASKS),
    "labels": Field(
        lambda value: value is None or (isinstance(value, list) and all(isinstance(label, str) for label in value)),
        "a list of strings or null",
    ),
    "params": integer(0, 2**63 - 1),
    "weights": one_of("int8", "int4", "fp16", "fp32", "gguf"),
}
OUTPUTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("embed_sparse", "classify", "classify_image"), ("one",)),
    "embed": ("one", "selected"),
    "embed_image": ("one", "ragged", "grid"),
    **dict.fromkeys(("embed_tokens", "tag", "answer"), ("ragged",)),
    **dict.fromkeys(("fill_mask", "generate"), ("selected",)),
}
"""The kinds of domain that a task's result may have."""

_RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
_SIDE = integer(1, 1 << 14)
_RESIZE = ({"shortest": _SIDE}, {"height": _SIDE, "width": _SIDE})
_IMAGE = {
    "height": _SIDE,
    "width": _SIDE,
    "resize": Field(
        lambda value: value is None or any(_are_fields(value, fields) for fields in _RESIZE),
        f"null, an object with 'shortest', or one with 'height' and 'width', each {_SIDE.expected}",
    ),
    "resample": one_of(*_RESAMPLING),
    "crop": Field(lambda value: isinstance(value, bool), "true or false"),
    "channels": one_of("rgb", "bgr"),
    "scale": Field(lambda value: _are_numbers([value], 1), "a number"),
    "mean": Field(lambda value: _are_numbers(value, 3), "a list of three numbers"),
    "std": Field(lambda value: _are_numbers(value, 3) and all(value), "a list of three numbers that are not 0"),
}
_SAMPLING = {
    **dict.fromkeys(
        ("temperature", "top_p", "min_p", "repetition_penalty"),
        Field(lambda value: _are_numbers([value], 1), "a number"),
    ),
    "top_k": integer(0),
}
_GENERATE = {
    "end_token_ids": Field(lambda value: are_sizes(value, 0, 64), "a list of at most 64 integers ≥ 0"),
    "sampling": Field(lambda value: isinstance(value, dict) and set(value) <= set(_SAMPLING), "an object of settings"),
    "chat_template": Field(lambda value: value is None or isinstance(value, str), "a string or null"),
    "special_tokens": Field(
        lambda value: isinstance(value, dict) and all(isinstance(text, str) for text in value.values()),
        "an object of strings",
    ),
}
_POOLED = Field(
    lambda value: integer(0).accepts(value) or value in ("highest", "last"), "a token id, 'highest' or 'last'"
)


def check_texts(model: dict[str, Any], text: dict[str, Any]) -> None:
    """``model`` and ``text`` hold what the task needs, each field of its kind. Raises PocketFileError."""
    check_fields("model", {name: value for name, value in model.items() if name in _MODEL}, _MODEL)
    if model["task"] in ("classify_image", "embed_image"):
        check_fields("model image", object_of("model image", model.get("image")), _IMAGE)
    if model["task"] == "embed" and "pooled_token" in text:
        check_fields("text", {"pooled_token": text["pooled_token"]}, {"pooled_token": _POOLED})
    for key, low in (("max_length", 1), ("padded_length", 1), ("pad_token_id", 0), ("mask_token_id", 0)):
        if text.get(key) is not None:
            check_fields("text", {key: text[key]}, {key: integer(low)})
    if model["task"] == "generate":
        check_fields("text", {key: value for key, value in text.items() if key in _GENERATE}, _GENERATE)
        check_fields("text sampling", text["sampling"], {key: _SAMPLING[key] for key in text["sampling"]})


def check_task(model: dict[str, Any], program: _core.Program) -> None:
    """The result is what the task works on, and there is a label for each column where there are labels."""
    task, labels, columns = model["task"], model["labels"], program.output_width
    if task in OUTPUTS and program.output_kind not in OUTPUTS[task]:
        raise PocketFileError(
            f"task is {task!r}, but the graph's output has the domain {program.output_domain!r}; it needs one of kind "
            f"{' or '.join(OUTPUTS[task])!r}"
        )
    if task in ("classify", "tag", "classify_image") and labels and len(labels) != columns:
        raise PocketFileError(f"labels has {len(labels)} entries, but the graph's output {columns} columns")
    if task == "answer" and columns != 2:
        raise PocketFileError(f"task is 'answer', but the graph's output has {columns} columns; it needs 2")
