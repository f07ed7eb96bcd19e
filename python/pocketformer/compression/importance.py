"""How much a unit of channels matters: the higher the score, the later it is removed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..graph import Array, Graph
from .channels import Channels, Space
from .refit import damped

ROUNDS = 64
"""In so many rounds OBS removes its units: those that leave together are judged as if each left alone."""


@dataclass(frozen=True)
class Seen:
    """Statistics of the rows that some readers of a space are multiplied by.

    ``rows`` is how many there were; ``total`` [K] is Σ|x| and ``moments`` [K, K] Σ xᵀx, not rotated. ``scores``
    [units] are those of the space whose first reader this is, where gradients gave them.
    """

    rows: int
    total: Array
    moments: Array
    scores: Array | None = None


Parts = Sequence[tuple[Array, Seen]]
"""The weights that read the same rows, below each other in float64 [N, K], and what is known of these rows."""


def obs(parts: Parts, space: Space, count: int) -> Array:
    """Optimal brain surgeon: what removing a unit costs after all that is left has been refitted.

    With the inverse G of the damped moments, the damage of the columns B is tr(W_B · G_BB⁻¹ · W_Bᵀ), and the refitted
    weights of the rest, and their inverse moments, follow from it in one update (Hassibi and Stork 1993; in blocks as
    ZipLM, arXiv 2302.04089). Units leave until ``count`` are left; those that left later score higher.
    """
    weights = [weight.copy() for weight, _ in parts]
    inverses = [np.linalg.inv(damped(seen.moments)) for _, seen in parts]
    columns, left = space.columns, np.arange(len(space.columns))
    scores = np.empty(len(columns))
    step = -(-(len(left) - count) // ROUNDS) or 1

    def damage() -> Array:
        return _total(_damage(*part, columns) for part in zip(weights, inverses, strict=True))

    gone, useless = 0, np.empty(0, np.int64)
    while len(left) > count:
        worst = np.argsort(damage(), kind="stable")[: min(step, len(left) - count)]
        scores[left[worst]] = gone + np.arange(len(worst)) - len(scores)  # below every score of those that stay
        gone += len(worst)
        out = columns[worst].ravel()
        for weight, inverse in zip(weights, inverses, strict=True):
            solved = np.linalg.solve(inverse[np.ix_(out, out)], inverse[out])
            weight -= weight[:, out] @ solved
            inverse -= inverse[:, out] @ solved
        left, columns = np.delete(left, worst), np.delete(columns, worst, axis=0)
        useless = np.append(useless, out)
        if 4 * len(useless) > weights[0].shape[1]:  # their updates would be most of the work
            stay = np.delete(np.arange(weights[0].shape[1]), useless)
            weights = [weight[:, stay] for weight in weights]
            inverses = [inverse[np.ix_(stay, stay)] for inverse in inverses]
            columns, useless = np.searchsorted(stay, columns), useless[:0]
    scores[left] = damage()
    return scores


def wanda(parts: Parts, space: Space, count: int) -> Array:
    """Σ |w|·‖x‖ over the columns of a unit (Wanda, arXiv 2306.11695, summed over its rows)."""
    return _total(
        _by_unit(np.abs(weight).sum(axis=0) * np.sqrt(np.diag(seen.moments)), space) for weight, seen in parts
    )


def activation(parts: Parts, space: Space, count: int) -> Array:
    """Mean |x| (EdgeFlex, arXiv 2512.19741)."""
    return _total(_by_unit(seen.total / max(seen.rows, 1), space) for _, seen in parts)


CRITERIA: Mapping[str, Callable[[Parts, Space, int], Any]] = {"obs": obs, "wanda": wanda, "activation": activation}
"""Criteria that judge the columns of the readers by what they were multiplied by."""
NORMS: Mapping[str, int] = {"l1": 1, "l2": 2}
"""Criteria that take a norm of all parameters of a unit; they need no profile."""
GRADIENTS = ("taylor", "hessian")
"""Criteria of gradients, which torch computes: see gradients."""
NAMES = (*CRITERIA, *NORMS, *GRADIENTS)


def importance(
    criterion: str, graph: Graph, channels: Channels, space: Space, seen: Mapping[str, Seen], count: int
) -> Array:
    """Scores [units] of ``space``, of which ``count`` are to stay; ``seen`` has the statistics of each reader.

    Raises ValueError for an unknown criterion, and without statistics for one that needs them.
    """
    if criterion in NORMS:
        order = NORMS[criterion]
        sums = sum_of_units(channels, space, lambda name: np.abs(np.asarray(graph.params[name], np.float64)) ** order)
        norms: Array = sums ** (1 / order)
        return norms
    if criterion in GRADIENTS:
        known = seen[space.name].scores if space.name in seen else None
        if known is None:
            raise ValueError(f"criterion is {criterion!r}, which needs the gradients of {space.name}; collect them")
        return known
    if criterion not in CRITERIA:
        raise ValueError(f"criterion is {criterion!r}; it must be one of {', '.join(NAMES)}")
    missing = [name for name in space.readers if name not in seen]
    if missing:
        raise ValueError(f"criterion is {criterion!r}, which needs statistics of what {missing[0]} reads; use l1 or l2")
    alike: dict[int, list[str]] = {}
    for name in space.readers:
        alike.setdefault(id(seen[name]), []).append(name)
    parts = [(_stacked(graph, names), seen[names[0]]) for names in alike.values()]
    scores: Array = CRITERIA[criterion](parts, space, count)
    return scores


def _stacked(graph: Graph, names: Sequence[str]) -> Array:
    return np.concatenate([np.asarray(graph.params[f"{name}.weight"], np.float64) for name in names])


def _total(arrays: Iterable[Array]) -> Array:
    result: Array = np.sum(list(arrays), axis=0)
    return result


def _damage(weight: Array, inverse: Array, columns: Array) -> Array:
    if columns.shape[1] == 1:
        flat = columns[:, 0]
        result: Array = np.square(weight[:, flat]).sum(axis=0) / inverse[flat, flat]
        return result
    blocks = inverse[columns[:, :, None], columns[:, None, :]]
    parts = weight[:, columns].transpose(1, 2, 0)
    damage: Array = np.einsum("ukn,ukn->u", parts, np.linalg.solve(blocks, parts))
    return damage


def _by_unit(scores: Array, space: Space) -> Array:
    result: Array = scores[space.columns].sum(axis=1)
    return result


def sum_of_units(channels: Channels, space: Space, values: Callable[[str], Array]) -> Array:
    """[units]: the sum of ``values``, which gives those of a parameter by name, over what a unit of ``space`` holds."""
    sums = np.zeros(len(space.units))
    for (name, axis), labels in channels.axes.items():
        where = np.searchsorted(space.units, labels)
        inside = space.units[np.minimum(where, len(space.units) - 1)] == labels
        if inside.any():
            array = values(name)
            of = array.sum(axis=1 - axis) if array.ndim == 2 else array
            np.add.at(sums, where[inside], of[inside])
    return sums
