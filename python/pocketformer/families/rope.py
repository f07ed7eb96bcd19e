"""Rotary positions as data: how fast each pair of channels turns (Su et al., arXiv 2104.09864)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import CheckpointError, UnsupportedModelError
from ..graph import Array
from ..layout import MAX_HEAD_DIM
from ..sources.source import Config


@dataclass(frozen=True)
class Rope:
    """Channels i and i + len(frequencies) of each head turn by the position times ``frequencies[i]``.

    ``name`` is that of the frequencies in the graph, where layers that share them store them once. ``factor``
    multiplies sine and cosine. A text of more than ``longest`` tokens would turn otherwise.
    """

    frequencies: tuple[float, ...]
    name: str = "rope"
    factor: float = 1.0
    longest: int | None = None

    @property
    def array(self) -> Array:
        return np.array(self.frequencies, np.float32)


def frequencies(theta: float, rotated: int) -> tuple[float, ...]:
    """θ^(−2i/rotated) for the first ``rotated`` channels of a head, in float32 steps as models are trained with."""
    return tuple(_turns(theta, rotated).tolist())


def read_rope(
    config: Config,
    theta: float,
    head_dim: int,
    *,
    kind: str | None = None,
    name: str = "rope",
    partial: bool = False,
) -> Rope:
    """The rotation that a decoder's config asks for, with whatever scaling of long contexts in its frequencies.

    transformers 5 writes ``rope_parameters``, perhaps one for each ``kind`` of layers; older ones ``rope_theta`` and
    ``rope_scaling``. ``theta`` is the architecture's default. ``partial`` says that it may turn a part of each head.

    ``longrope`` and ``dynamic`` turn otherwise once a text is longer than those in training; texts end there.

    Raises UnsupportedModelError for a scaling that is not known.
    """
    values: Any = config.values.get("rope_parameters")
    if values is None:
        values = {"rope_theta": config.values.get("rope_theta") or theta, **(config.values.get("rope_scaling") or {})}
    nested = kind is not None and isinstance(values, dict) and kind in values
    if nested:
        values = values[kind] or {}
    if not isinstance(values, dict):
        raise CheckpointError(f"{config.path}: 'rope_parameters' is {values!r:.80}; it must be an object")
    own = replace(config, values={key: value for key, value in values.items() if value is not None})
    base = own.number("rope_theta", theta)
    if base < 1:
        raise CheckpointError(f"{config.path}: 'rope_theta' is {base}; it must be at least 1")
    share = own.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0))
    config.refuse("partial_rotary_factor", share != 1 and not partial, "all channels of a head must turn")
    if head_dim > MAX_HEAD_DIM:
        raise UnsupportedModelError(f"{config.path}: heads have {head_dim} channels; the most are {MAX_HEAD_DIM}")
    rotated = int(head_dim * share)
    if share > 1 or rotated < 2 or rotated % 2:
        raise CheckpointError(
            f"{config.path}: 'partial_rotary_factor' {share} of a head of {head_dim} is {rotated} channels; they must "
            "be pairs of its own"
        )
    scaling = own.text("rope_type", own.text("type", "default"))
    if scaling not in _SCALINGS:
        raise UnsupportedModelError(f"{config.path}: 'rope_type' is {scaling!r}; supported are {', '.join(_SCALINGS)}")
    positions, trained = config.integer("max_position_embeddings"), "original_max_position_embeddings"
    if not nested and config.values.get(trained) is not None:  # counts for more than that among the parameters
        own = replace(own, values={**own.values, trained: config.values[trained]})
    turns, factor = _SCALINGS[scaling](own, _turns(base, rotated), base, positions)
    longest = own.integer(trained, positions) if scaling == "longrope" else positions if scaling == "dynamic" else None
    return Rope(tuple(turns.astype(np.float32).tolist()), name, factor, longest)


def _turns(theta: float, rotated: int) -> Array:
    exponents = np.arange(0, rotated, 2, dtype=np.float32) / np.float32(rotated)
    turns: Array = np.float32(1) / np.float32(theta) ** exponents
    return turns


def _plain(own: Config, turns: Array, theta: float, positions: int) -> tuple[Array, float]:
    return turns, 1.0


def _linear(own: Config, turns: Array, theta: float, positions: int) -> tuple[Array, float]:
    return turns / np.float32(_factor(own)), 1.0


def _llama3(own: Config, turns: Array, theta: float, positions: int) -> tuple[Array, float]:
    """Slow turns are divided, fast ones stay, those between are mixed (Llama 3.1's model card)."""
    factor, low, high = _factor(own), own.number("low_freq_factor", 1.0), own.number("high_freq_factor", 4.0)
    context = own.integer("original_max_position_embeddings", 8192)
    if not 0 < low < high:
        raise CheckpointError(
            f"{own.path}: 'low_freq_factor' {low} must be above 0 and below 'high_freq_factor' {high}"
        )
    wavelength = np.float32(2 * math.pi) / turns
    share = np.clip((context / wavelength - low) / (high - low), 0, 1)
    return (1 - share) * turns / factor + share * turns, 1.0


def _yarn(own: Config, turns: Array, theta: float, positions: int) -> tuple[Array, float]:
    """Peng et al., arXiv 2309.00071."""
    factor, context = _factor(own), own.integer("original_max_position_embeddings", positions)
    pairs = len(turns)

    def pair_of(rotations: float) -> float:
        return 2 * pairs * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_of(own.number("beta_fast", 32.0)), pair_of(own.number("beta_slow", 1.0))
    if own.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    ramp = np.clip((np.arange(pairs) - low) / max(high - low, 1e-3), 0, 1)
    return turns / factor * ramp + turns * (1 - ramp), _attention_factor(own, factor)


def _longrope(own: Config, turns: Array, theta: float, positions: int) -> tuple[Array, float]:
    """Ding et al., arXiv 2402.13753: a divisor for each pair of channels, one list of them for texts of trained length.

    The other list is for longer ones, all of whose tokens turn by it.
    """
    divisors = own.values.get("short_factor")
    if not isinstance(divisors, list) or len(divisors) != len(turns) or not all(_is_positive(d) for d in divisors):
        raise CheckpointError(
            f"{own.path}: the rope's 'short_factor' is {divisors!r:.80}; it must be {len(turns)} numbers above 0"
        )
    context = own.integer("original_max_position_embeddings", positions)
    factor = own.number("factor", positions / context)
    said = own.number("attention_factor", 0.0)
    if not said:
        said = math.sqrt(1 + math.log(factor) / math.log(context)) if factor > 1 and context > 1 else 1.0
    return turns / np.array(divisors, np.float32), said


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


def _attention_factor(own: Config, factor: float) -> float:
    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    said, one, all_dims = (own.number(key, 0.0) for key in ("attention_factor", "mscale", "mscale_all_dim"))
    if said:
        return said
    return magnitude(one) / magnitude(all_dims) if one and all_dims else magnitude(1.0)


def _factor(own: Config) -> float:
    factor = own.number("factor", 0.0)
    if factor < 1:
        raise CheckpointError(f"{own.path}: the rope's 'factor' is {factor}; it must be at least 1")
    return factor


_SCALINGS = {
    "default": _plain,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "dynamic": _plain,
}
