"""What each ingredient of compression is worth: ``python -m bench.ablation MINILM_FOLDER --texts HELD_OUT.txt``.

Each row is one recipe: the bytes of its file, how close its embeddings of the held-out texts are to those in fp32 (the
cosines' mean, first percentile and minimum), and the seconds that compressing took. The texts must not be those that a
recipe is calibrated on; a set of the tests' is taken where none is given.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pocketformer import load
from pocketformer.compression import Precision, QuantizeOptions, compress_checkpoint
from pocketformer.compression.dataflow import Dataflow
from pocketformer.graph import Graph
from pocketformer.sources.huggingface import Checkpoint, load_checkpoint

TEXTS = Path(__file__).parents[1] / "tests" / "data" / "texts.txt"
RANDOM = 64  # tokens of a random sequence


@dataclass(frozen=True)
class Recipe:
    """``calibration``: "text" (that of ``--calibration``, or our own), "nearest", or how many random tokens."""

    name: str
    weights: str
    calibration: str | int = "text"
    options: dict[str, Any] = field(default_factory=dict)
    last_layer: Precision | None = None
    only: tuple[str, ...] = ()  # of the last layer's linears, by the ends of their names; all if empty


INT8 = (
    Recipe("int8, to the nearest", "int8", "nearest"),
    Recipe("int8, 2k random tokens", "int8", 2048),
    Recipe("int8, text", "int8"),
    Recipe("int8, to the nearest, bounded pairs", "int8", "nearest", {"bounded_pairs": True}),
    Recipe("int8, text, bounded pairs", "int8", options={"bounded_pairs": True}),
    Recipe("int8, text, not rotated", "int8", options={"block": 0}),
)
TABLES = tuple(Recipe(f"int8, table of {bits} bits", "int8", options={"table_bits": bits}) for bits in (6, 5, 4, 3))
PLAIN: dict[str, Any] = {"table_bits": 8, "refit": 0.0}
LINEARS = (
    Recipe("4 bits a channel, to the nearest, uniform", "int4", "nearest", {**PLAIN, "group": 0, "learned": False}),
    Recipe("4 bits a channel, to the nearest", "int4", "nearest", {**PLAIN, "group": 0}),
    Recipe("4 bits a channel, 2k random tokens", "int4", 2048, {**PLAIN, "group": 0}),
    Recipe("4 bits a channel, text", "int4", options={**PLAIN, "group": 0}),
    Recipe("4 bits, groups of 64, uniform", "int4", options={**PLAIN, "learned": False}),
    Recipe("4 bits, groups of 64, not rotated", "int4", options={**PLAIN, "block": 0}),
    Recipe("4 bits, groups of 64", "int4", options=PLAIN),
    Recipe("4 bits, groups of 64, refit", "int4", options={"table_bits": 8}),
    Recipe("4 bits, groups of 32, refit", "int4", options={"table_bits": 8, "group": 32}),
)
FIVE, SIX = Precision(5, 64), Precision(6, 64)
MIXED = (
    Recipe(
        "4 bits, up and half of qkv 5, last layer's attention 6",
        "int4",
        options={"precision": {"*.ffn_up": FIVE, "*.[1-4].qkv": FIVE, "*.5.qkv": SIX, "*.5.attention_out": SIX}},
    ),
    Recipe(
        "4 bits, two of up 5, last layer's attention 6",
        "int4",
        options={
            "precision": {
                "*.[04].ffn_up": FIVE,
                "*.4.attention_out": FIVE,
                "*.5.qkv": SIX,
                "*.5.attention_out": SIX,
            }
        },
    ),
    Recipe("all 4 bits, groups of 64", "int4"),
    Recipe("all 4 bits, a scale a channel", "int4", options={"group": 0}),
    Recipe("all 4 bits, last layer int8", "int4", last_layer=Precision(8)),
    Recipe("4 bits, groups of 128, last layer int8", "int4", options={"group": 128}, last_layer=Precision(8)),
    Recipe(
        "4 bits, groups of 128, last layer's attention int8",
        "int4",
        options={"group": 128},
        last_layer=Precision(8),
        only=("qkv", "attention_out"),
    ),
    Recipe(
        "4 bits, groups of 128, table of 3, last layer's attention int8",
        "int4",
        options={"group": 128, "table_bits": 3},
        last_layer=Precision(8),
        only=("qkv", "attention_out"),
    ),
    Recipe("4 bits a channel, table of 3", "int4", options={"group": 0, "table_bits": 3}),
)
PARTS = {"int8": INT8, "tables": TABLES, "linears": LINEARS, "mixed": MIXED}


def last_layer(graph: Graph) -> list[str]:
    """The linears after the last attention but one."""
    flow = Dataflow(graph)
    attentions = [index for index, op in enumerate(graph.ops) if op["op"] == "attention"]
    after = graph.ops[attentions[-2] + 1 :] if len(attentions) > 1 else graph.ops
    linears = [op["weight"] for op in after if op["op"] == "linear"]
    # The output projection and the feed-forward that follow that attention belong to the layer before.
    own = linears.index(next(op["weight"] for op in reversed(graph.ops[: attentions[-1]]) if op["op"] == "linear"))
    return [name for name in linears[own:] if name not in flow.tables]


def recipes(parts: list[str]) -> Iterator[Recipe]:
    for part in parts:
        yield from PARTS[part]


def measure(
    recipe: Recipe, loaded: Checkpoint, calibration: str | None, texts: list[str], exact: Any
) -> dict[str, Any]:
    options, samples = dict(recipe.options), calibration
    if recipe.last_layer:
        names = [name for name in last_layer(loaded.graph) if not recipe.only or name.endswith(recipe.only)]
        options["precision"] = dict.fromkeys(names, recipe.last_layer)
    if recipe.calibration == "nearest":
        options["random_tokens"], samples = 0, None
    elif isinstance(recipe.calibration, int):
        ids = np.random.default_rng(0).integers(0, loaded.graph.vocab_size, recipe.calibration)
        samples = list(ids.reshape(-1, RANDOM))  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pocket"
        begin = time.process_time()
        compress_checkpoint(loaded, path, recipe.weights, options=QuantizeOptions(**options), calibration=samples)
        seconds = time.process_time() - begin
        cosines = (load(path).encode(texts) * exact).sum(axis=1)  # type: ignore[attr-defined]
        size = path.stat().st_size
    return {
        "recipe": recipe.name,
        "megabytes": size / 1e6,
        "mean": float(cosines.mean()),
        "p1": float(np.quantile(cosines, 0.01)),
        "min": float(cosines.min()),
        "cpu_seconds": seconds,
    }


def run(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    loaded = load_checkpoint(arguments.model)
    texts = arguments.texts.read_text(encoding="utf-8").splitlines()[: arguments.most]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "exact.pocket"
        compress_checkpoint(loaded, path, "fp32")
        exact = load(path).encode(texts)  # type: ignore[attr-defined]
    for recipe in recipes(arguments.parts):
        if not arguments.only or any(word in recipe.name for word in arguments.only):
            yield measure(recipe, loaded, arguments.calibration, texts, exact)


def line(row: dict[str, Any]) -> str:
    cosines = " | ".join(f"{row[key]:.4f}" for key in ("mean", "p1", "min"))
    return f"| {row['recipe']} | {row['megabytes']:.1f} | {cosines} | {row['cpu_seconds']:.0f} |"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of an embedding model, such as all-MiniLM-L6-v2")
    parser.add_argument("--texts", type=Path, default=TEXTS, help="held-out texts, one a line (default: the tests')")
    parser.add_argument("--most", type=int, help="how many of the texts, from the first on (default: all)")
    parser.add_argument("--calibration", help="texts to calibrate on (default: our own)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="which recipes (default: all)")
    parser.add_argument("--only", nargs="+", help="of these those whose name holds one of these words")
    parser.add_argument("--json", action="store_true", help="a JSON object a row instead of a table")
    arguments = parser.parse_args(argv)
    if not arguments.json:
        print("| recipe | MB | mean | p1 | min | CPU seconds |\n|---|---|---|---|---|---|")
    for row in run(arguments):
        print(json.dumps(row) if arguments.json else line(row))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
