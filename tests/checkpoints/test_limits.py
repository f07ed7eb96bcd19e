"""Plans within memory and latency: kept at once with bytes, at the least error, and refused before anything is done."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.graphs import MODEL, TEXT, TOKENIZER_JSON, tiny_decoder, tiny_graph
from pocketformer.cli import main
from pocketformer.compression import PruneOptions, compress_checkpoint
from pocketformer.compression.budget import Planner
from pocketformer.compression.limits import BESIDE, Forecast, Limits, parse_seconds
from pocketformer.compression.pipeline import Compression
from pocketformer.compression.plan import carry_out
from pocketformer.engine import Engine
from pocketformer.perf.boards import BOARDS, machine
from pocketformer.perf.predict import predict
from pocketformer.sources.huggingface import Checkpoint

FAST = PruneOptions("wanda", tokens=512)
RUN = {"board": "pi5", "length": 32, "threads": 2}


def checkpoint() -> Checkpoint:
    return Checkpoint(tiny_graph(ffn=256, layers=2), {**MODEL}, TEXT, TOKENIZER_JSON)


@pytest.fixture(scope="module")
def planner() -> Planner:
    return Planner(checkpoint(), prune=FAST)


def between(planner: Planner, share: float) -> tuple[int, float]:
    """Memory and seconds between those of the smallest plan and of the whole model."""
    everything = planner.for_limits(Limits(memory_bytes=1 << 40, seconds=1e3, **RUN))
    least = planner.smallest()
    (memory, seconds), (most, longest) = ((plan.memory_bytes or 0, plan.seconds or 0) for plan in (least, everything))
    return int(memory + share * (most - memory)), seconds + share * (longest - seconds)


@pytest.mark.slow
def test_all_limits_are_kept_and_what_is_predicted_is_what_the_file_takes(planner: Planner, tmp_path: Path) -> None:
    memory, seconds = between(planner, 0.6)
    by_memory = planner.for_limits(Limits(memory_bytes=memory, **RUN))
    by_time = planner.for_limits(Limits(seconds=seconds, **RUN))
    plan = planner.for_limits(Limits(memory_bytes=memory, seconds=seconds, **RUN))
    assert by_memory.memory_bytes <= memory < by_time.memory_bytes or by_time.memory_bytes <= memory
    assert by_time.seconds <= seconds
    assert plan.memory_bytes <= memory
    assert plan.seconds <= seconds
    assert 0 < max(by_memory.error, by_time.error) <= plan.error
    assert any(layer.width < layer.of for layer in by_time.layers.values())
    pruned, _ = carry_out(planner.loaded, plan, FAST, planner.profiler)
    path = tmp_path / "m.pocket"
    compress_checkpoint(pruned, path, options=plan.options(planner.options))
    found = predict(Engine(path, 1), machine("pi5"), [32], 2)
    assert found["seconds"] == pytest.approx(plan.seconds)
    assert found["memory"]["working"] + path.stat().st_size + BESIDE == plan.memory_bytes


def test_pairs_are_bounded_where_that_saves_time(planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    """A little time is saved at the least error so on a board that gains by it, and on no other; what the plan says
    is what the file takes."""
    gains = replace(BOARDS["pi4"], pairs_peak=2 * BOARDS["pi4"].int8_peak)
    monkeypatch.setitem(BOARDS, "gains", gains)
    plans = {}
    for board in ("gains", "pi5"):
        run: dict[str, Any] = {"board": board, "length": 32, "threads": 1}
        whole = planner.for_limits(Limits(seconds=1e3, **run)).seconds
        plans[board] = planner.for_limits(Limits(seconds=0.95 * whole, **run))
        assert plans[board].seconds <= 0.95 * whole
    assert {name for name, of in plans["gains"].bits.items() if of.bounded_pairs} != set()
    assert not any(of.bounded_pairs for of in plans["pi5"].bits.values())
    assert not any(of.bounded_pairs for of in planner.for_budget(planner.full * 9 // 10).bits.values())
    assert not any(layer.width < layer.of for layer in plans["gains"].layers.values())
    assert plans["gains"].error < plans["pi5"].error
    plan = plans["gains"]
    compression = Compression(planner.loaded.graph, "int8", plan.options(planner.options))
    assert {name for name, facts in compression.target.weights.items() if facts.get("bounded_pairs")} == {
        name for name, of in plan.bits.items() if of.bounded_pairs
    }


def test_the_least_latency_is_that_of_whatever_is_quickest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer bits take longer where all weights are in a cache: what int8 reaches, with or without bounded pairs, is not
    refused as out of reach."""
    monkeypatch.setitem(BOARDS, "gains", replace(BOARDS["pi4"], pairs_peak=2 * BOARDS["pi4"].int8_peak))
    planner = Planner(checkpoint(), prune=FAST)
    monkeypatch.setattr(planner, "knobs", lambda: pytest.fail("measured"))
    found = {}
    for board in ("gains", "pi4"):
        with pytest.raises(ValueError, match="but the smallest latency of this model has") as raised:
            planner.for_limits(Limits(seconds=1e-9, board=board, length=32, threads=1))
        found[board] = float(str(raised.value).partition(" has ")[2].partition(" ms")[0])
    assert found["gains"] < found["pi4"]
    few = planner.smallest()
    assert few.seconds is not None
    assert 1000 * few.seconds > found["pi4"]


