"""fp16 weights: a model computes what an fp32 model of the widened weights does, bit for bit, and is half as large."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.graphs import MODEL, TEXT, TOKENIZER_JSON, tiny_decoder, tiny_graph
from helpers.kernels import aligned
from helpers.programs import batch
from pocketformer import _core, compression, reference
from pocketformer.cli import main
from pocketformer.compression import Precision, PruneOptions, QuantizeOptions, compress_checkpoint, compress_graph
from pocketformer.compression.budget import Planner
from pocketformer.compression.pipeline import predicted_bytes
from pocketformer.compression.plan import read_plan
from pocketformer.graph import Array, Graph
from pocketformer.packing import stored_weights
from pocketformer.pocketfile import read_pocket
from pocketformer.sources.huggingface import Checkpoint

GRAPHS = {
    "embed": lambda: tiny_graph(),
    "fill_mask": lambda: tiny_graph(task="fill_mask", relative=True),
    "decoder": lambda: tiny_decoder(vocab=101),
}
every_isa = pytest.mark.parametrize("isa", _core.isas())


def widened(graph: Graph, names: set[str]) -> Graph:
    """``graph`` with the weights ``names`` rounded to fp16, as float32."""
    params = dict(graph.params)
    for name in names:
        params[f"{name}.weight"] = params[f"{name}.weight"].astype(np.float16).astype(np.float32)
    return replace(graph, params=params)


def halves(graph: Graph) -> set[str]:
    return {name for name, facts in graph.weights.items() if facts["format"] == "f16"}


def feeds(graph: Graph, lengths: tuple[int, ...] = (1, 40, 2, 7)) -> dict[str, Any]:
    given = batch(lengths)
    names = {entry["name"] for entry in (*graph.inputs, *graph.domains)}
    if "selected" in names:
        given["selected"] = np.cumsum(lengths).astype(np.int64) - 1
    return {name: array for name, array in given.items() if name in names}


def program(packed: Graph, isa: str = "") -> _core.Program:
    params = {name: aligned(array) for name, array in packed.params.items()}
    return _core.Program(packed.description(), params, isa)


def run(packed: Graph, isa: str, inputs: dict[str, Any]) -> Array:
    result: Array = _core.Session(program(packed, isa)).run(inputs, 1)
    return result


@every_isa
@pytest.mark.parametrize("kind", GRAPHS)
def test_a_model_computes_what_its_widened_weights_do(kind: str, isa: str) -> None:
    graph = GRAPHS[kind]()
    packed, report = compress_graph(graph, "fp16", QuantizeOptions(fp32_rows=0))
    assert halves(packed) == set(stored_weights(graph))
    assert {packed.params[f"{name}.weight"].dtype for name in halves(packed)} == {np.dtype(np.float16)}
    assert all(state["dtype"] == "fp32" for state in packed.states)
    exact, _ = compress_graph(widened(graph, halves(packed)), "fp32")
    inputs = feeds(graph)
    if kind == "decoder":
        inputs = {name: array for name, array in inputs.items() if name != "types"}
    ours, expected = (run(each, isa, inputs) for each in (packed, exact))
    assert ours.tobytes() == expected.tobytes()
    np.testing.assert_allclose(ours, reference.run(packed, inputs), atol=2e-4 * np.abs(ours).max())
    errors = [tensor.error for tensor in report.tensors if tensor.precision == "f16"]
    assert len(errors) == len(halves(packed))
    assert all(1e-5 < error < 3e-4 for error in errors)


def test_small_tables_and_final_linears_stay_fp32() -> None:
    packed, _ = compress_graph(tiny_graph(), "fp16")
    assert {name for name, facts in packed.weights.items() if facts["format"] == "f32"} == {"positions", "types"}


def test_a_weight_that_fp16_does_not_reach_is_refused_by_name(tmp_path: Path) -> None:
    graph = tiny_graph()
    graph.params["layer1.up.weight"][3, 5] = -65520
    loaded = Checkpoint(graph, {**MODEL}, TEXT, TOKENIZER_JSON)
    with pytest.raises(
        ValueError, match=r"the weight 'layer1.up' holds 65520, more than the 65504 of fp16; give it 32"
    ):
        compress_checkpoint(loaded, tmp_path / "m.pocket", "fp16")
    assert not (tmp_path / "m.pocket").exists()
    options = QuantizeOptions(precision={"layer1.up": Precision(32)})
    assert compress_checkpoint(loaded, tmp_path / "m.pocket", "fp16", options=options).weights == "fp16"
    graph.params["layer1.up.weight"][3, 5] = -65519
    compress_checkpoint(loaded, tmp_path / "m.pocket", "fp16")
    stored = read_pocket(tmp_path / "m.pocket").graph.params["layer1.up.weight"]
    assert np.abs(stored).max() == 65504


def checkpoint(ffn: int = 41) -> Checkpoint:
    return Checkpoint(tiny_graph(ffn=ffn), {**MODEL}, TEXT, TOKENIZER_JSON)


def test_selective_fp16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named in a plan, single weights stay floats among integers; what is around them does not change."""
    loaded = checkpoint()
    monkeypatch.setattr("pocketformer.sources.huggingface.load_checkpoint", lambda folder, tower=None: loaded)
    plan, pocket = tmp_path / "plan.json", tmp_path / "m.pocket"
    named = {"layer1.down": {"bits": 16}, "words": {"bits": 16}}
    plan.write_text(json.dumps({"version": 1, "weights": "int8", "layers": {}, "bits": named}))
    options = QuantizeOptions(random_tokens=0)
    report = compression.compress("model", pocket, plan=plan, options=options)
    graph = read_pocket(pocket).graph
    assert Counter(facts["format"] for facts in graph.weights.values()) == {"f16": 2, "i8": 7, "f32": 2}
    assert halves(graph) == set(named)
    assert report.file_bytes == predicted_bytes(loaded, "int8", read_plan(plan, loaded.graph).options(options))
    plain, _ = compress_graph(loaded.graph, "int8", options)
    for name, array in plain.params.items():
        if name.rpartition(".")[0] not in named and name in graph.params:
            assert graph.params[name].tobytes() == array.tobytes(), name


