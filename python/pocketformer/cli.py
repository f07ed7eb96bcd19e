"""The command ``pocketformer``: one module in ``commands`` for each subcommand."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

from . import __version__
from .commands import bench, chat, compare, compress, demo, encode, generate, info, perplexity, predict, run
from .errors import TaskError

COMMANDS: dict[str, ModuleType] = {
    "compress": compress,
    "compare": compare,
    "encode": encode,
    "run": run,
    "generate": generate,
    "chat": chat,
    "perplexity": perplexity,
    "info": info,
    "bench": bench,
    "predict": predict,
    "demo": demo,
}
EXPECTED_ERRORS = (OSError, ValueError, ImportError, RuntimeError, MemoryError, TaskError)


def build_parser() -> argparse.ArgumentParser:
    """Each command module has ``HELP``, ``EXAMPLE``, ``arguments(parser)``, ``execute(args)`` and ``show(result)``."""
    parser = argparse.ArgumentParser(
        prog="pocketformer",
        description="Compress transformers to one small file and run it on any CPU.",
        epilog="Start with: pocketformer demo",
    )
    parser.add_argument("--version", action="version", version=f"pocketformer {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        command = subparsers.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            epilog=f"example:\n{module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.arguments(command)
        command.add_argument("--json", action="store_true", help="print the result as JSON and nothing else")
        command.set_defaults(module=module)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, or 1 after one line that says what was wrong.

    Arguments that do not parse end in SystemExit with 2.
    """
    args = _parse(argv)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.showwarning = _show_warning
            result = args.module.execute(args)
        if result is None:  # it was printed as it came
            pass
        elif args.json:
            print(json.dumps(result, ensure_ascii=False, indent=2))
        else:
            args.module.show(result)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe has seen enough; nothing may be written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except EXPECTED_ERRORS as error:
        print(f"pocketformer: error: {_explain(error)}", file=sys.stderr)
        return 1
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Texts may stand on both sides of the options, which argparse does not allow within subcommands."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if any(word.startswith("-") for word in rest) or (rest and not hasattr(args, "texts")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.texts += rest
    return args


def _explain(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; check the path"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{error.strerror}; free some and try again, the old file is unchanged"
    if isinstance(error, MemoryError):
        return "out of memory; close other programs, or give fewer or shorter texts at once"
    return " ".join(str(error).split())  # one line


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"pocketformer: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
