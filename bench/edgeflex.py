"""The stages of EdgeFlex (arXiv 2512.19741), each doing something: ``python -m bench.edgeflex --shape base``.

A vision transformer of random weights whose channels differ as those of trained ones do, in fp32, fp16, int8, int8
with bounded pairs, int8 with a share of its hidden channels removed, both, and 4 bits. Each row is one file in a
fresh process: its bytes, the most memory that the process held, the milliseconds of an image (the least of rounds),
and how near its features are to those in fp32 (the cosines' mean over pictures that are made up). ``--torch PYTHON``
measures eager fp32 torch beside them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.machine import describe

SHAPES = {  # layers, width, heads, patch
    "tiny": (2, 64, 2, 16),
    "small": (12, 384, 6, 16),
    "base": (12, 768, 12, 16),
    "large": (24, 1024, 16, 16),
    "huge": (32, 1280, 16, 14),
}
SIDE, IMAGES = 224, 4
STAGES = ("fp32", "fp16", "int8", "int8 bounded", "int8 pruned", "int8 pruned bounded", "int4")
WORKER = """
import json, sys, time
import numpy as np
import torch
from transformers import ViTModel
torch.set_num_threads(int(sys.argv[3]))
model = ViTModel.from_pretrained(sys.argv[1], add_pooling_layer=False, attn_implementation="eager").eval()
pixels = torch.from_numpy(np.load(sys.argv[2]).transpose(0, 3, 1, 2).copy())
times = []
with torch.no_grad():
    for _ in range(int(sys.argv[4])):
        begin = time.perf_counter()
        model(pixels[:1])
        times.append(time.perf_counter() - begin)
    rows = [model(pixels[i : i + 1]).last_hidden_state[0, 0].tolist() for i in range(len(pixels))]
high = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"seconds": min(times), "rss": 1024 * int(high.split()[1]), "rows": rows}))
"""


def write_checkpoint(folder: Path, shape: str) -> None:
    """A folder of ViTModel: channels of inputs and outputs differ by a factor of e or so, as norms' weights do."""
    from safetensors.numpy import save_file

    layers, width, heads, patch = SHAPES[shape]
    rng, tensors = np.random.default_rng(0), {}

    def linear(name: str, n: int, k: int, gain: float = 1.0) -> None:
        weight = rng.standard_normal((n, k), np.float32) * np.float32(gain / k**0.5)
        weight *= np.exp(0.4 * rng.standard_normal((n, 1), np.float32))
        tensors[f"{name}.weight"] = weight * np.exp(0.4 * rng.standard_normal((1, k), np.float32))
        tensors[f"{name}.bias"] = 0.1 * rng.standard_normal(n, np.float32)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = np.exp(0.4 * rng.standard_normal(width, np.float32))
        tensors[f"{name}.bias"] = 0.1 * rng.standard_normal(width, np.float32)

    linear("embeddings.patch_embeddings.projection", width, 3 * patch * patch)
    kernel = tensors["embeddings.patch_embeddings.projection.weight"]
    tensors["embeddings.patch_embeddings.projection.weight"] = kernel.reshape(width, 3, patch, patch)
    tensors["embeddings.cls_token"] = rng.standard_normal((1, 1, width), np.float32)
    tensors["embeddings.position_embeddings"] = rng.standard_normal((1, 1 + (SIDE // patch) ** 2, width), np.float32)
    for layer in (f"encoder.layer.{i}" for i in range(layers)):
        for part in ("query", "key", "value"):
            linear(f"{layer}.attention.attention.{part}", width, width)
        linear(f"{layer}.attention.output.dense", width, width, 0.3)
        linear(f"{layer}.intermediate.dense", 4 * width, width)
        linear(f"{layer}.output.dense", width, 4 * width, 0.3)
        norm(f"{layer}.layernorm_before")
        norm(f"{layer}.layernorm_after")
    norm("layernorm")
    config = {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "image_size": SIDE,
        "patch_size": patch,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    size = {"size": {"height": SIDE, "width": SIDE}, "do_resize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(size | {"image_processor_type": "ViTImageProcessor"}))


def write_stage(folder: Path, stage: str, prune: float, criterion: str, seen: int) -> Path:
    """The file of one stage, made once; what needs to see pictures sees ``seen`` of them."""
    from pocketformer.compression import PruneOptions, compress, make_plan, pictures

    pictures.MOST = seen
    path = folder / f"{stage.replace(' ', '-')}.pocket"
    if not path.exists():
        weights, *rest = stage.split(" ")
        bounded = "bounded" in rest
        plan = make_plan(folder, weights=weights, ffn=prune, bounded_pairs=bounded) if "pruned" in rest else None
        asked: dict[str, Any] = {"plan": plan} if plan else {"weights": weights, "bounded_pairs": bounded}
        compress(folder, path, prune=PruneOptions(criterion), **asked)
    return path


def work(path: str, pixels: str, threads: int, rounds: int) -> dict[str, Any]:
    """What a fresh process measures of one file."""
    import pocketformer

    model: Any = pocketformer.load(path, threads=threads)
    images, times = np.load(pixels), []
    for _ in range(rounds):
        begin = time.perf_counter()
        model.encode(images[0], pooling="cls")
        times.append(time.perf_counter() - begin)
    rows = [model.encode(image, pooling="cls").tolist() for image in images]
    high = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {"seconds": min(times), "rss": 1024 * int(high.split()[1]), "rows": rows}


def measured(command: list[str], *arguments: object) -> dict[str, Any]:
    run = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def prepare(
    folder: Path, shape: str, stages: list[str], prune: float, criterion: str, seen: int
) -> tuple[dict[str, Path], Path]:
    """The files of ``stages``, and one of pixels that are scaled already: float32 [images, side, side, 3]."""
    from pocketformer.compression.pictures import made_up_pictures
    from pocketformer.sources.huggingface import load_checkpoint

    if not (folder / "config.json").exists():
        write_checkpoint(folder, shape)
    made = made_up_pictures(load_checkpoint(str(folder)), 1, seed=7).inputs["pixels"]
    np.save(folder / "pixels.npy", made.reshape(-1, SIDE, SIDE, 3)[:IMAGES])
    return {stage: write_stage(folder, stage, prune, criterion, seen) for stage in stages}, folder / "pixels.npy"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where checkpoint and files are put, and kept")
    parser.add_argument("--shape", choices=SHAPES, default="base")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE")
    parser.add_argument("--prune", type=float, default=0.3, help="share of the hidden channels that leave")
    parser.add_argument("--criterion", default="activation", help="what leaves first (default: as EdgeFlex)")
    parser.add_argument("--pictures", type=int, default=128, help="most that pruning and 4 bits see (default: 128)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter that has torch and transformers")
    parser.add_argument("--prepare", action="store_true", help="write the files, measure nothing")
    parser.add_argument("--work", metavar="FILE", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work:
        print(json.dumps(work(args.work, args.folder / "pixels.npy", args.threads, args.rounds)))
        return
    files, pixels = prepare(args.folder, args.shape, args.stages, args.prune, args.criterion, args.pictures)
    if args.prepare:
        return
    rows: dict[str, dict[str, Any]] = {}
    if args.torch:
        found = measured([args.torch, "-c", WORKER], args.folder, pixels, args.threads, args.rounds)
        rows["torch fp32, eager"] = found | {"bytes": (args.folder / "model.safetensors").stat().st_size}
    here = [sys.executable, "-m", "bench.edgeflex", str(args.folder)]
    for stage, path in files.items():
        found = measured([*here, "--work", str(path)], "--threads", args.threads, "--rounds", args.rounds)
        rows[stage] = found | {"bytes": path.stat().st_size}
    print(f"{args.shape}, {args.threads} threads, {describe()}")
    print("| stage | file, MB | peak RSS, MB | an image, ms | cosine |\n|---|---:|---:|---:|---:|")
    exact = np.array(rows.get("fp32", next(iter(rows.values())))["rows"])
    for stage, row in rows.items():
        given = np.array(row["rows"])
        cosines = (given * exact).sum(1) / np.linalg.norm(given, axis=1) / np.linalg.norm(exact, axis=1)
        figures = f"{row['bytes'] / 1e6:.1f} | {row['rss'] / 1e6:.0f} | {1e3 * row['seconds']:.0f}"
        print(f"| {stage} | {figures} | {cosines.mean():.4f} |")


if __name__ == "__main__":
    main()
