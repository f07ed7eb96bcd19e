"""From a checkpoint to a pocket file."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .budget import Planner
from .calibration import Samples, Text
from .fuse import fuse_attention as fuse
from .halting import halt_tokens
from .limits import Limits, parse_seconds, parse_size
from .merging import merge_tokens
from .options import QuantizeOptions
from .pipeline import compress_checkpoint, compress_graph, kept_integers, make_profiler
from .pipeline import rounds as rounds_weights
from .plan import Plan, carry_out, plan_by_shares, read_plan
from .precision import Precision
from .profile import Progress
from .prune import PruneOptions
from .report import CompressionReport, TrimmedVocabulary
from .vocabulary import trim_vocabulary
from .width import find_stream, narrow, rounded_stream

if TYPE_CHECKING:
    from ..sources.huggingface import Checkpoint

__all__ = [
    "CompressionReport",
    "Plan",
    "Precision",
    "PruneOptions",
    "QuantizeOptions",
    "TrimmedVocabulary",
    "compress",
    "compress_checkpoint",
    "compress_graph",
    "make_plan",
]


def compress(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    weights: str | None = None,
    table_bits: int | None = None,
    group: int | None = None,
    precision: Mapping[str, Precision] | None = None,
    bounded_pairs: bool = False,
    calibration: Samples | str | os.PathLike[str] | None = None,
    save_profile: str | os.PathLike[str] | None = None,
    options: QuantizeOptions | None = None,
    tower: str | None = None,
    plan: Plan | str | os.PathLike[str] | None = None,
    budget: int | str | None = None,
    max_memory: int | str | None = None,
    latency: float | str | None = None,
    board: str | None = None,
    length: int | None = None,
    batch: int | None = None,
    threads: int | None = None,
    prune: PruneOptions | None = None,
    keep_scripts: str | Iterable[str] | None = None,
    keep_vocabulary: Iterable[Text] | str | os.PathLike[str] | None = None,
    width: float = 1.0,
    fuse_attention: bool = False,
    merge: int | None = None,
    halt: tuple[float, float] | None = None,
) -> CompressionReport:
    """Compresses ``src``, a folder of Hugging Face or sentence-transformers or a GGUF file, to the pocket file ``dst``.

    ``weights`` is ``int8``, ``int4`` (indices into a codebook of 16 that is learned for each weight), ``fp16`` (linears
    and tables are rounded to that, and computed with as ``fp32`` is) or ``fp32``; or ``gguf``: the integers of a
    quantized GGUF file are kept as they are, and what it holds as floats becomes int8. The default is
    ``gguf`` for such a file, unless ``table_bits``, ``group``, ``bounded_pairs``, a budget or a plan asks for rounding
    anew, and ``int8`` else.
    ``table_bits``: of the table of words, which is only looked up, 3 to 8; by default 8, or 4 with ``int4``. ``group``:
    how many inputs of a 4-bit weight share a scale, 16, 32, 64 (the default) or 128; 0: all of an output channel.
    ``precision``: that of single weights, by name or pattern (``{"layers.5.*": Precision(8)}``).

    ``bounded_pairs``: int8 linears are rounded so that two weights of neighbouring inputs are 128 together at most.
    CPUs with AVX2 and without VNNI then multiply faster, at about 1.4 times the error of the weights; on others it is
    of no use. It is for what ``reduce_range`` (7 bits) of ONNX Runtime is for, at half of that one's squared error.

    ``calibration``: what the model is run on to see what its weights are multiplied by. Texts, pairs of texts, the
    token ids of sequences, the path of a file with a text a line (a tab between those of a pair), or of a profile, an
    ``.npz``; for a model of images these, or the path of a folder of them. Best are texts or images like those that it
    will read; by default they are sentences of our own, and of images pictures that are made up, where something has
    fewer bits than int8 or is pruned. ``save_profile`` keeps what was seen as such a profile.

    ``budget`` is the most that the file may have, in bytes or such as ``"14MB"``: weights get fewer bits, and hidden
    channels leave, where that costs least (:func:`make_plan` tells which). ``max_memory``, in the same units, is the
    most that the mapped file and working memory may have together, and ``latency``, in seconds or such as ``"8ms"``,
    the most that a run may take on ``board`` (``pi5`` …; by default this machine) as the cost model has it: both of
    ``batch`` (1) sequences of ``length`` tokens (128, or as many as the model takes) on ``threads`` (all cores). All
    limits that are given are kept. ``plan`` is one that was made before, or its
    file, and decides ``weights`` too. ``prune`` says how channels are chosen. ``width`` is the share of the residual
    stream's columns that is left, as its principal components, before anything else is done; the output keeps its own.

    ``keep_scripts`` (``"Deva,Latn"``) and ``keep_vocabulary`` (texts, or a file with a text a line) trim the vocabulary
    to what texts in these scripts can become, and to what these texts use; the report says how many texts of the
    calibration have other tokens then. By default every entry stays.

    ``fuse_attention`` multiplies the projections of each head into each other where that saves parameters: where the
    columns are fewer than twice a head's channels, and nothing (rope, norms of heads) stands between them. The outputs
    are the same; the report gives the reason of each layer that stays as it is.

    ``merge``, for models of images: so many tokens become one with others like them at each layer, which makes the
    model faster and less exact (:func:`~pocketformer.compression.merging.merge_tokens`).

    ``halt``, for vision transformers that were trained as A-ViT (arXiv 2112.07658): the scale and the center of the
    gate, (10, 30) for its tiny and (10, 75) for its small one, by which tokens leave after each layer
    (:func:`~pocketformer.compression.halting.halt_tokens`).

    ``tower`` names the half of a CLIP or SigLIP that the file is for, ``vision`` or ``text``. ``options`` holds the
    rest. On a terminal a progress bar is drawn on stderr when rich is installed.

    Example:
        >>> print(pocketformer.compress("all-MiniLM-L6-v2", "minilm.pocket"))  # doctest: +SKIP

    Raises:
        ValueError: ``weights`` is another word, or ``gguf`` where there are no integers to keep; a precision does not
            fit its weight, or the calibration is empty, too short, of no known kind, or unknown to the model's
            vocabulary. Also a limit that cannot be reached, a plan that does not fit the model or is of another
            ``width``, or a plan and a budget; an unknown script, and a vocabulary to be trimmed of a model without
            tokenizer; attention to be fused where it saves nothing, or beside a plan or limits.
        CheckpointError, UnsupportedModelError: the folder or the file cannot be imported.
    """
    from ..sources.huggingface import load_checkpoint

    chosen = _chosen(table_bits, group, precision, bounded_pairs)
    if chosen and weights == "fp32":
        raise ValueError(f"weights is 'fp32', where nothing is rounded; leave {', '.join(chosen)} out")
    limits = _limits(budget, max_memory, latency, board, length, batch, threads)
    if plan is not None and limits is not None:
        raise ValueError("a plan and a budget were given; a plan says already what is done: leave one out")
    if fuse_attention and (plan is not None or limits is not None):
        raise ValueError("fuse_attention is given beside a plan or limits, which know each head apart: leave one out")
    if merge is not None and (plan is not None or limits is not None):
        raise ValueError(f"merge is {merge!r}, beside a plan or a limit; leave one out")
    if halt is not None and (plan is not None or limits is not None or width != 1 or merge is not None):
        raise ValueError(f"halt is {halt!r}, beside merge, width, a plan or a limit; leave one out")
    options = replace(options or QuantizeOptions(), **chosen)
    if plan is not None and options.bounded_pairs:
        raise ValueError("bounded_pairs is given beside a plan, which says of each weight; leave one out")
    calibration = _kept(calibration)
    with _progress_bar() as progress:
        loaded = load_checkpoint(os.fspath(src), tower)
        if merge is not None:
            loaded = replace(loaded, graph=merge_tokens(loaded.graph, merge))
        if halt is not None:
            loaded = replace(loaded, graph=halt_tokens(loaded.graph, *halt))
        whole = sum(array.nbytes for array in loaded.graph.params.values())
        loaded, trimmed = trim_vocabulary(loaded, keep_scripts, keep_vocabulary, calibration)
        rounds = table_bits is not None or group is not None or limits is not None or plan is not None or width != 1
        rounds = rounds or options.bounded_pairs
        weights = _weights_of(loaded, weights, rounds)
        loaded = _narrowed(loaded, width, options, calibration)
        apart = sum(array.nbytes for array in loaded.graph.params.values())
        loaded, unfused = _fused(loaded) if fuse_attention else (loaded, {})
        if width != 1 and plan is None and limits is None and not rounds_weights(loaded.graph, weights, options):
            calibration = None  # what is not rounded is not watched again
        if limits is not None:
            plan = replace(
                Planner(loaded, weights, prune, options, calibration, progress).for_limits(limits), width=width
            )
        elif isinstance(plan, str | os.PathLike):
            plan = read_plan(plan, loaded.graph, width)
        if plan is None:
            report = compress_checkpoint(loaded, dst, weights, progress, options, calibration, save_profile)
            report = report.with_fusion(apart, unfused) if fuse_attention else report
            return report.with_vocabulary(trimmed, whole)
        plan.check_width(width)
        plan.check_vocabulary(loaded.graph)
        before = sum(array.nbytes for array in loaded.graph.params.values())
        profiler = make_profiler(loaded, options, calibration, needed=plan.prunes)
        loaded, pruned = carry_out(loaded, plan, prune, profiler, progress)
        options = replace(plan.options(options), bounded_pairs=False)
        if not rounds_weights(loaded.graph, plan.weights, options):
            calibration = None  # what is not rounded is not watched again
        report = compress_checkpoint(loaded, dst, plan.weights, progress, options, calibration, save_profile)
        report = report.with_pruning(before, tuple(pruned)) if pruned else report
        return report.with_vocabulary(trimmed, whole)


def make_plan(
    src: str | os.PathLike[str],
    *,
    weights: str = "int8",
    budget: int | str | None = None,
    max_memory: int | str | None = None,
    latency: float | str | None = None,
    board: str | None = None,
    length: int | None = None,
    batch: int | None = None,
    threads: int | None = None,
    ffn: float = 0.0,
    heads: float = 0.0,
    table_bits: int | None = None,
    group: int | None = None,
    precision: Mapping[str, Precision] | None = None,
    bounded_pairs: bool = False,
    calibration: Samples | str | os.PathLike[str] | None = None,
    prune: PruneOptions | None = None,
    options: QuantizeOptions | None = None,
    tower: str | None = None,
    keep_scripts: str | Iterable[str] | None = None,
    keep_vocabulary: Iterable[Text] | str | os.PathLike[str] | None = None,
    width: float = 1.0,
) -> Plan:
    """What :func:`compress` would do to ``src``, without doing it.

    With ``budget``, ``max_memory`` or ``latency`` the plan of least predicted error that keeps to them; else one that
    removes about the shares ``ffn`` of the hidden channels and ``heads`` of the attention heads of every layer.
    ``table_bits`` and ``precision`` fix the weights that they name; the other arguments are those of :func:`compress`.
    Save a plan with ``Plan.save``, edit it, and give it to :func:`compress`.

    Raises ValueError for a budget that cannot be reached, and for shares outside 0…1 or beside a budget.
    """
    from ..sources.huggingface import load_checkpoint

    limits = _limits(budget, max_memory, latency, board, length, batch, threads)
    if limits is not None and (ffn or heads):
        raise ValueError("a budget and shares to prune were given; a budget chooses its own: leave one out")
    chosen = _chosen(table_bits, group, precision, bounded_pairs)
    options = replace(options or QuantizeOptions(), **chosen)
    calibration = _kept(calibration)
    with _progress_bar() as progress:
        loaded, trimmed = trim_vocabulary(
            load_checkpoint(os.fspath(src), tower), keep_scripts, keep_vocabulary, calibration
        )
        loaded = _narrowed(loaded, width, options, calibration)
        if limits is None:
            plan = plan_by_shares(loaded.graph, weights, ffn, heads, options)
        else:
            plan = Planner(loaded, weights, prune, options, calibration, progress).for_limits(limits)
        return replace(plan, vocabulary=trimmed, width=width)


def _chosen(
    table_bits: int | None, group: int | None, precision: Mapping[str, Precision] | None, bounded_pairs: bool
) -> dict[str, Any]:
    """What was given of the options."""
    given = {"table_bits": table_bits, "group": group, "precision": precision, "bounded_pairs": bounded_pairs or None}
    return {name: value for name, value in given.items() if value is not None}


def _narrowed(
    loaded: Checkpoint, share: float, options: QuantizeOptions, calibration: Samples | str | os.PathLike[str] | None
) -> Checkpoint:
    """``loaded`` with the share of its residual stream's columns. Raises ValueError where it cannot be narrowed."""
    if share == 1:
        return loaded
    stream = find_stream(loaded.graph)
    width = rounded_stream(stream.width, share)
    profiler = make_profiler(loaded, options, calibration, needed=True)
    if profiler is None:
        raise ValueError(f"width is {share}, which needs inputs to look at, and there are none; leave it out")
    graph = narrow(loaded.graph, width, profiler)
    return replace(loaded, graph=graph, model={**loaded.model, "params": sum(p.size for p in graph.params.values())})


