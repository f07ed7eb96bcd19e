"""Rows of the table of words that a user does without: by script, or those that a corpus does not use.

The tokenizer that the file carries, the table, and a head that predicts words lose the same entries; the others are
numbered anew, in order.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from ..graph import Array, Graph
from ..lazy import take_rows
from .calibration import TEXTS_AT_ONCE, Samples, Text, default_texts, read_lines
from .dataflow import Dataflow
from .pieces import Pieces, script_filter
from .profile import kept_profile
from .report import TrimmedVocabulary

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

    from ..sources.huggingface import Checkpoint

SAMPLE = 10_000
"""Texts, at most, of which is told whether their tokens change."""
PREDICTS_WORDS = ("fill_mask", "generate", "embed_sparse")
"""Tasks whose results are a number for each entry of the vocabulary."""


def trim_vocabulary(
    loaded: Checkpoint,
    keep_scripts: str | Iterable[str] | None = None,
    keep_vocabulary: Iterable[Text] | str | os.PathLike[str] | None = None,
    calibration: Samples | str | os.PathLike[str] | None = None,
) -> tuple[Checkpoint, TrimmedVocabulary | None]:
    """``loaded`` with the entries alone that a text in ``keep_scripts`` can become or that ``keep_vocabulary`` uses.

    ``keep_scripts`` are codes such as ``["Deva", "Latn"]`` or ``"Deva,Latn"``; what all scripts use (digits,
    punctuation, marks) stays with any. ``keep_vocabulary`` are texts, or a file with a text a line, whose tokens stay.
    Special and added tokens, single bytes, and what prompts and a chat template are made of always stay. Without
    either nothing is trimmed. How many texts have other tokens afterwards is told of those of ``calibration``, else of
    ``keep_vocabulary``, else of our own sentences.

    Raises ValueError for a model without tokenizer, an unknown script, texts that are none, or a ``calibration`` of
    token ids, which mean other words now.
    """
    if keep_scripts is None and keep_vocabulary is None:
        return loaded, None
    if loaded.tokenizer_json is None:
        raise ValueError("the checkpoint has no tokenizer whose vocabulary could be trimmed; leave keep_… out")
    scripts = keep_scripts.split(",") if isinstance(keep_scripts, str) else list(keep_scripts or ())
    scripts = [script.strip() for script in scripts]
    if keep_vocabulary is not None and not isinstance(keep_vocabulary, str | os.PathLike):
        keep_vocabulary = list(keep_vocabulary)
    if keep_scripts is not None and not any(scripts):
        raise ValueError("keep_scripts names no script; give codes such as Latn, Deva, Telu or Knda")
    sample, what = _sample(keep_vocabulary, calibration)
    pieces = Pieces(loaded.tokenizer_json)
    tokenizer = _open(loaded.tokenizer_json)
    kept = pieces.always() | set(_ids_of(loaded.text))
    if scripts:
        kept |= pieces.in_scripts(script_filter(scripts))
    used: set[int] = set()
    for encoding in _encoded(tokenizer, _own_texts(loaded.text), loaded.text, "text"):
        used.update(encoding.ids)
    if keep_vocabulary is not None:
        count = 0
        for encoding in _encoded(tokenizer, _texts(keep_vocabulary), loaded.text, "keep_vocabulary"):
            count += 1
            used.update(encoding.ids)
        if not count:
            raise ValueError("keep_vocabulary holds no text; give texts like those that the model will read")
    kept |= pieces.with_parts(used)
    rows = np.array(sorted(kept), np.int64)
    if rows[-1] >= loaded.graph.vocab_size:
        raise ValueError(f"the tokenizer gives the id {rows[-1]}; the model knows 0…{loaded.graph.vocab_size - 1}")
    new = {int(row): index for index, row in enumerate(rows)}
    content = pieces.rewritten(new)
    graph = keep_rows(loaded.graph, rows, str(loaded.model["task"]))
    model = {**loaded.model, "params": sum(array.size for array in graph.params.values())}
    trimmed = replace(loaded, graph=graph, model=model, text=_renumbered(loaded.text, new), tokenizer_json=content)
    texts = list(islice(sample, SAMPLE))
    changed = sum(
        [new.get(index) for index in before.ids] != after.ids
        for before, after in zip(
            _encoded(tokenizer, texts, loaded.text, "calibration"),
            _encoded(_open(content), texts, loaded.text, "calibration"),
            strict=True,
        )
    )
    return trimmed, TrimmedVocabulary(loaded.graph.vocab_size, len(rows), len(texts), changed, what)


def keep_rows(graph: Graph, rows: Array, task: str) -> Graph:
    """``graph`` with these ``rows`` (int64, rising) of its vocabulary alone, which become 0, 1, …

    Tables that ids are looked up in lose the others, and a head that predicts words the outputs. Rows are read when
    they are used.
    """
    tables = {
        str(table["weight"])
        for op in graph.ops
        if op["op"] == "embed"
        for table in op["tables"]
        if table["index"] == "ids"
    }
    flow = Dataflow(graph)
    names = {f"{name}.weight" for name in tables}
    if task in PREDICTS_WORDS:
        op = flow.writer[graph.output]
        while op["op"] != "linear":
            op = flow.writer[op["in"]]
        tables.add(op["weight"])
        names |= {f"{op['weight']}.weight"} | ({op["bias"]} if op.get("bias") else set())
    params = dict(graph.params)
    for name in names:
        array = graph.params[name]
        params[name] = np.asarray(array)[rows] if array.ndim == 1 else take_rows(array, rows)
    return replace(
        graph,
        inputs=[{**entry, "limit": len(rows)} if entry["name"] == "ids" else entry for entry in graph.inputs],
        weights={n: {**facts, "n": len(rows)} if n in tables else facts for n, facts in graph.weights.items()},
        params=params,
    )


def _sample(
    corpus: Iterable[Text] | str | os.PathLike[str] | None, calibration: Samples | str | os.PathLike[str] | None
) -> tuple[Iterator[Text], str]:
    """Texts of which is told how many change, and what they are called."""
    if kept_profile(calibration):
        calibration = None
    if calibration is not None:
        samples = calibration if isinstance(calibration, str | os.PathLike) else list(calibration)
        if not isinstance(samples, str | os.PathLike) and not all(map(_is_text, samples)):
            raise ValueError("calibration holds token ids, which are others in a trimmed vocabulary; give texts")
        return _texts(samples), "calibration"
    if corpus is not None:
        return _texts(corpus), "keep_vocabulary"
    return iter(default_texts()), "our own sentences, mostly English; give a calibration of yours"


def _is_text(sample: object) -> bool:
    return isinstance(sample, str) or (
        isinstance(sample, tuple | list) and len(sample) == 2 and all(isinstance(part, str) for part in sample)
    )


def _texts(samples: Any) -> Iterator[Text]:
    return read_lines(samples) if isinstance(samples, str | os.PathLike) else iter(samples)


def _own_texts(text: Mapping[str, Any]) -> list[Text]:
    """What is read with every text: prompts, and what a chat template holds."""
    prompts = text.get("prompts")
    own = [*prompts.values()] if isinstance(prompts, dict) else []
    return [part for part in (*own, text.get("chat_template")) if isinstance(part, str) and part]


def _open(content: bytes) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        tokenizer: Tokenizer = Tokenizer.from_buffer(content)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of the tokenizers library is no Exception
        raise ValueError(f"the model's tokenizer cannot be trimmed ({error})") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _encoded(tokenizer: Tokenizer, texts: Iterable[Text], settings: Mapping[str, Any], what: str) -> Iterator[Encoding]:
    iterator = iter(texts)
    while batch := list(islice(iterator, TEXTS_AT_ONCE)):
        wrong = next((text for text in batch if not _is_text(text)), None)
        if wrong is not None:
            raise ValueError(f"{what} holds {wrong!r:.60}; it must hold texts or pairs of texts")
        parts = [text if isinstance(text, str) else tuple(text) for text in batch]
        if settings.get("lowercase"):
            parts = [p.lower() if isinstance(p, str) else tuple(part.lower() for part in p) for p in parts]
        try:
            yield from tokenizer.encode_batch(parts)
        except (KeyboardInterrupt, SystemExit, MemoryError, GeneratorExit):
            raise
        except BaseException as error:
            raise ValueError(f"{what}: the model's tokenizer fails on its texts ({error})") from None


def _ids_of(text: Mapping[str, Any]) -> Iterator[int]:
    """The ids that ``text`` of a checkpoint names and needs."""
    for key in ("mask_token_id", "pad_token_id", "pooled_token"):
        if isinstance(text.get(key), int):
            yield text[key]
    yield from text.get("end_token_ids") or ()
    if text.get("expansion"):
        yield text["expansion"]["token_id"]


def _renumbered(text: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    result = dict(text)
    for key in ("mask_token_id", "pad_token_id", "pooled_token"):
        if isinstance(text.get(key), int):
            result[key] = new[text[key]]
    lists: Sequence[str] = ("end_token_ids", "skipped_ids")
    for key in lists:
        if text.get(key):
            result[key] = [new[index] for index in text[key] if index in new]
    if text.get("expansion"):
        result["expansion"] = {**text["expansion"], "token_id": new[text["expansion"]["token_id"]]}
    return result
