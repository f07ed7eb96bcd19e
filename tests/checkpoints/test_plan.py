"""Plans and budgets: exact bytes, never above the limit, the cheapest channels first; and the page that reports it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.checkpoints import tiny_checkpoint
from helpers.graphs import tiny_graph
from pocketformer import compression
from pocketformer.cli import main
from pocketformer.compression import Precision, PruneOptions, compress_checkpoint, make_plan
from pocketformer.compression.budget import Planner
from pocketformer.compression.knapsack import BINS, cheapest
from pocketformer.compression.limits import parse_size
from pocketformer.compression.options import QuantizeOptions
from pocketformer.compression.page import check_charts
from pocketformer.compression.pipeline import predicted_bytes
from pocketformer.compression.plan import carry_out, plan_by_shares, read_plan
from pocketformer.compression.sensitivity import Curve, fewer_bits
from pocketformer.pocketfile import read_pocket
from pocketformer.sources.huggingface import Checkpoint

FAST = PruneOptions("wanda", tokens=512)


@pytest.fixture(scope="module")
def planner() -> Planner:
    return Planner(tiny_checkpoint(), prune=FAST)


@pytest.mark.parametrize("weights", ["int8", "fp32"])
@pytest.mark.parametrize("ffn", [0.0, 0.5])
def test_bytes_are_predicted_exactly(weights: str, ffn: float, tmp_path: Path) -> None:
    loaded = tiny_checkpoint()
    pruned, _ = carry_out(loaded, plan_by_shares(loaded.graph, weights, ffn), PruneOptions("l2", refit=False))
    report = compress_checkpoint(pruned, tmp_path / "m.pocket", weights)
    assert predicted_bytes(pruned, weights) == report.file_bytes == (tmp_path / "m.pocket").stat().st_size


def limit_of(planner: Planner, share: float) -> int:
    """Bytes between the smallest file and that of the whole model."""
    least = planner.smallest().file_bytes or 0
    return least + int(share * (predicted_bytes(planner.loaded, "int8") - least))


@pytest.mark.slow
@pytest.mark.parametrize("share", [1.0, 0.9, 0.4, 0.0])
def test_a_file_is_never_above_its_budget(planner: Planner, share: float, tmp_path: Path) -> None:
    loaded = planner.loaded
    limit = limit_of(planner, share)
    plan = planner.for_budget(limit)
    pruned, results = carry_out(loaded, plan, FAST, planner.profiler)
    options = plan.options(QuantizeOptions())
    report = compress_checkpoint(pruned, tmp_path / "m.pocket", options=options)
    assert plan.file_bytes == report.file_bytes <= limit
    assert {result.name for result in results} == {n for n, layer in plan.layers.items() if layer.width < layer.of}
    assert all(width % 64 == 0 for name, width in plan.widths.items() if name in planner.spaces)
    assert (plan.error == 0) == (share == 1) == (not results and not plan.bits)
    stored = read_pocket(tmp_path / "m.pocket").graph.weights
    assert {name: stored[name]["format"] for name in plan.bits} == {n: f"i{e.bits}" for n, e in plan.bits.items()}


@pytest.mark.slow
def test_smaller_files_lose_more_and_no_layer_more_than_it_must(planner: Planner) -> None:
    errors = [planner.for_budget(limit_of(planner, share)).error for share in (1, 0.9, 0.6, 0.3, 0)]
    assert errors == sorted(errors)
    assert errors[0] == 0 < errors[1]
    plan = planner.for_budget(limit_of(planner, 0.6))
    assert plan.error == pytest.approx(
        sum(entry.error or 0 for entry in (*plan.layers.values(), *plan.bits.values())), rel=1e-9
    )


def test_what_linears_lose_with_more_bits_follows_from_four(planner: Planner) -> None:
    steps = planner.knobs()["bits of layer0.down"]
    assert [step.value for step in steps] == [Precision(), *(Precision(bits, 64) for bits in (6, 5, 4)), Precision(4)]
    assert [step.error / steps[3].error for step in steps] == pytest.approx([0, 0.08, 0.32, 1, 1.24])
    saved = [0, 0.21875, 0.34375, 0.46875, 0.5]
    assert [step.bytes / (256 * 36) for step in steps] == pytest.approx(saved)
    assert [step.value for step in planner.knobs()["bits of layer0.up"]] == [Precision(), Precision(4)]


def test_linears_keep_their_levels_where_the_table_is_fixed(planner: Planner) -> None:
    fixed = Planner(tiny_checkpoint(), options=QuantizeOptions(table_bits=5), prune=FAST)
    assert fixed._levels == {name: of for name, of in planner._levels.items() if name != "words"}
    assert "words" in planner._levels


def test_groups_divide_what_pruning_leaves() -> None:
    graph = tiny_graph(hidden=128, ffn=256, layers=1)
    chosen = QuantizeOptions().precisions(graph)
    levels = fewer_bits(graph, chosen, 64, {"layer0.down"})
    assert Precision(5, 128) in levels["layer0.up"]
    assert {level.group for level in levels["layer0.down"]} == {64, 0}
    assert {level.group for level in fewer_bits(graph, chosen, 128, {"layer0.down"})["layer0.down"]} == {64, 0}


def test_no_plan_of_a_file_loses_less() -> None:
    """All settings of a few knobs, tried one by one."""
    rng = np.random.default_rng(0)
    knobs = [[(float(rng.integers(0, 1000)), float(rng.random())) for _ in range(5)] for _ in range(6)]
    for limit in (1500.0, 2500.0, 4000.0, 9000.0):
        sums = [(sum(size for size, _ in s), sum(error for _, error in s)) for s in product(*knobs)]
        best = min((error for size, error in sums if size <= limit), default=None)
        found = cheapest(knobs, limit)
        if best is None or found is None:
            assert found is best
            continue
        assert sum(knob[i][0] for knob, i in zip(knobs, found, strict=True)) <= limit
        assert sum(knob[i][1] for knob, i in zip(knobs, found, strict=True)) == pytest.approx(best)


def test_what_fits_exactly_is_taken_and_nothing_that_is_larger() -> None:
    ten = [(10.0, 0.0), (6.0, 1.0), (1.0, 5.0)]
    assert [cheapest([ten], limit) for limit in (0.5, 1, 5.9, 6, 9.9, 10)] == [None, [2], [2], [1], [1], [0]]
    assert cheapest([[(0.3, 0.0), (0.1, 1.0)], [(0.2, 0.0)]], 0.5) == [0, 0]  # by 3e-17 too large, as floats add up
    half = [(BINS / 2, 0.0), (0.0, 1.0)]
    assert cheapest([half, half], BINS) == [0, 0]
    more = [(BINS / 2 + 0.4, 0.0), (0.0, 1.0)]  # two of them are four fifths of a step too large
    assert sorted(cheapest([more, more], BINS) or []) == [0, 1]
    assert cheapest([[(3.0, 2.0)], [(4.0, 1.0)]], 7) == [0, 0]
    assert cheapest([[(1.0, 0.0), (0.0, 1.0)], [(float(BINS), 0.0), (0.0, 5.0)]], BINS) == [1, 0]


def test_what_is_left_of_a_budget_buys_nothing_more(planner: Planner) -> None:
    """No single knob of a plan can be turned back within the limit: what was reckoned are the bytes of files."""
    for share in (0.3, 0.6, 0.9):
        limit = limit_of(planner, share)
        plan = planner.for_budget(limit)
        assert plan.file_bytes is not None
        assert plan.file_bytes <= limit
        for name, entry in plan.bits.items():
            options = plan.options(QuantizeOptions())
            finer = Precision() if entry.bits == 6 else Precision(entry.bits, 64) if entry.group != 64 else None
            if finer is None or not any(step.value == finer for step in planner.knobs()[f"bits of {name}"]):
                continue
            changed = replace(options, precision={**options.precision, name: finer})
            graph = carry_out(planner.loaded, plan, PruneOptions("l2", refit=False))[0]
            assert predicted_bytes(graph, "int8", changed) > limit, name


def test_plans_are_judged_by_what_nothing_was_fitted_to() -> None:
    """A fit to few rows looks as good on them as it is not: pruning seemed to cost a tenth of what it does."""
    samples = [[i, *range(2, 10 + i % 5)] for i in range(50)] * 8
    made = Planner(tiny_checkpoint(), prune=FAST, calibration=samples)
    assert made.profiler is not None
    assert made.profiler.calibration is not None
    assert made.profiler.calibration.rows + made.sample.rows == sum(map(len, samples))
    own = Planner(tiny_checkpoint(), prune=FAST)
    assert own.profiler is not None
    assert own.profiler.calibration is not None
    assert not np.array_equal(own.profiler.calibration.inputs["ids"][:500], own.sample.inputs["ids"][:500])


def test_an_impossible_budget_is_refused_with_the_smallest(planner: Planner) -> None:
    least = planner.smallest().file_bytes
    with pytest.raises(
        ValueError, match=f"the budget is 1,000 bytes, but the smallest file of this model has {least:,}"
    ):
        planner.for_budget(1000)
    assert planner.for_budget(least or 0).file_bytes == least
    with pytest.raises(ValueError, match="give at least that"):
        planner.for_budget(least - 1)


def test_curves_are_interpolated() -> None:
    curve = Curve((100, 50, 25), (0.0, 1.0, 3.0))
    assert [curve.at(width) for width in (100, 75, 50, 37.5, 25, 0)] == [0, 0.5, 1, 2, 3, 5]


@pytest.mark.parametrize(
    ("text", "size"), [("14MB", 14_000_000), ("0.5 gb", 500_000_000), ("900KB", 900_000), ("77", 77), ("8B", 8)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-3MB", "0", "14MiB", "nan", "inf", "1e99MB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)


def test_a_plan_is_saved_edited_and_followed(loaded: Checkpoint, tmp_path: Path) -> None:
    path, pocket = tmp_path / "plan.json", tmp_path / "m.pocket"
    make_plan("model", ffn=0.25, heads=0.4).save(path)
    content = json.loads(path.read_text())
    assert {name: entry["width"] for name, entry in content["layers"].items()} == {
        "layer0.out": 52,
        "layer0.down": 192,
        "layer1.out": 52,
        "layer1.down": 192,
    }
    content["layers"]["layer1.down"]["width"] = 64
    del content["layers"]["layer0.out"]
    path.write_text(json.dumps(content))
    report = compression.compress("model", pocket, plan=path, prune=FAST)
    weights = read_pocket(pocket).graph.weights
    assert [weights[f"layer{i}.down"]["k"] for i in (0, 1)] == [192, 64]
    assert [weights[f"layer{i}.out"]["k"] for i in (0, 1)] == [78, 52]
    assert report.stages[0].name == "prune"
    assert report.stages[0].before > report.stages[0].after == report.stages[1].before
    assert [(p.name, p.after) for p in report.pruned] == [("layer0.down", 192), ("layer1.out", 52), ("layer1.down", 64)]
    assert read_pocket(pocket).model["params"] == sum(int(np.prod(tensor.shape)) for tensor in report.tensors)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            {"layer7.down": {"width": 64}},
            "plan.json: 'layer7.down' has no channels that can be pruned; those are of la",
        ),
        ({"layer0.down": {"width": 300}}, "plan.json: layer0.down cannot have 300 columns"),
        ({"layer0.down": {"width": 0}}, "cannot have 0 columns"),
        ({"layer0.out": {"width": 27}}, "it must be a multiple of 26"),
        ({"layer0.down": {"width": "64"}}, "the width of 'layer0.down' is '64'; it must be an integer"),
        ({"layer0.down": 64}, "the width of 'layer0.down' is None"),
        ({"layer0.down": {"width": 64}, "bits": {"nothing": {"bits": 4}}}, "names 'nothing', which is no weight"),
        (
            {"layer0.down": {"width": 64}, "bits": {"layer0.up": {"bits": 7}}},
            "'layer0.up' is 7 bits; a linear has one of 4, 5, 6, 8, 16, 32",
        ),
        (
            {"layer0.down": {"width": 64}, "bits": {"layer0.up": {"bits": 5}}},
            "'layer0.up' is 5 bits without groups; use 8 or 4 bits",
        ),
        (
            {"layer0.down": {"width": 64}, "bits": {"layer0.down": {"bits": 6}}},
            "'layer0.down' is 6 bits without groups; give it groups: one of 16, 32, 64, 128 divides its 256 inputs",
        ),
        ({"bits": {"layer0.up": {"bits": "4"}}}, "it must have integers"),
        (None, "is no plan of version 1"),
        ("{", "is no plan .* make one with --dry-run"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(edit: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    bits = edit.pop("bits", {}) if isinstance(edit, dict) else {}
    path.write_text(edit if isinstance(edit, str) else json.dumps({"version": 1, "layers": edit, "bits": bits}))
    with pytest.raises(ValueError, match=message):
        read_plan(path, tiny_checkpoint().graph)


@pytest.mark.slow
def test_the_command(loaded: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pocket, plan, page = (tmp_path / name for name in ("m.pocket", "plan.json", "report.html"))
    limit = int(0.9 * predicted_bytes(loaded, "int8"))
    command = ["compress", "model", "-o", str(pocket), "--criterion", "wanda"]
    assert main([*command, "--budget", str(limit), "--plan", str(plan), "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["plan"]
    assert json.loads(plan.read_text()) == planned
    assert planned["file_bytes"] <= limit
    assert not pocket.exists()
    assert main([*command, "--plan", str(plan), "--report", str(page)]) == 0
    assert pocket.stat().st_size == planned["file_bytes"]
    output, text = capsys.readouterr().out, page.read_text()
    assert "prune" in output
    assert text.count("<svg") == 3
    assert not any(word in text for word in ("<script", "src=", "@import"))  # it needs nothing else
    assert all(name in text for name in (*planned["layers"], "layer0.qkv.weight"))
    assert main([*command, "--prune-ffn", "0.5"]) == 0
    assert "loss at the output" in capsys.readouterr().out
    assert read_pocket(pocket).graph.weights["layer0.down"]["k"] == 128


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dry-run"], "--dry-run makes a plan; say what of"),
        (["--budget", "14 apples"], "'14 APPLES' is no size"),
        (["--budget", "1KB"], "the budget is 1,000 bytes, but the smallest"),
        (["--budget", "1MB", "--prune-ffn", "0.5"], "leave one out"),
        (["--plan", "/nowhere.json"], "/nowhere.json: No such file"),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, loaded: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compress", "model", "-o", str(tmp_path / "m.pocket"), *arguments]) == 1
    error = capsys.readouterr().err
    assert message.lower() in error.lower()
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("*.pocket"))


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'pocketformer\[report\]'"):
        check_charts()


def test_a_plan_and_a_budget_are_too_much(loaded: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave one out"):
        compression.compress("model", tmp_path / "m.pocket", plan=plan_by_shares(loaded.graph, "int8"), budget="1MB")
    assert asdict(plan_by_shares(loaded.graph, "int8"))["error"] is None
