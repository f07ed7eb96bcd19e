"""The comparison of two bench results, and the page made from one, on a small recorded result."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from bench.ablation import PARTS, last_layer, recipes
from bench.attention_charts import images
from bench.compare import Change, changes, main, report
from bench.page import render
from bench.peers.peer import Child
from bench.peers.shapes import table
from bench.peers.shapes_worker import measure
from bench.results import Series, load, series
from bench.statistics import quartiles, ratios

from helpers.graphs import tiny_graph
from helpers.large_checkpoint import write_checkpoint
from pocketformer.compression import QuantizeOptions
from pocketformer.sources.huggingface import load_checkpoint

ROOT = Path(__file__).parents[2]
RESULT = Path(__file__).parents[1] / "data" / "bench_result.json"


@pytest.fixture
def result() -> dict[str, Any]:
    return load(RESULT)


def change(before: tuple[float, ...], after: tuple[float, ...]) -> Change:
    return Change("x", Series(*before), Series(*after))


@pytest.mark.parametrize(
    ("before", "after", "beyond"),
    [
        # least, lower quartile, median, upper quartile
        ((10, 11, 12, 13), (10, 11, 12, 13), False),
        ((10, 11, 12, 13), (7, 7.5, 8, 8.5), True),  # faster
        ((7, 7.5, 8, 8.5), (10, 11, 12, 13), True),  # slower
        ((10, 11, 12, 13), (10, 15, 16, 17), False),  # only the median moved: a busy neighbour
        ((10, 11, 12, 13), (7, 11, 12, 13), False),  # only the minimum moved: one lucky call
        ((10, 11, 12, 13), (9, 10, 11, 12), False),  # the quartiles overlap
        ((10, 10.01, 10.02, 10.03), (9.9, 9.91, 9.92, 9.93), False),  # clear, but too small
        ((10, 10.1, 10.2, 10.3), (11, 9.0, 9.1, 9.2), False),  # minimum and median moved apart
    ],
)
def test_beyond_noise(before: tuple[float, ...], after: tuple[float, ...], beyond: bool) -> None:
    assert change(before, after).beyond_noise() is beyond
    assert change(after, before).beyond_noise() is beyond


def test_the_least_change_is_the_callers() -> None:
    small = change((10, 10.01, 10.02, 10.03), (9.9, 9.91, 9.92, 9.93))
    assert small.beyond_noise(0.005)


def test_report(result: dict[str, Any]) -> None:
    names = [name for name, _ in series(result)]
    assert len(names) == len(set(names))
    after = json.loads(json.dumps(result))
    stats = after["benchmarks"][0]["stats"]
    for key in ("min", "q1", "median", "q3"):
        stats[key] = result["benchmarks"][0]["stats"]["min"] * {"min": 0.5, "q1": 0.55, "median": 0.6, "q3": 0.65}[key]
    dropped = after["products"].pop()
    text = report(result, after)
    assert f"1 of {len(changes(result, after))} benchmarks changed beyond noise." in text
    assert result["benchmarks"][0]["name"].removeprefix("test_") in text
    assert f"Only before: pocketformer product {dropped['m']}×{dropped['n']}×{dropped['k']}, threads 1" in text
    assert "Peak of 1 threads: int8" in text
    assert report(result, result).endswith(f"0 of {len(names)} benchmarks changed beyond noise.")


def test_compare_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["compare", str(RESULT), str(RESULT)])
    main()
    assert "0 of" in capsys.readouterr().out
    other = tmp_path / "other.json"
    other.write_text("[1, 2]")
    monkeypatch.setattr(sys, "argv", ["compare", str(RESULT), str(other)])
    with pytest.raises(SystemExit):
        main()
    assert "other.json holds no benchmarks; name a JSON file" in capsys.readouterr().err


class Balance(HTMLParser):
    """Fails on a tag that is closed out of order."""

    VOID = ("meta",)

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page(result: dict[str, Any]) -> None:
    page = render(result)
    checked = Balance()
    checked.feed(page)
    assert checked.open == []
    assert '<meta name="viewport"' in page
    assert not re.search(r'(src|href)="(?!#)|@import|<script', page), "the page needs nothing but itself"
    assert "Example CPU &lt;&amp;&gt; Zen" in page
    assert "torch-fp32 (the package torch is not installed)" in page
    drawings = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(drawings) == 5  # runtimes, products with 1 and 128 rows, attention, models
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        assert "viewBox" in root.attrib
        assert "width" not in root.attrib, "the page sets the size"


def test_page_figures(result: dict[str, Any]) -> None:
    """A ratio, a share and a median of the page are those of the result."""
    page = render(result)
    row = result["products"][0]
    low, middle, high = ratios(row["onednn"], row["pocketformer"])
    assert f"{middle:.2f}</span> ({low:.2f}–{high:.2f})" in page
    share = row["m"] * row["n"] * row["k"] / quartiles(row["pocketformer"])[1] / max(row["peak"])
    assert f"<td>{share:.0%}</td>" in page
    benchmark = next(b for b in result["benchmarks"] if b["name"] == "test_minilm_int8[1x128-1]")
    assert f"<td>{1e3 * benchmark['stats']['median']:.2f}</td>" in page


@pytest.mark.parametrize("part", ["products", "attention", "peers", "benchmarks", "fixed_cost", "skipped"])
def test_page_without_a_part(result: dict[str, Any], part: str) -> None:
    """What could not run leaves its section out, and the page stands."""
    del result[part]
    assert "<h1>" in render(result)


def test_quartiles() -> None:
    assert quartiles([3.0]) == (3.0, 3.0, 3.0)
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)
    assert ratios([2.0, 9.0], [1.0, 3.0])[1] == 2.5


@pytest.mark.slow
def test_kernel_benchmarks_run() -> None:
    """Once each, for the calls: the figures mean nothing."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--budget=0", "bench/test_kernels.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("program", ["products.cpp", "fixed_cost.cpp"])
