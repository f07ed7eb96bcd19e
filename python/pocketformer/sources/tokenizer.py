"""The tokenizer of a checkpoint folder as one ``tokenizer.json`` that needs no settings beside it.

transformers lets ``tokenizer_config.json`` decide much of what ids a text gets, whatever ``tokenizer.json`` says: most
of its classes take the vocabulary alone from that file and build the rest from the settings. Here the same is done
once, when a model is compressed, in the order of ``AutoTokenizer.from_pretrained`` of transformers 5. What cannot be
written into a ``tokenizer.json`` is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, UnsupportedModelError
from .config import Config
from .special_tokens import SpecialTokens
from .tokenizer_files import Settings, TokenizerFiles
from .tokenizer_kinds import choose
from .tokenizer_parts import Kind

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class ImportedTokenizer:
    """``json`` is a complete ``tokenizer.json``; ``truncation`` in it says at which end texts are cut."""

    json: bytes
    mask_token_id: int | None


def read_tokenizer(
    settings: Settings, config: Config, rows: int, max_length: int, lowercase: bool = False
) -> ImportedTokenizer | None:
    """The tokenizer of ``settings.folder``, or None where there are no files for one.

    ``rows`` is the height of the model's token table, ``max_length`` the tokens at which texts are cut. ``lowercase``
    lowers texts first (``do_lower_case`` of sentence-transformers).

    Raises:
        CheckpointError: a file is damaged, or the vocabulary is larger than the table.
        UnsupportedModelError: the class or a setting has no counterpart in a ``tokenizer.json``.
    """
    settings.refuse("auto_map", "tokenizers that come as code are never run: save a tokenizer.json")
    settings.refuse("split_special_tokens", "special tokens in a text are always read as such")
    if settings.values.get("fast_tokenizer_files", ["tokenizer.json"]) != ["tokenizer.json"]:
        settings.refuse("fast_tokenizer_files", "keep the one that applies, as tokenizer.json")
    kind = choose(settings, config)
    files = TokenizerFiles.read(settings.folder, kind.vocabulary_files)
    if files is None:
        return None
    try:
        return _assemble(kind, files, settings, rows, max_length, lowercase)
    except (CheckpointError, UnsupportedModelError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # what the tokenizers library raises, panics too, has no type of its own
        raise CheckpointError(
            f"{files.path} does not make a {kind.name} ({error}); save the tokenizer with save_pretrained"
        ) from error


def _assemble(
    kind: Kind, files: TokenizerFiles, settings: Settings, rows: int, max_length: int, lowercase: bool
) -> ImportedTokenizer:
    special = SpecialTokens.collect(kind, files, settings)
    tokenizer = kind.build(files, settings, special.named)
    special.add_to(tokenizer, rows)
    kind.finish(tokenizer, files, settings, special.named)
    _check_rows(tokenizer, rows, files.path)
    cut = (files.json or {}).get("truncation") or {}
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, direction=settings.side(str(cut.get("direction", "right")).lower()))
    content = json.loads(tokenizer.to_str())
    if lowercase:
        content["normalizer"] = _lower_first(content["normalizer"])
    names = settings.values.get("model_input_names")
    if "token_type_ids" not in (kind.inputs if names is None else names):
        content["post_processor"] = _untyped(content["post_processor"])
    mask = special.named.get("mask_token")
    mask_id = None if mask is None else tokenizer.token_to_id(str(mask))
    return ImportedTokenizer(json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode(), mask_id)


def _check_rows(tokenizer: Tokenizer, rows: int, path: Path) -> None:
    beyond = {text: index for text, index in tokenizer.get_vocab(with_added_tokens=True).items() if index >= rows}
    if beyond:
        text, index = max(beyond.items(), key=lambda item: item[1])
        raise CheckpointError(
            f"{path} and the files beside it give {text!r} the id {index}, but the model's token table has {rows} "
            "rows; the tokenizer belongs to another model, or resize_token_embeddings was forgotten"
        )


def _lower_first(normalizer: dict[str, Any] | None) -> dict[str, Any]:
    """Lowercases before everything else, as sentence-transformers does where no Lowercase step is there."""
    steps = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer]
    present = [step for step in steps if step is not None]
    if normalizer is not None and any(step["type"] == "Lowercase" for step in present):
        return normalizer
    return {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *present]}


def _untyped(processor: Any) -> Any:
    """The post-processor with 0 for every token type: the class does not give types to the model."""
    if not isinstance(processor, dict):
        return processor
    kind = processor.get("type")
    if kind == "Sequence":
        return {**processor, "processors": [_untyped(step) for step in processor["processors"]]}
    if kind == "TemplateProcessing":
        return {**processor, **{key: _pieces(processor[key], 0) for key in ("single", "pair")}}
    if kind == "BertProcessing":
        (sep, sep_id), (cls, cls_id) = processor["sep"], processor["cls"]
        tokens = {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in ((sep, sep_id), (cls, cls_id))}
        single = [_special(cls), _sequence("A"), _special(sep)]
        pair = [*single, _sequence("B"), _special(sep)]
        return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}
    return processor


def _pieces(template: Iterable[dict[str, dict[str, Any]]], type_id: int) -> list[dict[str, dict[str, Any]]]:
    return [{kind: {**fields, "type_id": type_id} for kind, fields in piece.items()} for piece in template]


def _special(token: str) -> dict[str, dict[str, Any]]:
    return {"SpecialToken": {"id": token, "type_id": 0}}


def _sequence(name: str) -> dict[str, dict[str, Any]]:
    return {"Sequence": {"id": name, "type_id": 0}}
