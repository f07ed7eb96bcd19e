"""Whatever reaches Program without Python's own checks is refused with a ValueError, or runs without harm."""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from helpers.kernels import aligned
from helpers.programs import batch, encoder, packed
from pocketformer import _core
from pocketformer.graph import Array, Graph

GRAPHS = {
    f"{weights}-{task}": encoder(weights, task=task, relative=True)
    for weights in ("fp32", "int8", "int4")
    for task in ("embed", "fill_mask")
}
SCALARS: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 16, 37, 257, 2**20, 2**31 - 1, 2**31, 2**32 + 36, 2**63 - 1, -(2**63), 2**64),
    *(1e308, float("nan"), float("inf"), -0.5, "", "none", "ids", "embed", "norm4", "\ud800", [], {}, [[]], [{}]),
)


def described(graph: Graph) -> tuple[dict[str, Any], dict[str, Array]]:
    ready = packed(graph)
    return ready.description(), ready.params


def attempt(graph: Any, arrays: Any) -> bool:
    """True when the program was accepted; it then runs."""
    try:
        program = _core.Program(graph, arrays)
    except ValueError:
        return False
    inputs = batch((1, 17, 3), 50)
    for rows in (None, np.array([0, 20], np.int64)):  # one of them is wrong
        for session in (_core.Session(program, "rows", 5), _core.Session(program, "columns")):
            with suppress(ValueError):  # a smaller vocabulary, a shorter maximum: refused as well
                session.run({**inputs, "selected": rows}, threads=2)
    return True


def mutated(graph: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """One random field somewhere in the graph replaced, dropped or moved; now and then an operator too."""
    graph = copy.deepcopy(graph)
    ops = graph["ops"]
    choice = rng.integers(10)
    if choice == 0:
        ops.insert(int(rng.integers(len(ops))), copy.deepcopy(ops[rng.integers(len(ops))]))
    elif choice == 1:
        del ops[rng.integers(len(ops))]
    elif choice == 2:
        i, j = rng.integers(len(ops), size=2)
        ops[i], ops[j] = ops[j], ops[i]
    else:
        place: Any = graph if choice == 3 else ops[rng.integers(len(ops))]
        if "tables" in place and choice < 7:
            place = place["tables"][rng.integers(len(place["tables"]))]
        key = list(place)[rng.integers(len(place))]
        donors = [op[key] for op in ops if key in op]
        if rng.random() < 0.05:
            del place[key]
        elif donors and rng.random() < 0.5:
            place[key] = donors[rng.integers(len(donors))]
        elif isinstance(place[key], int) and rng.random() < 0.3:
            place[key] += int(rng.integers(-2, 3))
        else:
            place[key] = SCALARS[rng.integers(len(SCALARS))]
    return graph


@pytest.mark.parametrize("name", GRAPHS)
def test_mutated_graphs(name: str) -> None:
    graph, arrays = described(GRAPHS[name])
    assert attempt(graph, arrays)
    rng = np.random.default_rng(2)
    accepted = sum(attempt(mutated(graph, rng), arrays) for _ in range(500))
    assert 0 < accepted < 300  # the harmless ones: another activation, another scale, a shorter window


@pytest.mark.parametrize("name", GRAPHS)
def test_wrong_tensors(name: str) -> None:
    graph, arrays = described(GRAPHS[name])
    other_byte = {np.dtype(np.int8): np.uint8, np.dtype(np.uint8): np.int8}
    for tensor, array in arrays.items():
        missing = {key: value for key, value in arrays.items() if key != tensor}
        assert not attempt(graph, missing), tensor
        wrong: list[Array] = [
            array.astype(np.float64),
            array.astype(array.dtype.newbyteorder(">")) if array.itemsize > 1 else array.view(other_byte[array.dtype]),
            array.reshape(1, *array.shape),
            aligned(array.reshape(-1)[: array.size // 2]),
            aligned(np.concatenate([array, array])),
            np.empty((0,), array.dtype),
            np.array(0, array.dtype),
            np.empty((*array.shape, 2), array.dtype)[..., 0],
        ]
        for index, other in enumerate(wrong):
            assert not attempt(graph, arrays | {tensor: other}), (tensor, index)


def test_wrong_types_of_argument() -> None:
    graph, arrays = described(GRAPHS["int8-embed"])
    for scalar in SCALARS:
        assert not attempt(scalar, arrays)
        assert not attempt(graph | {"ops": [scalar]}, arrays)
        assert not attempt(graph | {"ops": scalar}, arrays)
        assert not attempt(graph, arrays | {"norm.weight": scalar})
    with pytest.raises(ValueError, match="tensors has a key that is a int"):
        _core.Program(graph, arrays | {3: arrays["norm.weight"]})


def test_hostile_values_do_no_harm() -> None:
    """Extreme bytes in every weight: the answer is worthless, the process lives. Elsewhere they are refused."""
    for name in GRAPHS:
        graph, arrays = described(GRAPHS[name])
        for fill in (0x00, 0x7F, 0x80, 0xFF):
            filled = {
                key: aligned(np.full_like(array.view(np.uint8), fill).view(array.dtype))
                for key, array in arrays.items()
            }
            weights = {f"{weight}.weight": filled[f"{weight}.weight"] for weight in graph["weights"]}
            assert attempt(graph, arrays | weights)
            for key in filled.keys() - weights.keys():
                value = float(filled[key].flat[0])
                lowest, highest = (0, np.inf) if key.endswith(".scale") else (-np.inf, np.inf)
                if key.endswith(".colsum"):
                    lowest, highest = -128 * 36, 128 * 36
                if key.endswith(".codebook"):
                    lowest, highest = -127, 127
                harmless = bool(np.isfinite(value)) and lowest <= value <= highest
                assert attempt(graph, arrays | {key: filled[key]}) == harmless, (key, fill)


def test_too_wide_and_too_many() -> None:
    graph, arrays = described(GRAPHS["int8-embed"])
    many = [
        graph["ops"][0],
        *(
            {"op": "normalize", "in": f"n{i}" if i else graph["ops"][0]["out"], "out": f"n{i + 1}"}
            for i in range(16_000)
        ),
    ]
    used = {key: array for key, array in arrays.items() if key.rsplit(".", 1)[0] in graph["weights"]}
    used = {key: array for key, array in used.items() if not key.endswith(".bias")}
    graph |= {"states": []}
    assert attempt(graph | {"ops": many, "output": "n16000"}, used)
    assert not attempt(graph | {"ops": [*many, *many]}, used)
