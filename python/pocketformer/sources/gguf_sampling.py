"""How a GGUF file wants its next tokens drawn: ``general.sampling`` of its metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, UnsupportedModelError
from .gguf_reader import GgufHeader

_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
_NO_SAMPLING: dict[str, tuple[Any, ...]] = {
    "xtc_probability": (0, 0.0),
    "mirostat": (0,),
    "sequence": (),
    "penalty_last_n": (-1,),
}
"""Settings that would change texts and are not honoured, with what changes nothing."""
_NO_EFFECT = ("xtc_threshold", "mirostat_tau", "mirostat_eta")
"""Settings of those, which alone change nothing."""


def read_sampling(header: GgufHeader) -> dict[str, float]:
    """``general.sampling`` as docs/format.md's ``sampling``: of its temperature, 0 means the likeliest token.

    Raises:
        CheckpointError: a setting is no number, or outside its range.
        UnsupportedModelError: a setting would change texts and is not honoured.
    """
    prefix, path = "general.sampling.", header.path
    sampling: dict[str, float] = {}
    for key, value in header.metadata.items():
        name = key.removeprefix(prefix)
        if name == key or name in _NO_EFFECT:
            continue
        if name in _SAMPLING:
            sampling[_SAMPLING[name]] = _drawn(path, key, value, whole=name == "top_k")
        elif not any(type(value) is type(known) and value == known for known in _NO_SAMPLING.get(name, ())):
            raise UnsupportedModelError(
                f"{path}: {key} is {value!r:.80}; it would change texts and is not honoured: remove it to go without"
            )
    for name in ("top_p", "min_p"):
        if sampling.get(name, 0.0) > 1 or (name == "top_p" and sampling.get(name) == 0):
            raise CheckpointError(f"{path}: {prefix}{name} is {sampling[name]}; it must lie in 0…1")
    if sampling.get("repetition_penalty") == 0:
        raise CheckpointError(f"{path}: {prefix}penalty_repeat is 0; it must be above 0")
    if sampling.keys() & {"top_k", "top_p", "min_p"}:
        sampling.setdefault("temperature", 1.0)
    return sampling


def _drawn(path: Path, key: str, value: object, *, whole: bool) -> float:
    if type(value) is not int and (whole or type(value) is not float):
        kind = "an integer" if whole else "a number"
        raise CheckpointError(f"{path}: {key} is {value!r:.80}; it must be {kind} of at least 0")
    if not 0 <= value < np.finfo(np.float32).max:
        raise CheckpointError(f"{path}: {key} is {value!r}; it must be at least 0")
    return value if whole else float(str(np.float32(value)))
