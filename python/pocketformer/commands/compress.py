"""Compress a Hugging Face or sentence-transformers folder, or a GGUF file, to one pocket file."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import asdict
from typing import Any

from .. import console
from . import options

HELP = "compress a checkpoint folder, or a GGUF file, to a pocket file"
EXAMPLE = "  pocketformer compress all-MiniLM-L6-v2 -o minilm.pocket --weights int8"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="folder with config.json and model.safetensors, or a .gguf file")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the pocket file to write")
    parser.add_argument("--tower", choices=("vision", "text"), help="which half of a CLIP or SigLIP")
    parser.add_argument("--budget", metavar="SIZE", help="the most that the file may have, such as 20MB (10^6 bytes)")
    parser.add_argument(
        "--max-memory", metavar="SIZE", help="the most that the mapped file and working memory of a run may have"
    )
    parser.add_argument(
        "--latency", metavar="TIME", help="the most that a run may take, such as 8ms, by the cost model of `predict`"
    )
    parser.add_argument(
        "--board", metavar="NAME", help="of --latency: pi3, pi4, pi5, rk3588, n100 (default: this machine)"
    )
    parser.add_argument("--length", type=options.positive, metavar="N", help="tokens of that run (default: 128)")
    parser.add_argument("--batch", type=options.positive, metavar="N", help="sequences of that run (default: 1)")
    parser.add_argument(
        "--threads", type=options.positive, metavar="N", help="threads of that run (default: all cores)"
    )
    parser.add_argument(
        "--prune-ffn", type=share, default=0.0, metavar="SHARE", help="remove this share of the hidden channels, 0 to 1"
    )
    parser.add_argument(
        "--prune-heads", type=share, default=0.0, metavar="SHARE", help="remove this share of the attention heads"
    )
    parser.add_argument(
        "--width",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="keep this share of the residual's columns, as principal components (pre-norm models; default: 1, all)",
    )
    parser.add_argument(
        "--fuse-attention",
        action="store_true",
        help="multiply the projections of a head into each other where that saves parameters",
    )
    parser.add_argument(
        "--criterion",
        "--importance",
        choices=("obs", "wanda", "activation", "l1", "l2", "taylor", "hessian"),
        default="obs",
        help="what leaves first (default: obs, what costs least after the refit; taylor and hessian need torch, extra: "
        "tune)",
    )
    parser.add_argument(
        "--plan",
        metavar="FILE",
        help="what is done to each layer: written with limits or --prune-…, otherwise read and followed",
    )
    parser.add_argument("--dry-run", action="store_true", help="make the plan and stop there")
    parser.add_argument(
        "--report", metavar="FILE.html", help="write a page with charts of what was done (extra: report)"
    )
    parser.add_argument(
        "--weights",
        choices=("int8", "int4", "fp16", "fp32", "gguf"),
        help="precision: int8, int4 (half of it and less exact), fp16 (nearly exact, about as fast as fp32), fp32 (the "
        "reference), or gguf, which keeps the "
        "integers of a quantized GGUF file as they are (default: gguf for such a file, else int8)",
    )
    parser.add_argument(
        "--table-bits",
        type=int,
        choices=range(3, 9),
        metavar="N",
        help="bits of the table of words, 3 to 8 (default: 8, or 4 with int4)",
    )
    parser.add_argument(
        "--group",
        type=int,
        choices=(0, 16, 32, 64, 128),
        metavar="N",
        help="inputs of a 4-bit weight that share a scale: 16, 32, 64 or 128; 0: all of a channel (default: 64)",
    )
    parser.add_argument(
        "--precision",
        action="append",
        type=precision,
        default=[],
        metavar="NAME=BITS[/GROUP]",
        help="bits, and perhaps the group, of weights by name or pattern, such as 'layers.5.*=8'; may be repeated",
    )
    parser.add_argument(
        "--bounded-pairs",
        action="store_true",
        help="int8 linears: neighbouring weights are 128 together at most, faster with AVX2 without VNNI and a little "
        "less exact; for what reduce_range, 7 bits, is elsewhere, at half its squared error",
    )
    parser.add_argument(
        "--refit-int8",
        action="store_true",
        help="fit int8 linears to what the rounding before them has changed, as 4-bit ones always are: a seventh less "
        "is lost, at about twice the time",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="texts to see what weights are multiplied by, one a line, a tab between those of a pair; or an .npz that "
        "--save-profile wrote; of images a folder of them (default: our own sentences, or pictures that are made up)",
    )
    parser.add_argument(
        "--merge", type=int, metavar="N", help="of images: N tokens become one with others like them at each layer"
    )
    parser.add_argument(
        "--halt",
        type=_gate,
        metavar="SCALE,CENTER",
        help="of vision transformers trained as A-ViT: tokens leave after each layer by this gate (10,30 for its tiny)",
    )
    parser.add_argument(
        "--keep-script",
        metavar="CODES",
        help="trim the vocabulary to what texts in these scripts can become, such as Deva,Latn (ISO 15924)",
    )
    parser.add_argument(
        "--keep-vocab",
        metavar="FILE",
        help="trim the vocabulary to what these texts use, one a line; adds to --keep-script",
    )
    parser.add_argument(
        "--scaling",
        choices=("auto", "none", "smooth", "awq"),
        default="auto",
        help="scale the channels of inputs before weights are rounded, where that folds (default: auto, as SmoothQuant "
        "does, where no rotation spreads them)",
    )
    parser.add_argument(
        "--skip-zeros",
        type=float,
        default=0.4,
        metavar="SHARE",
        help="int8 linears that read what ReLU has made pass over groups of four zeros where at least this share of "
        "them is seen (default: 0.4; 1: never)",
    )
    parser.add_argument("--save-profile", metavar="FILE.npz", help="keep what was seen of the texts, to use it again")


def precision(text: str) -> tuple[str, tuple[int, int]]:
    """``NAME=BITS[/GROUP]`` → name, bits and group."""
    name, _, numbers = text.rpartition("=")
    bits, slash, group = numbers.partition("/")
    if not name or not bits.isdecimal() or (slash and not group.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=BITS or NAME=BITS/GROUP, such as 'layers.5.*=4/32'")
    return name, (int(bits), int(group or 0))


def execute(args: argparse.Namespace) -> dict[str, Any]:
    from ..compression import Precision, PruneOptions, QuantizeOptions, compress, make_plan
    from ..compression.importance import GRADIENTS
    from ..compression.plan import as_json
    from ..compression.twin import import_torch

    limits = {name: getattr(args, name) for name in ("budget", "max_memory", "latency", "board", "length")}
    limits |= {"batch": args.batch, "threads": args.threads}
    limits = {name: value for name, value in limits.items() if value is not None}
    asked = bool(limits) or args.prune_ffn or args.prune_heads
    if args.dry_run and not asked:
        raise ValueError("--dry-run makes a plan; say what of, with --budget, --max-memory, --latency or --prune-…")
    if args.merge is not None and asked:
        raise ValueError("--merge was given beside a limit or --prune-…; leave one out")
    if args.halt is not None and asked:
        raise ValueError("--halt was given beside a limit or --prune-…; leave one out")
    if args.report:
        from ..compression.page import check_charts

        check_charts()
    if asked and args.criterion in GRADIENTS:
        import_torch()
    begin = time.perf_counter()
    prune = PruneOptions(args.criterion)
    how: dict[str, Any] = {
        "weights": args.weights,
        "tower": args.tower,
        "table_bits": args.table_bits,
        "group": args.group,
        "precision": {name: Precision(*numbers) for name, numbers in args.precision} or None,
        "bounded_pairs": args.bounded_pairs,
        "calibration": args.calibration,
        "prune": prune,
        "keep_scripts": args.keep_script,
        "keep_vocabulary": args.keep_vocab,
        "width": args.width,
        "options": QuantizeOptions(scaling=args.scaling, skip_zeros=args.skip_zeros, refit_int8=args.refit_int8),
    }
    plan: Any = args.plan
    planned: dict[str, Any] = {}
    if asked:
        rounded = {**how, "weights": args.weights or "int8"}
        plan = make_plan(args.model, **limits, ffn=args.prune_ffn, heads=args.prune_heads, **rounded)
        planned = {"plan": as_json(plan)}
        if args.plan:
            plan.save(args.plan)
    if args.dry_run:
        return planned
    try:
        how["fuse_attention"] = args.fuse_attention
        how["bounded_pairs"] = args.bounded_pairs and not asked  # else the plan says so
        how |= {"merge": args.merge, "halt": args.halt}
        report = compress(args.model, args.output, plan=plan, save_profile=args.save_profile, **how)
    except KeyboardInterrupt:
        print(f"pocketformer: interrupted; {_how_to_go_on(args, bool(asked))}", file=sys.stderr)
        raise
    weights = report.weights if plan is None else "as planned"
    result = {
        "file": args.output,
        "weights": weights,
        "seconds": time.perf_counter() - begin,
        **planned,
        **asdict(report),
    }
    if args.report:
        from ..compression.page import write_page

        write_page(args.report, args.model, result)
    return result


def _how_to_go_on(args: argparse.Namespace, planned: bool) -> str:
    """What is left of a compression that was stopped, and what spares its steps next time."""
    kept = [f"{args.output} is as it was"]
    if planned and args.plan:
        kept.append(f"the plan is in {args.plan}: go on with --plan {args.plan} and without limits and --prune-…")
    if args.save_profile and os.path.exists(args.save_profile):
        kept.append(f"what was seen is in {args.save_profile}: --calibration {args.save_profile} reads it")
    return "; ".join(kept) if len(kept) > 1 else f"{kept[0]}: run the command again"


def _gate(text: str) -> tuple[float, float]:
    scale, _, center = text.partition(",")
    try:
        return float(scale), float(center)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no scale and center, such as 10,30") from None


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share; it must be at least 0 and below 1")
    return value


def show(result: dict[str, Any]) -> None:
    from ..compression.report import TrimmedVocabulary, notes

    if "plan" in result:
        _show_plan(result["plan"])
    vocabulary = result.get("vocabulary") or result.get("plan", {}).get("vocabulary")
    if vocabulary:
        print(TrimmedVocabulary(**vocabulary))
    if "file" not in result:
        return
    rows = [
        (stage["name"], console.megabytes(stage["before"]), console.megabytes(stage["after"]))
        for stage in result["stages"]
    ]
    console.table("Parameters", ("stage", "before", "after"), rows)
    worst = max(result["tensors"], key=lambda tensor: float(tensor["error"]))
    if worst["error"]:
        print(f"largest weight error: {worst['error']:.2%} in {worst['name']}")
    if result["unscaled"]:
        print(f"inputs of {len(result['unscaled'])} linears are not scaled:")
        for name, reason in result["unscaled"].items():
            print(f"  {name}: {reason}")
    for line in notes(result["zeros"], result["unfused"]):
        print(line)
    print(f"{result['file']}: {console.megabytes(result['file_bytes'])} in {result['seconds']:.1f} s")


def _show_plan(plan: dict[str, Any]) -> None:
    rows = [
        (name, layer["width"], layer["of"], "–" if layer["error"] is None else f"{layer['error']:.5f}")
        for name, layer in plan["layers"].items()
    ]
    console.table(f"Plan, {plan['weights']}", ("channels read by", "width", "of", "loss at the output"), rows)
    if plan["file_bytes"] is not None:
        print(f"file: {console.megabytes(plan['file_bytes'])}, predicted loss (1 − cosine) {plan['error'] or 0:.5f}")
    if plan["seconds"] is not None:
        memory, seconds = console.megabytes(plan["memory_bytes"]), console.milliseconds(plan["seconds"])
        print(f"predicted of a run: {memory} of file and working memory, {seconds}")
