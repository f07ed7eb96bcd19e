"""Longformer: RoBERTa whose layers look at their neighbours, beside global tokens with projections of their own.

Beltagy et al., "Longformer: The Long-Document Transformer" (arXiv 2004.05150).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import CheckpointError
from ..graph import GLOBALS, GraphBuilder
from ..sources.source import Config, Tensors
from . import bert, roberta
from .encoder import EncoderSpec, embeddings
from .family import Family
from .transformer import Layer

_NAMES = replace(bert.NAMES, global_qkv=tuple(f"attention.self.{part}_global" for part in ("query", "key", "value")))


@dataclass(frozen=True)
class LongformerSpec(EncoderSpec):
    """``windows`` tells how far each layer's tokens look to each side."""

    windows: tuple[int, ...] = ()


def spec(config: Config) -> LongformerSpec:
    base = roberta.spec(config)
    given = config.values.get("attention_window", 512)
    windows = [given] * base.layers if isinstance(given, int) else given
    even = isinstance(windows, list) and all(isinstance(w, int) and w >= 2 and w % 2 == 0 for w in windows)
    if not even or len(windows) != base.layers:
        raise CheckpointError(
            f"{config.path}: 'attention_window' is {given!r:.80}; it must be an even number of tokens, or one for each "
            f"of the {base.layers} layers"
        )
    return LongformerSpec.extending(base, windows=tuple(window // 2 for window in windows))


def for_task(spec: EncoderSpec, task: str) -> EncoderSpec:
    """As transformers has it by default: the first token is global to classify a text, the question to answer it."""
    if task == "classify":
        return replace(spec, layer=replace(spec.layer, globals=1))
    if task == "answer":
        return replace(spec, layer=replace(spec.layer, more_globals=GLOBALS))
    return spec


def encode(b: GraphBuilder, spec: EncoderSpec, tensors: Tensors, prefix: str) -> str:
    assert isinstance(spec, LongformerSpec)
    x = embeddings(b, spec, tensors, prefix)
    if spec.layer.more_globals:
        b.sequence_index(spec.layer.more_globals, spec.max_length + 1)
    for i, window in enumerate(spec.windows):
        layer = replace(spec.layer, window=window)
        x = Layer.read(f"layers.{i}", layer, tensors, f"{prefix}encoder.layer.{i}.", _NAMES).append_to(b, x)
    return x


LONGFORMER = Family(
    name="longformer",
    classes="Longformer",
    base="longformer",
    spec=spec,
    encode=encode,
    classify=roberta.ROBERTA.classify,
    mask=roberta.ROBERTA.mask,
    for_task=for_task,
)