def test_what_is_impossible_is_refused_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    planner = Planner(checkpoint(), prune=FAST)
    monkeypatch.setattr(planner, "knobs", lambda: pytest.fail("measured"))
    with pytest.raises(ValueError, match=r"memory allowed is 1,000 bytes, but the smallest memory .* has [\d,]+ bytes"):
        planner.for_limits(Limits(memory_bytes=1000, **RUN))
    with pytest.raises(ValueError, match=r"latency allowed is 0.001 ms, but the smallest latency .* has [\d.]+ ms"):
        planner.for_limits(Limits(seconds=1e-6, **RUN))
    with pytest.raises(ValueError, match="of 1 to 40 tokens"):
        planner.for_limits(Limits(seconds=1.0, board="pi5", length=41))
    with pytest.raises(ValueError, match="board is 'pi6'"):
        planner.for_limits(Limits(seconds=1.0, board="pi6"))
    with pytest.raises(ValueError, match="threads is 5; Raspberry Pi 5 has 4 cores"):
        planner.for_limits(Limits(seconds=1.0, board="pi5", threads=5))
    with pytest.raises(ValueError, match="no limit was given"):
        planner.for_limits(Limits())


@pytest.mark.parametrize(("text", "seconds"), [("8ms", 0.008), ("0.5 s", 0.5), ("900us", 0.0009)])
def test_times(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "8", "ms", "-1ms", "nan s", "1e9s"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="is no time; write it such as 8ms"):
        parse_seconds(text)


