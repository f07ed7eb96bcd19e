"""Fetch a real sentence-embedding model, compress it to int8 and search with it, in under a minute."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any

from .. import console
from ..demo_texts import QUERIES, SENTENCES

if TYPE_CHECKING:
    from ..model import Model

HELP = "watch MiniLM being compressed and searching"
EXAMPLE = """  pocketformer demo
  pocketformer demo --query "Where can I park my boat?\""""
HITS = 3


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--query", action="append", metavar="TEXT", help="what to look for, may be repeated (default: three questions)"
    )


def execute(args: argparse.Namespace) -> dict[str, Any]:
    import numpy as np

    from ..compression import compress
    from ..fetch import cache_folder, fetch
    from ..model import load

    say = (lambda _: None) if args.json else console.note
    queries = args.query or list(QUERIES)
    source = fetch("minilm")
    say(f"Compressing {source.name} to int8: rotate, round, pack …")
    int8_path, fp32_path = (cache_folder() / f"{source.name}.{weights}.pocket" for weights in ("int8", "fp32"))
    begin = time.perf_counter()
    compress(source, int8_path)
    seconds = time.perf_counter() - begin
    compress(source, fp32_path, weights="fp32")
    say(f"Embedding {len(SENTENCES)} sentences and {len(queries)} queries with both files …")
    int8, fp32 = load(int8_path), load(fp32_path)
    embeddings = int8.encode([*SENTENCES, *queries])
    cosines = (embeddings * fp32.encode([*SENTENCES, *queries])).sum(axis=1)
    passages, asked = embeddings[: len(SENTENCES)], embeddings[len(SENTENCES) :]
    searches = []
    for query, scores in zip(queries, asked @ passages.T, strict=True):
        hits = [{"score": float(scores[i]), "text": SENTENCES[i]} for i in np.argsort(-scores)[:HITS]]
        searches.append({"query": query, "hits": hits})
    return {
        "file": str(int8_path),
        "compress_seconds": seconds,
        "fp32_bytes": fp32.info()["file_bytes"],
        "int8_bytes": int8.info()["file_bytes"],
        "fp32_seconds_per_sentence": _seconds_each(fp32),
        "int8_seconds_per_sentence": _seconds_each(int8),
        "cosine_mean": float(cosines.mean()),
        "cosine_min": float(cosines.min()),
        "isa": int8.info()["isa"],
        "threads": int8.threads,
        "searches": searches,
    }


def _seconds_each(model: Model) -> float:
    """The best of five rounds, one sentence at a time, tokenizing included."""
    rounds = []
    for _ in range(5):
        begin = time.perf_counter()
        for sentence in SENTENCES:
            model.encode(sentence)
        rounds.append((time.perf_counter() - begin) / len(SENTENCES))
    return min(rounds)


def show(result: dict[str, Any]) -> None:
    fp32, int8 = result["fp32_bytes"], result["int8_bytes"]
    slow, fast = result["fp32_seconds_per_sentence"], result["int8_seconds_per_sentence"]
    rows = [
        ("size", console.megabytes(fp32), console.megabytes(int8), f"{fp32 / int8:.1f}× smaller"),
        ("a sentence", console.milliseconds(slow), console.milliseconds(fast), f"{slow / fast:.1f}× faster"),
        ("cosine to fp32", "1", f"{result['cosine_mean']:.4f}", f"{result['cosine_min']:.4f} at worst"),
    ]
    title = f"all-MiniLM-L6-v2 on {result['isa']}, {result['threads']} threads"
    console.table(title, ("", "fp32", "int8", ""), rows)
    print(f"Compressed in {result['compress_seconds']:.1f} s, without any data to calibrate on.")
    for search in result["searches"]:
        hits = [(f"{hit['score']:.3f}", "█" * max(0, round(24 * hit["score"])), hit["text"]) for hit in search["hits"]]
        console.table(f"“{search['query']}”", ("score", "", f"closest of {len(SENTENCES)} sentences"), hits)
    command = "pocketformer" if shutil.which("pocketformer") else sys.argv[0]  # as make demo calls it
    print("\nNext:")
    print(f'  {command} demo --query "your own words"')
    print(f"  {command} bench {result['file']}")
    print(f"  {command} compress YOUR_MODEL_FOLDER -o model.pocket")