def test_the_cost_model_counts_its_bytes() -> None:
    graph = tiny_graph()
    weights = {}
    for kind in ("fp16", "fp32"):
        packed, _ = compress_graph(graph, kind)
        weights[kind] = sum(step["weight_bytes"] for step in program(packed).work([8]))
    assert weights["fp32"] == 2 * weights["fp16"] > 0


def test_a_budget_makes_integers_of_what_loses_least(tmp_path: Path) -> None:
    """Of 64 channels a layer none can leave."""
    loaded, prune = checkpoint(64), PruneOptions("wanda", tokens=256)
    planner = Planner(loaded, "fp16", prune, calibration=[[i % 100 for i in range(40)]] * 20)
    whole = predicted_bytes(loaded, "fp16")
    plan = planner.for_budget(whole - 6000)
    assert {entry.bits for entry in plan.bits.values()} <= {3, 4, 5, 6, 8}
    assert 0 < len(plan.bits) < len(stored_weights(loaded.graph))
    assert all(layer.width == layer.of for layer in plan.layers.values())
    report = compress_checkpoint(loaded, tmp_path / "m.pocket", "fp16", options=plan.options(QuantizeOptions()))
    assert report.file_bytes == plan.file_bytes <= whole - 6000
    assert {facts["format"] for facts in read_pocket(tmp_path / "m.pocket").graph.weights.values()} >= {"f16", "f32"}


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = checkpoint()
    monkeypatch.setattr("pocketformer.sources.huggingface.load_checkpoint", lambda folder, tower=None: loaded)
    pocket = str(tmp_path / "m.pocket")
    assert main(["compress", "model", "-o", pocket, "--weights", "fp16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"] == "fp16"
    model = read_pocket(Path(pocket))
    assert model.model["weights"] == "fp16"
    assert {"layer0.up", "layer1.qkv", "words"} <= halves(model.graph)
    assert main(["compress", "model", "-o", pocket, "--weights", "fp16", "--calibration", "texts.txt"]) != 0
    assert "leave calibration out" in capsys.readouterr().err