def test_native_benchmarks_compile(program: str) -> None:
    command = ["g++", "-std=c++20", "-fsyntax-only", "-Icsrc", f"bench/native/{program}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[:3000]


def test_the_ablation_lowers_all_but_the_last_layer() -> None:
    graph = tiny_graph(task="fill_mask", layers=3)
    assert last_layer(graph) == [f"layer2.{name}" for name in ("qkv", "out", "up", "down")], "the tied head is a table"
    assert last_layer(tiny_graph(layers=1)) == [f"layer0.{name}" for name in ("qkv", "out", "up", "down")]


def test_recipes_of_the_ablation_are_valid_and_named_once(tmp_path: Path) -> None:
    names = [recipe.name for recipe in recipes(list(PARTS))]
    assert len(names) == len(set(names))
    write_checkpoint(tmp_path, words=100, hidden=128, ffn=128, layers=6, positions=16)
    graph = load_checkpoint(tmp_path).graph
    for recipe in recipes(list(PARTS)):
        QuantizeOptions(**recipe.options).precisions(graph)


def test_a_peer_that_takes_too_long_is_left_with_that(tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text("import json, time\nprint('1', flush=True)\ninput()\nprint('2', flush=True)\ntime.sleep(60)\n")
    child = Child("sleeper", [sys.executable, str(script)], {})
    assert child.hello == 1
    assert child.ask({}, 30) == 2
    with pytest.raises(TimeoutError, match=r"sleeper has not answered within 0.2 s"):
        child.ask({}, 0.2)
    cell = {"name": "model", "threads": 1, "cell": (1, 8192)}
    ours = {**cell, "runtime": "pocketformer int8", "rounds": [2.0], "peak_rss_bytes": 1e6}
    rows = table([ours, {**cell, "runtime": "other", "rounds": [], "more_than": 7.0}]).splitlines()
    assert rows[-1] == "| model | 1 | 1 × 8192 | other | more than 7000 | > 3.5 | |"


def test_one_call_is_the_first() -> None:
    calls: list[object] = []
    assert len(measure(calls.append, {}, 0.0, warm=False)) == len(calls) == 1
    assert len(measure(calls.append, {}, 0.0)) == 1
    assert len(calls) == 3


def test_charts_draw_the_tables_of_the_page() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    drawn = images(page)
    for name, svg in drawn.items():
        ElementTree.fromstring(svg)
        kept = (ROOT / "docs" / "images" / name).read_text()
        assert len(kept) < 40_000
        assert f"images/{name}" in page
        # What it draws, whatever fonts and version of matplotlib have drawn it.
        points = [re.findall("<desc>(.*)</desc>", text) for text in (svg, kept)]
        assert points[0] == points[1]
        assert len(points[0]) == 1
    assert images(page.replace("| full | 32.1 |", "| full | 320.1 |")) != drawn
    with pytest.raises(ValueError, match="no table that begins with 'tokens'"):
        images("## Attention in linear time")
