"""Show what a pocket file holds and what it will need; with --machine, what this machine offers."""

from __future__ import annotations

import argparse
from typing import Any

from .. import console
from . import options

HELP = "show a pocket file, its memory, and this machine"
EXAMPLE = """  pocketformer info minilm.pocket --lengths 16 128 256
  pocketformer info --machine"""


def arguments(parser: argparse.ArgumentParser) -> None:
    options.model_file(parser, optional=True)
    options.lengths(parser)
    options.kv(parser)
    parser.add_argument("--machine", action="store_true", help="show CPU, instruction set and threads, and why")
    options.threads(parser)


def execute(args: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if args.model is None and not args.machine:
        raise ValueError("there is nothing to show; name a pocket file, or use --machine")
    if args.model is None and args.kv is not None:
        raise ValueError("--kv is of a model; name a pocket file, or leave it out")
    if args.model is not None:
        from ..model import load

        model = load(args.model, args.threads, kv=args.kv)
        longest = model.info()["max_length"]
        lengths = args.lengths or [n for n in (16, 32, 128, 256, 512) if n <= longest]
        result["model"] = model.info()
        result["plan"] = [{"length": n, "bytes": model.plan([n])} for n in lengths]
    if args.machine:
        from ..perf.machine import describe_machine

        result["machine"] = describe_machine()
    return result


def show(result: dict[str, Any]) -> None:
    if "model" in result:
        _show_model(result["model"], result["plan"])
    if "machine" in result:
        _show_machine(result["machine"])


def _show_machine(machine: dict[str, Any]) -> None:
    caches = [f"L{cache['level']} {cache['bytes'] >> 10:,} KiB" for cache in machine["caches"]]
    clusters = [f"{_ranges(group['cpus'])} ({group['strength']:.0%})" for group in machine["clusters"]]
    rows = [
        ("CPU", f"{machine['cpu']}, {machine['architecture']}"),
        ("instruction sets", ", ".join(machine["isas"])),
        *((f"not {isa}", f"this CPU lacks {lacks}") for isa, lacks in machine["missing"].items()),
        ("chosen", f"{machine['isa']}: {machine['isa_reason']}"),
        ("CPUs", f"{machine['affinity_cpus']} of {machine['cpus']} in the affinity mask"),
        ("control groups", f"allow {machine['quota_cpus']} CPUs" if machine["quota_cpus"] else "no limit"),
        ("cores", f"{machine['physical_cores']}, strength: {machine['strength']}"),
        ("clusters", "; ".join(clusters) or "unknown"),
        ("caches", ", ".join(caches) or "unknown"),
        ("threads", f"{machine['threads']}: {machine['threads_reason']}"),
    ]
    console.table("Machine", ("", ""), rows)


def _ranges(ids: list[int]) -> str:
    """0-3, 6"""
    firsts = [i for i in ids if i - 1 not in ids]
    lasts = [i for i in ids if i + 1 not in ids]
    return ", ".join(f"{a}-{b}" if b > a else str(a) for a, b in zip(firsts, lasts, strict=True))


def _input_rows(model: dict[str, Any]) -> list[tuple[str, str]]:
    if "image" in model:
        return [("image", f"{model['image']['height']} × {model['image']['width']} pixels")]
    return [
        ("longest text", f"{model['text'].get('max_length') or model['max_length']} tokens"),
        ("longest sequence", f"{model['max_length']} tokens"),
        ("tokenizer", "in the file" if model["tokenizer"] else "none"),
    ]


def _key_rows(model: dict[str, Any]) -> list[tuple[str, str]]:
    if "kv" not in model:
        return []
    memory = console.megabytes(model["cache_bytes"])
    return [("keys and values", f"{model['kv']}, {memory} for {model['context']} tokens")]


def _zeros_row(zeros: dict[str, float]) -> list[tuple[str, str]]:
    if not zeros:
        return []
    mean = sum(zeros.values()) / len(zeros)
    return [("zeros passed over", f"by {len(zeros)} linears, {mean:.0%} of their inputs by groups of four")]


def _show_model(model: dict[str, Any], plan: list[dict[str, int]]) -> None:
    rows = [
        *((key, model[key]) for key in ("source", "license") if model.get(key)),
        ("family", model["family"]),
        ("task", model["task"]),
        ("labels", console.shorten(", ".join(model["labels"] or []) or "none", 80)),
        ("parameters", f"{model['params']:,}"),
        ("weights", f"{model['weights']}, {model['bits_per_weight']:.2f} bits each"),
        ("file", console.megabytes(model["file_bytes"])),
        *_zeros_row(model["zeros"]),
        ("output", f"{model['output']} × {model['width']}"),
        *_input_rows(model),
        *_key_rows(model),
        ("runs on", f"{model['isa']}, {model['threads']} threads"),
    ]
    console.table(model["name"], ("", ""), rows)
    sizes = sorted(model["tensor_bytes"].items(), key=lambda item: -item[1])
    console.table("Parameters by type", ("dtype", "size"), [(name, console.megabytes(size)) for name, size in sizes])
    if not plan:
        return
    console.table(
        "Working memory of one sequence",
        ("tokens", "memory"),
        [(entry["length"], console.megabytes(entry["bytes"])) for entry in plan],
    )
