"""Perplexity of a text: how well the model predicts each of its tokens from those before."""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

from . import options

HELP = "measure how well a model predicts a text"
EXAMPLE = """  pocketformer perplexity smollm2.pocket novel.txt
  pocketformer perplexity smollm2.pocket sentences.txt --lines --json
  pocketformer perplexity smollm2.pocket novel.txt --context 2048 --stride 512"""


def arguments(parser: argparse.ArgumentParser) -> None:
    options.model_file(parser)
    parser.add_argument("text", metavar="TEXT.txt", help="a file of UTF-8, one text as a whole; - reads it from stdin")
    parser.add_argument("--lines", action="store_true", help="every line is a text; the mean is over all their tokens")
    parser.add_argument("--context", type=options.positive, metavar="N", help="tokens that are read together")
    parser.add_argument(
        "--stride", type=options.positive, metavar="N", help="tokens between windows of a longer text (half a context)"
    )
    options.kv(parser)
    options.threads(parser)


def execute(args: argparse.Namespace) -> dict[str, Any]:
    from ..tasks.generate import Generator

    content = sys.stdin.buffer.read() if args.text == "-" else Path(args.text).read_bytes()
    lines = [line for line in options.split_lines(args.text, content) if line.strip()]
    texts = lines if args.lines else [content.decode("utf-8-sig")]
    if not lines:
        raise ValueError(f"{args.text} is empty; give at least a few words")
    model = Generator.load(args.model, args.threads, context=args.context, kv=args.kv)
    begin = time.perf_counter()
    found = [model.perplexity(text, stride=args.stride) for text in texts]
    tokens = sum(part.tokens for part in found)
    mean = sum(part.negative_log_likelihood * part.tokens for part in found) / tokens
    return {
        "perplexity": math.exp(min(mean, 700.0)),
        "tokens": tokens,
        "negative_log_likelihood": mean,
        "texts": len(texts),
        "context": model.context,
        "seconds": time.perf_counter() - begin,
    }


def show(result: dict[str, Any]) -> None:
    print(f"perplexity {result['perplexity']:.4f}, {result['negative_log_likelihood']:.4f} nats a token")
    rate = result["tokens"] / max(result["seconds"], 1e-9)
    print(f"{result['tokens']} tokens predicted, {rate:.0f} a second; context {result['context']}")
