"""How much units of channels matter by gradients, with torch: what first and second order predict of their removal.

A model without labels has no loss, so one is made: of an output y with random signs r, r·y. The mean square of its
gradients is the diagonal of JᵀJ, which is the Fisher information, and the Hessian, of ½‖y − y₀‖² at y₀.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..graph import SELECTED, Array, Graph
from .calibration import Calibration
from .channels import Channels, Space
from .importance import GRADIENTS, sum_of_units
from .twin import Tensor, Twin

SEQUENCES = 128
"""Of the calibration, whose gradients are taken one by one."""

Loss = Callable[[Tensor, int], Tensor]
"""The loss of the output [rows, width] of one sequence, and the place of this among the sequences."""


def gradient_scores(
    criterion: str,
    graph: Graph,
    channels: Channels,
    spaces: Iterable[Space],
    calibration: Calibration,
    loss: Loss | None = None,
) -> dict[str, Array]:
    """Scores [units] of each of ``spaces``, by name, summed over all parameters that a unit holds.

    ``taylor`` is E|w·g| (Molchanov et al., arXiv 1906.10771) and ``hessian`` ½·w²·E[g²], the diagonal Fisher
    information in the place of the second derivative (Theis et al., arXiv 1801.05787), with g the gradient of ``loss``
    on one sequence: by default of the model's output itself. At most the first ``SEQUENCES`` of ``calibration`` are
    read. Raises ImportError without torch, and ValueError for another criterion.
    """
    if criterion not in GRADIENTS:
        raise ValueError(f"criterion is {criterion!r}; of gradients there are {', '.join(GRADIENTS)}")
    spaces = list(spaces)
    units = np.concatenate([space.units for space in spaces])
    wanted = {name for (name, _), labels in channels.axes.items() if np.isin(labels, units).any()}
    twin = Twin(graph, wanted)
    torch, params = twin.torch, {name: twin.params[name] for name in sorted(wanted)}
    sums = {name: torch.zeros_like(param) for name, param in params.items()}
    count = min(len(calibration.lengths), SEQUENCES)
    signs = torch.Generator().manual_seed(0)
    for index, feeds in zip(range(count), sequences(graph, calibration), strict=False):
        output = twin(feeds)
        if loss is None:
            value = (output * (torch.randint(0, 2, output.shape, generator=signs) * 2 - 1)).sum()
        else:
            value = loss(output, index)
        found = torch.autograd.grad(value, list(params.values()), allow_unused=True)
        with torch.no_grad():
            for (name, param), gradient in zip(params.items(), found, strict=True):
                if gradient is not None:
                    moved = param * gradient
                    sums[name] += moved.abs() if criterion == "taylor" else moved.square() / 2
    means = {name: (total / count).double().numpy() for name, total in sums.items()}
    return {space.name: sum_of_units(channels, space, means.__getitem__) for space in spaces}


def sequences(graph: Graph, calibration: Calibration) -> Iterable[dict[str, Any]]:
    """What ``reference.run`` takes, for one sequence after the other; of the rows that a caller may select, one at
    random."""
    root = next(entry for entry in graph.domains if "of" not in entry)
    rng = np.random.default_rng(0)
    for part, lengths in calibration.chunks(1):
        feeds: dict[str, Any] = {name: array[part] for name, array in calibration.inputs.items()}
        if root["kind"] == "ragged":
            feeds[root["name"]] = np.array([0, lengths[0]])
        if any(entry["kind"] == "selected" for entry in graph.domains):
            feeds[SELECTED] = rng.integers(0, lengths[0], 1)
        yield feeds
