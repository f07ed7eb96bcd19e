"""Latency and memory of whole models by their shapes, in every runtime: ``python -m bench.peers.shapes deit-tiny …``.

Weights are random (time does not depend on them); every runtime gets the same checkpoint and the same arrays: pixels
that are already scaled, or token ids. Each runs in a process of its own, stopped while another is measured, in rounds.
ONNX Runtime's int8 is the fastest of dynamic and (of images) calibrated quantization, OpenVINO's is NNCF's. Times are
told beside those of the first of ours that is asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.peers.machine import describe
from bench.peers.peer import Child, benchmark_environment, default_cache
from bench.peers.prepare import Feed, onnx_session
from bench.peers.shapes_worker import RUNTIMES, SHAPES, Shape, new_model, torch_model
from bench.statistics import ratio_text


def prepare(name: str, folder: Path, runtimes: Sequence[str] = tuple(RUNTIMES)) -> None:
    """The checkpoint and the files of it that ``runtimes`` read; those that exist are kept."""
    from pocketformer.compression import QuantizeOptions, compress

    shape = SHAPES[name]
    if not (folder / "config.json").exists():
        new_model(shape).save_pretrained(folder)
    if shape.side and not (folder / "preprocessor_config.json").exists():
        resize = {"do_resize": True, "size": {"height": shape.side, "width": shape.side}, "do_center_crop": False}
        (folder / "preprocessor_config.json").write_text(json.dumps(resize | {"do_normalize": False}))
    wanted = {RUNTIMES[runtime][1] for runtime in runtimes}
    for kind in ("bounded", "int8", "fp32"):
        pocket = folder / f"{kind}.pocket"
        if pocket.name in wanted and not pocket.exists():
            options = QuantizeOptions(random_tokens=0, bounded_pairs=kind == "bounded")
            compress(folder, pocket, weights="fp32" if kind == "fp32" else "int8", options=options)
    if wanted & {"fp32.onnx", "int8.onnx", "int8.xml"} and not (folder / "fp32.onnx").exists():
        export(shape, folder)
    for make, proof in ((onnx_int8, "int8.onnx"), (openvino_int8, "int8.xml")):
        if proof in wanted and not (folder / proof).exists():
            try:
                make(shape, folder)
            except Exception as error:  # a peer that cannot convert a model is left out, and said
                print(f"{name}: {make.__name__} failed: {str(error).splitlines()[0]}", file=sys.stderr)


def export(shape: Shape, folder: Path) -> None:
    import torch

    class First(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, *values: torch.Tensor) -> Any:
            return self.model(**dict(zip(names, values, strict=True)))[0]

    model = torch_model(shape, folder)
    if shape.auto:
        model.set_attn_implementation("eager")
    values = {key: torch.from_numpy(value) for key, value in shape.feed(2, 256).items()}
    names = list(values)
    free = {name: {0: "batch"} if shape.side else {0: "batch", 1: "tokens"} for name in names}
    torch.onnx.export(
        First(model).eval(),
        tuple(values.values()),
        str(folder / "fp32.onnx"),
        input_names=names,
        output_names=["output"],
        dynamic_axes=free,
        opset_version=17,
        dynamo=False,
    )


def onnx_int8(shape: Shape, folder: Path) -> None:
    import shutil

    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = 8

        def get_next(self) -> Feed | None:
            self.left -= 1
            return shape.feed(1, 128) if self.left >= 0 else None

    plain, made = folder / "plain.onnx", [folder / "dynamic.onnx"]
    quant_pre_process(folder / "fp32.onnx", plain, skip_symbolic_shape=True)
    quantize_dynamic(plain, made[0], per_channel=True, weight_type=QuantType.QInt8)
    if shape.side:
        made.append(folder / "static.onnx")
        quantize_static(plain, made[1], Reader(), per_channel=True)
    feed = shape.feed(1, 128)
    times = []
    for path in made:
        call = onnx_session(path)
        call(feed)
        begin = time.perf_counter()
        call(feed)
        times.append(time.perf_counter() - begin)
    shutil.copy(made[int(np.argmin(times))], folder / "int8.onnx")


def openvino_int8(shape: Shape, folder: Path) -> None:
    import nncf
    import openvino as ov

    plain = ov.convert_model(folder / "fp32.onnx")
    kind = None if shape.convolves else nncf.ModelType.TRANSFORMER
    samples = nncf.Dataset([shape.feed(1, 128) for _ in range(8)])
    ov.save_model(nncf.quantize(plain, samples, model_type=kind, subset_size=8), folder / "int8.xml")


def compare(
    name: str,
    folder: Path,
    runtimes: Sequence[str],
    cells: Sequence[tuple[int, int]],
    threads: int,
    rounds: int,
    seconds: float,
    limit: float | None = None,
    warm: bool = True,
) -> list[dict[str, Any]]:
    """A row for each of ``runtimes`` and each cell (batch, tokens): medians of ``rounds`` rounds, and peak memory.

    A runtime that takes more than ``limit`` seconds for a round has only that number in its row.
    """
    rows: list[dict[str, Any]] = []
    order = random.Random(0)
    for cell in cells:
        with ExitStack() as stack:
            peers = {}
            for runtime in (r for r in runtimes if (folder / RUNTIMES[r][1]).exists()):
                worker = ["-W", "ignore", "-m", "bench.peers.shapes_worker", runtime, str(folder), str(threads)]
                try:
                    child = Child(runtime, [sys.executable, *worker], benchmark_environment())
                except RuntimeError as error:  # a peer that cannot load its file is left out, and said
                    print(f"{name}: {error}", file=sys.stderr)
                    continue
                stack.callback(child.close)
                facts = {"name": name, "runtime": runtime, "threads": threads, "cell": cell, "rounds": []}
                peers[child] = facts
            for _ in range(rounds):
                for child in order.sample(list(peers), len(peers)):
                    if "more_than" in peers[child]:
                        continue
                    try:
                        found = child.ask({"measure": [*cell, seconds], "warm": warm}, limit)
                    except TimeoutError:
                        peers[child]["more_than"] = limit
                        continue
                    peers[child]["rounds"].append(median(found["times"]))
                    peers[child]["peak_rss_bytes"] = found["peak_rss_bytes"]
            rows += peers.values()
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: milliseconds, the time beside ours (paired by round, quartiles) and the process's peak memory."""
    lines = ["| model | threads | cell | runtime | ms | time / ours | peak MB |", "|---" * 7 + "|"]
    for row in rows:
        key = ("name", "threads", "cell")
        base = next(r for r in rows if r["runtime"].startswith("pocketformer") and all(r[k] == row[k] for k in key))
        place = f"| {row['name']} | {row['threads']} | {row['cell'][0]}" + (
            f" × {row['cell'][1]}" * bool(row["cell"][1])
        )
        if "more_than" in row:
            least = row["more_than"] / median(base["rounds"]) if base["rounds"] else 0
            lines.append(f"{place} | {row['runtime']} | more than {1e3 * row['more_than']:.0f} | > {least:.1f} | |")
            continue
        ratio = ratio_text(row["rounds"], base["rounds"]) if base["rounds"] else ""
        peak = row["peak_rss_bytes"] / 1e6
        lines.append(f"{place} | {row['runtime']} | {1e3 * median(row['rounds']):.2f} | {ratio} | {peak:.0f} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=SHAPES, metavar="MODEL", help=", ".join(SHAPES))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048, 8192], help="of models of texts")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each runtime in a round")
    parser.add_argument("--once", action="store_true", help="one round of one call, the first: of what takes minutes")
    parser.add_argument("--limit", type=float, help="seconds after which a runtime is left with 'more than'")
    parser.add_argument("--prepare", action="store_true", help="make the files, measure nothing")
    parser.add_argument("--json", type=Path, help="write the raw times here")
    arguments = parser.parse_args(argv)

    warnings.simplefilter("ignore")  # the converters' deprecations are not ours to mend
    for variable in set(os.environ) - set(benchmark_environment()):
        del os.environ[variable]
    rows: list[dict[str, Any]] = []
    for name in arguments.models:
        folder = default_cache() / "shapes" / name
        folder.mkdir(parents=True, exist_ok=True)
        prepare(name, folder, arguments.runtimes)
        lengths = [0] if SHAPES[name].side else arguments.tokens
        cells = [(batch, tokens) for batch in arguments.batch for tokens in lengths]
        for threads in [] if arguments.prepare else arguments.threads:
            rounds, seconds = (1, 0.0) if arguments.once else (arguments.rounds, arguments.seconds)
            limits = arguments.limit, not arguments.once
            rows += compare(name, folder, arguments.runtimes, cells, threads, rounds, seconds, *limits)
    if rows:
        print(table(rows))
        print("\n".join(f"- {key}: {value}" for key, value in describe().items()))
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": describe(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