def _fused(loaded: Checkpoint) -> tuple[Checkpoint, dict[str, str]]:
    """``loaded`` with its attention fused, and why that of some layers is not. Raises ValueError where none is."""
    graph, reasons = fuse(loaded.graph)
    if graph is loaded.graph:
        where, reason = next(iter(reasons.items()), ("the model", "it has no attention"))
        raise ValueError(f"fuse_attention saves nothing here; {where}: {reason}")
    params = sum(array.size for array in graph.params.values())
    return replace(loaded, graph=graph, model={**loaded.model, "params": params}), reasons


def _limits(
    budget: int | str | None,
    max_memory: int | str | None,
    latency: float | str | None,
    board: str | None,
    length: int | None,
    batch: int | None,
    threads: int | None,
) -> Limits | None:
    """What was asked for; None where nothing was."""
    how = {"board": board, "length": length, "batch": batch, "threads": threads}
    given = {name: value for name, value in how.items() if value is not None}
    if given and max_memory is None and latency is None:
        raise ValueError(f"{', '.join(given)} tell which run a memory or a latency is of; give one, or leave them out")
    if budget is None and max_memory is None and latency is None:
        return None
    return Limits(
        parse_size(budget) if isinstance(budget, str) else budget,
        parse_size(max_memory) if isinstance(max_memory, str) else max_memory,
        parse_seconds(latency) if isinstance(latency, str) else latency,
        **given,  # type: ignore[arg-type]
    )


def _weights_of(loaded: Checkpoint, weights: str | None, rounds: bool) -> str:
    """``weights``, or what they are by default; ``rounds`` says that something else was asked for that rounds anew."""
    if weights not in (None, "gguf"):
        return str(weights)
    integers = bool(kept_integers(loaded.graph, QuantizeOptions()))
    if weights is None:
        return "gguf" if integers and not rounds else "int8"
    if rounds or not integers:
        problem = (
            "a budget, a plan, table_bits, group or bounded_pairs asks for others"
            if rounds
            else "this checkpoint has none"
        )
        raise ValueError(f"weights is 'gguf', which keeps integers, but {problem}; pass int8 or int4")
    return weights


def _kept(calibration: Samples | str | os.PathLike[str] | None) -> Samples | str | os.PathLike[str] | None:
    """Samples that can be read again."""
    if calibration is None or isinstance(calibration, str | os.PathLike):
        return calibration
    return list(calibration)  # type: ignore[return-value]


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
