"""Talk with a model: a line is a message, /reset begins anew, /save FILE keeps the conversation as JSON, /exit ends.

Ctrl-C stops an answer; what it said so far stays. --json answers one message from stdin.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import generate, options

if TYPE_CHECKING:
    from ..tasks.generate import Generator

HELP = "talk with a model"
EXAMPLE = """  pocketformer chat smollm2.pocket
  pocketformer chat smollm2.pocket --system "Answer in one sentence." --temperature 0.7
  echo "What is 2 + 2?" | pocketformer chat smollm2.pocket --json"""


def arguments(parser: argparse.ArgumentParser) -> None:
    options.model_file(parser)
    parser.add_argument("--system", metavar="TEXT", help="what the model is told first")
    generate.sampling(parser)
    options.threads(parser)


def execute(args: argparse.Namespace) -> dict[str, Any]:
    from ..tasks.chat import import_jinja
    from ..tasks.generate import Generator

    import_jinja()
    model = Generator.load(args.model, args.threads, context=args.context, kv=args.kv)
    start = [] if args.system is None else [{"role": "system", "content": args.system}]
    if args.json:
        message = sys.stdin.read().strip()
        return {"message": message, **_answer(model, [*start, {"role": "user", "content": message}], args)}
    messages = list(start)
    turns = 0
    while True:
        line = _line()
        if line is None or line == "/exit":
            return {"turns": turns}
        if line == "/reset":
            messages = list(start)
        elif line.split(maxsplit=1)[:1] == ["/save"]:
            _save(line.removeprefix("/save").strip(), messages)
        elif line:
            messages.append({"role": "user", "content": line})
            result = _answer(model, messages, args)
            messages.append({"role": "assistant", "content": result["text"]})
            turns += 1
            rate = max(result["tokens"] - 1, 0) / max(result["seconds"] - result["seconds_to_first"], 1e-9)
            stopped = ", stopped" if result["finish_reason"] == "interrupted" else ""
            print(f"\n[{result['tokens']} tokens, {rate:.1f} a second{stopped}]", file=sys.stderr)


def _line() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


def _save(path: str, messages: list[dict[str, str]]) -> None:
    """Writes what `Generator.chat` takes; a path that does not work ends no conversation."""
    if not path:
        print("say where: /save FILE", file=sys.stderr)
        return
    try:
        Path(path).write_text(json.dumps(messages, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        print(f"{path}: {error.strerror}; nothing was saved", file=sys.stderr)
    else:
        print(f"{len(messages)} messages saved to {path}", file=sys.stderr)


def _answer(model: Generator, messages: list[dict[str, str]], args: argparse.Namespace) -> dict[str, Any]:
    begin = time.perf_counter()
    stream = model.chat(messages, args.max_tokens, stream=True, **generate.given(args))
    return generate.follow(stream, begin, quiet=args.json, interruptible=not args.json)


def show(result: dict[str, Any]) -> None:
    """Everything has been printed as it came."""
