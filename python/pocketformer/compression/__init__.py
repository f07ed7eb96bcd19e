"""From a checkpoint to a pocket file."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace

from .calibration import Samples
from .pipeline import compress_checkpoint, compress_graph
from .precision import Precision
from .profile import Progress
from .quantize import QuantizeOptions
from .report import CompressionReport

__all__ = ["CompressionReport", "Precision", "QuantizeOptions", "compress", "compress_checkpoint", "compress_graph"]


def compress(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    weights: str = "int8",
    table_bits: int | None = None,
    group: int | None = None,
    precision: Mapping[str, Precision] | None = None,
    calibration: Samples | str | os.PathLike[str] | None = None,
    save_profile: str | os.PathLike[str] | None = None,
    options: QuantizeOptions | None = None,
    tower: str | None = None,
) -> CompressionReport:
    """Compresses ``src``, a folder of Hugging Face or sentence-transformers or a GGUF file, to the pocket file ``dst``.

    ``weights`` is ``int8``, ``int4`` (indices into a codebook of 16 that is learned for each weight) or ``fp32``.
    ``table_bits``: of the table of words, which is only looked up, 3 to 8; by default 8, or 4 with ``int4``. ``group``:
    how many inputs of a 4-bit weight share a scale, 16, 32, 64 (the default) or 128; 0: all of an output channel.
    ``precision``: that of single weights, by name or pattern (``{"layers.5.*": Precision(8)}``).

    ``calibration``: what the model is run on to see what its weights are multiplied by. Texts, pairs of texts, the
    token ids of sequences, the path of a file with a text a line (a tab between those of a pair), or of a profile, an
    ``.npz``. Best are texts like those that it will read; by default they are sentences of our own. ``save_profile``
    keeps what was seen as such a profile.

    ``tower`` names the half of a CLIP or SigLIP that the file is for, ``vision`` or ``text``. ``options`` holds the
    rest. On a terminal a progress bar is drawn on stderr when rich is installed.

    Example:
        >>> print(pocketformer.compress("all-MiniLM-L6-v2", "minilm.pocket"))  # doctest: +SKIP

    Raises:
        ValueError: ``weights`` is another word, a precision does not fit its weight, or the calibration is empty, too
            short, of no known kind, or unknown to the model's vocabulary.
        CheckpointError, UnsupportedModelError: the folder or the file cannot be imported.
    """
    from ..sources.huggingface import load_checkpoint

    given = {"table_bits": table_bits, "group": group, "precision": precision}
    chosen = {name: value for name, value in given.items() if value is not None}
    if chosen and weights == "fp32":
        raise ValueError(f"weights is 'fp32', where nothing is rounded; leave {', '.join(chosen)} out")
    options = replace(options or QuantizeOptions(), **chosen)  # type: ignore[arg-type]
    with _progress_bar() as progress:
        loaded = load_checkpoint(os.fspath(src), tower)
        return compress_checkpoint(loaded, dst, weights, progress, options, calibration, save_profile)


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