def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = checkpoint()
    monkeypatch.setattr("pocketformer.sources.huggingface.load_checkpoint", lambda folder, tower=None: loaded)
    command = ["compress", "model", "-o", str(tmp_path / "m.pocket"), "--criterion", "wanda"]
    run = ["--latency", "1s", "--max-memory", "40MB", "--board", "pi5", "--length", "32", "--batch", "2"]
    assert main([*command, *run, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert plan["error"] == 0
    assert 0 < plan["seconds"] < 1
    assert plan["file_bytes"] < plan["memory_bytes"] < 40e6
    assert main([*command, *run, "--dry-run"]) == 0
    assert "predicted of a run: " in capsys.readouterr().out
    for arguments, message in (
        (["--board", "pi5"], "board tell which run a memory or a latency is of"),
        (["--latency", "1us"], "latency allowed is 0.001 ms"),
        (["--latency", "8"], "'8' is no time"),
        (["--max-memory", "1KB"], "the memory allowed is 1,000 bytes"),
    ):
        assert main([*command, *arguments]) == 1
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_interrupt_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = checkpoint()
    monkeypatch.setattr("pocketformer.sources.huggingface.load_checkpoint", lambda folder, tower=None: loaded)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pocketformer.compression.compress_checkpoint", interrupted)
    pocket, plan = tmp_path / "m.pocket", tmp_path / "plan.json"
    command = ["compress", "model", "-o", str(pocket), "--criterion", "l2"]
    assert main(command) == 130
    assert f"interrupted; {pocket} is as it was: run the command again\n" in capsys.readouterr().err
    assert main([*command, "--prune-ffn", "0.2", "--plan", str(plan)]) == 130
    assert f"go on with --plan {plan} and without" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [plan]


PEAK = """
import sys
import numpy as np
import numpy.random
from pocketformer.perf.measure import peak_rss, prepare
from pocketformer.engine import Engine
if len(sys.argv) > 2:
    engine, length = Engine(sys.argv[1], 1, kv=sys.argv[3]), int(sys.argv[2])
    engine.run([np.arange(length, dtype=np.int32)], None, np.array([length - 1]), caches=[engine.cache(length, length)])
elif len(sys.argv) > 1:
    prepare(Engine(sys.argv[1], 1), 40, 64)()
print(peak_rss())
"""


def test_a_run_has_128_tokens_where_none_are_named() -> None:
    wanted = Limits(memory_bytes=1, board="pi4", batch=2)
    assert Forecast(wanted, 512).lengths == [128, 128]
    assert Forecast(wanted, 40).lengths == [40, 40]
    assert Forecast(wanted, 1, 9216).lengths == [9216, 9216], "the pixels of images"


@pytest.mark.slow
def test_what_a_decoder_keeps_is_part_of_its_memory(tmp_path: Path) -> None:
    sizes = {"hidden": 128, "heads": 16, "kv_heads": 16, "head_dim": 64, "layers": 4, "vocab": 2000}
    graph = tiny_decoder(**sizes, max_length=512)
    loaded, path = replace(checkpoint(), graph=graph, tokenizer_json=None), tmp_path / "m.pocket"
    report = compress_checkpoint(loaded, path, "fp32")
    arguments = [[], [str(path), "512", "fp32"], [str(path), "512", "fp16"]]
    run = [[sys.executable, "-c", PEAK, *more] for more in arguments]
    without, with_model, with_halves = (int(subprocess.run(c, capture_output=True, check=True).stdout) for c in run)
    limits = Limits(memory_bytes=1, board="pi5", length=512, threads=1)
    memory, _ = Forecast(limits, 512)(Compression(loaded.graph, "fp32"), report.file_bytes)
    print(with_model - without, memory)
    assert with_model - without <= memory
    assert with_model - without > 0.5 * memory
    found = predict(Engine(path, 1), machine("pi5"), [512], 1)
    assert found["memory"]["cache"] == Engine(path, 1).cache(512, 512).nbytes > 8e6
    halves = predict(Engine(path, 1, kv="fp16"), machine("pi5"), [512], 1)["memory"]
    assert halves["cache"] == found["memory"]["cache"] / 2
    assert abs(with_model - with_halves - halves["cache"]) < 0.2 * halves["cache"]
    assert found["bytes"] == sum(found["memory"].values())
    assert memory == sum(found["memory"][part] for part in ("working", "cache")) + report.file_bytes + BESIDE


@pytest.mark.slow
def test_predicted_memory_is_at_least_what_is_measured(tmp_path: Path) -> None:
    """Beside the same process without a model, which has Python and its libraries alone."""
    graph = tiny_graph(hidden=256, ffn=4096, layers=6, heads=4, kv_heads=4, head_dim=64, vocab=2000)
    loaded = replace(checkpoint(), graph=graph)
    path = tmp_path / "m.pocket"
    report = compress_checkpoint(loaded, path, "fp32")
    run = ([sys.executable, "-c", PEAK], [sys.executable, "-c", PEAK, str(path)])
    without, with_model = (int(subprocess.run(c, capture_output=True, check=True).stdout) for c in run)
    engine = Engine(path, 1)
    predicted = report.file_bytes + engine.program.arena_bytes([40] * 64, 1, 0) + BESIDE
    print(with_model - without, predicted)
    assert with_model - without <= predicted
    assert with_model - without > 0.5 * predicted, "the run must touch what is predicted, or this tells nothing"
