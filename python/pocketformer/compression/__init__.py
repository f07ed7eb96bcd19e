"""From a checkpoint to a pocket file."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator

from .pipeline import compress_checkpoint, compress_graph
from .quantize import Progress, QuantizeOptions
from .report import CompressionReport

__all__ = ["CompressionReport", "QuantizeOptions", "compress", "compress_checkpoint", "compress_graph"]


def compress(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    weights: str = "int8",
    options: QuantizeOptions | None = None,
) -> CompressionReport:
    """Compresses the Hugging Face or sentence-transformers folder ``src`` into the pocket file ``dst``.

    ``weights`` is ``int8`` or ``fp32``. On a terminal a progress bar is drawn on stderr when rich is installed.

    Example:
        >>> print(pocketformer.compress("all-MiniLM-L6-v2", "minilm.pocket"))  # doctest: +SKIP

    Raises:
        ValueError: ``weights`` is another word.
        CheckpointError, UnsupportedModelError: the folder cannot be imported.
    """
    from ..sources.huggingface import load_checkpoint

    with _progress_bar() as progress:
        return compress_checkpoint(load_checkpoint(os.fspath(src)), dst, weights, progress, options)


@contextlib.contextmanager
def _progress_bar() -> Iterator[Progress | None]:
    if not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("compress", total=1.0)
        yield lambda what, share: bar.update(task, description=what, completed=share)
