"""Continue a text, as it is written; --json prints it at the end, with its tokens and times."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from . import options

if TYPE_CHECKING:
    from ..tasks.stream import TextStream

HELP = "continue a text"
EXAMPLE = """  pocketformer generate smollm2.pocket "The capital of France is" --max-tokens 32
  pocketformer generate smollm2.pocket "Once upon a time" --temperature 0.8 --top-p 0.95 --seed 1"""

_NUMBERS = {
    "temperature": "0 takes the likeliest token; above, more varied texts",
    "top_p": "draw from the likeliest tokens that have this probability together",
    "min_p": "draw from tokens with at least so much of the likeliest one's probability",
    "repetition_penalty": "above 1: fewer tokens that were there before",
    "presence_penalty": "above 0: fewer tokens that the text has already",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    options.model_file(parser)
    parser.add_argument("prompt", metavar="PROMPT", help="the text to continue; - reads it from stdin")
    sampling(parser)
    options.threads(parser)


def sampling(parser: argparse.ArgumentParser) -> None:
    """What says how texts are written, for `chat` too."""
    parser.add_argument("--max-tokens", type=options.positive, default=256, metavar="N", help="(default: 256)")
    for name, text in _NUMBERS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, metavar="X", help=text)
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens; 0: from all")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text (default: a new one)")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before TEXT; may be repeated")
    parser.add_argument(
        "--logit-bias",
        action="append",
        type=bias,
        default=[],
        metavar="TOKEN=X",
        help="add X to the logit of a token",
    )
    parser.add_argument(
        "--logprobs", type=int, metavar="N", help="with --json: each token's log probability, and the N likeliest"
    )
    parser.add_argument(
        "--lookup", type=int, default=0, metavar="N", help="try N tokens at once that followed the same words before"
    )
    parser.add_argument("--context", type=options.positive, metavar="N", help="most tokens of prompt and text together")
    options.kv(parser)


def bias(text: str) -> tuple[int, float]:
    """``TOKEN=X``."""
    token, _, number = text.partition("=")
    try:
        return int(token), float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not TOKEN=X, such as 42=-1.5") from None


def given(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `Generator.generate` that :func:`sampling` read."""
    numbers = {name: getattr(args, name) for name in (*_NUMBERS, "top_k") if getattr(args, name) is not None}
    return {
        **numbers,
        "seed": args.seed,
        "stop": args.stop,
        "logit_bias": dict(args.logit_bias),
        "logprobs": args.logprobs,
        "lookup": args.lookup,
    }


def follow(stream: TextStream, begin: float, quiet: bool, interruptible: bool = False) -> dict[str, Any]:
    """Prints a text as it comes unless ``quiet``; what it was, and the seconds since ``begin``.

    Where it is ``interruptible``, Ctrl-C ends the text and nothing else.
    """
    pieces: list[str] = []
    first = None
    interrupted = False
    try:
        for piece in stream:
            first = first or time.perf_counter()
            pieces.append(piece)
            if not quiet:
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        if not interruptible:
            raise
        stream.close()
        interrupted = True
    end = time.perf_counter()
    logprobs = {"logprobs": [entry._asdict() for entry in stream.logprobs]} if stream.logprobs else {}
    return {
        "text": "".join(pieces),
        "finish_reason": "interrupted" if interrupted else stream.finish_reason,
        "prompt_tokens": stream.prompt_tokens,
        "tokens": len(stream.ids),
        "steps": stream.steps,
        "seed": stream.seed,
        "seconds_to_first": (first or end) - begin,
        "seconds": end - begin,
        **logprobs,
    }


def execute(args: argparse.Namespace) -> dict[str, Any]:
    from ..tasks.generate import Generator

    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    model = Generator.load(args.model, args.threads, context=args.context, kv=args.kv)
    begin = time.perf_counter()
    stream = model.generate(prompt, args.max_tokens, stream=True, **given(args))
    return {"prompt": prompt, **follow(stream, begin, quiet=args.json)}


def show(result: dict[str, Any]) -> None:
    """The text has been printed as it came."""
    print()
