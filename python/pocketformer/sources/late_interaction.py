"""Settings of models with a vector for each token, as sentence-transformers, PyLate and ColBERT itself write them.

Khattab and Zaharia, "ColBERT" (arXiv 2004.12832): queries are filled up with mask tokens, documents leave out some.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, UnsupportedModelError
from .config import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from .tokenizer import ImportedTokenizer

STANFORD = "HF_ColBERT"
"""The architecture in ``config.json`` of ColBERT's own checkpoints."""

_PUNCTUATION = tuple(string.punctuation)
_PYLATE = {
    *("query_length", "document_length", "query_expansion", "do_query_expansion", "attend_to_expansion_tokens"),
    *("attend_to_mask_tokens", "query_prefix", "document_prefix", "skiplist_words"),
}


@dataclass(frozen=True)
class Expansion:
    """Queries of fewer than ``length`` tokens are filled up with ``token`` (None: the mask token).

    ``fixed``: longer ones are cut there. ``attend``: other tokens attend to those that fill up.
    """

    length: int
    fixed: bool = True
    attend: bool = False
    token: str | None = None


@dataclass(frozen=True)
class LateInteraction:
    """``markers`` are the prompts of queries and documents whose first word is one token, where it can be.

    The words of ``skipped`` are tokens that get no vector in the tasks ``skipped_in``.
    """

    query_length: int | None = None
    document_length: int | None = None
    expansion: Expansion | None = None
    skipped: tuple[str, ...] = ()
    skipped_in: tuple[str, ...] = ("document",)
    markers: Mapping[str, str] | None = None

    @classmethod
    def read(cls, root: Path, encoder: Path, settings: Mapping[str, Any], mask: Path | None) -> LateInteraction:
        """The settings of ``root``: those of its encoder's ``settings`` file win over those of PyLate.

        ``mask`` is the folder of the module MultiVectorMask, or None where there is none (PyLate, ColBERT).
        """
        path = root / "config_sentence_transformers.json"
        model = read_json(path) if path.is_file() else {}
        values = {**_of_pylate(model), **{key: value for key, value in settings.items() if key in _PYLATE}}
        values |= _of_stanford(root, encoder)
        markers = values.get("markers")
        skipped = values.get("skiplist_words")
        if skipped is None and model.get("model_type") == "ColBERT":
            skipped = list(_PUNCTUATION)
        tasks: Any = ["document"]
        if mask is not None:
            own = read_json(mask / "config.json")
            if own.get("keep_only_token_ids"):
                raise UnsupportedModelError(
                    f"{mask / 'config.json'}: 'keep_only_token_ids' is {own['keep_only_token_ids']!r}; it is of images"
                )
            skipped, tasks = own.get("skiplist_words") or [], own.get("skiplist_tasks") or ["document"]
        if isinstance(tasks, str):
            tasks = [tasks]
        if not _strings(skipped or []) or not _strings(tasks):
            raise CheckpointError(f"{mask or path}: the words and tasks of the skiplist must be lists of strings")
        return cls(
            _count(path, "query_length", values.get("query_length")),
            _count(path, "document_length", values.get("document_length")),
            _expansion(path, values.get("query_expansion")),
            tuple(skipped or ()),
            tuple(tasks),
            markers,
        )

    def text(
        self, tokenizer: ImportedTokenizer, max_length: int, padding_side: str, prompts: Mapping[str, str]
    ) -> tuple[bytes, dict[str, Any]]:
        """The tokenizer with the markers as tokens, and the ``text`` section's ``prompts``, lengths and token ids.

        Raises UnsupportedModelError where queries cannot be filled up.
        """
        from tokenizers import AddedToken, Tokenizer

        changed: Tokenizer = Tokenizer.from_buffer(tokenizer.json)
        markers = dict(self.markers or {})
        tokens = [AddedToken(text, normalized=False, special=True) for text in _split_markers(changed, markers)]
        if tokens:
            changed.add_special_tokens(tokens)
        found = [changed.token_to_id(word) for word in self.skipped]
        unknown = _unknown_id(changed)
        marked = {task: mark + prompts.get(task, "").removeprefix(mark) for task, mark in markers.items()}
        own: dict[str, Any] = {
            "prompts": {**prompts, **marked},
            "query_length": self.query_length,
            "document_length": self.document_length,
            "skipped_ids": sorted({i for i in found if i is not None and i != unknown}),
            "skipped_in": list(self.skipped_in),
            "expansion": None,
        }
        expansion = self.expansion
        if expansion is not None:
            name = expansion.token
            token = tokenizer.mask_token_id if name is None else changed.token_to_id(name)
            if token is None or padding_side != "right" or expansion.length > max_length:
                raise UnsupportedModelError(
                    f"queries are filled up to {expansion.length} tokens with {name or 'the mask token'}, which needs "
                    f"that token, padding_side 'right' (here {padding_side!r}) and a model for so many ({max_length})"
                )
            own["expansion"] = {
                "length": expansion.length,
                "fixed": expansion.fixed,
                "attend": expansion.attend,
                "token_id": token,
            }
        return changed.to_str().encode(), own


def _split_markers(tokenizer: Tokenizer, markers: Mapping[str, str]) -> list[str]:
    """The markers, or their first words, that the vocabulary has and that a text is not read to contain."""
    vocabulary, found = tokenizer.get_vocab(with_added_tokens=True), []
    for marker in markers.values():
        known = [text for text in (marker, *marker.split()[:1]) if text in vocabulary]
        if marker.strip() and known and tokenizer.encode(known[0], add_special_tokens=False).tokens != known[:1]:
            found.append(known[0])
    return found


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    unknown = getattr(tokenizer.model, "unk_token", None)
    return None if unknown is None else tokenizer.token_to_id(str(unknown))


def _of_pylate(model: Mapping[str, Any]) -> dict[str, Any]:
    """What PyLate says at the top of ``config_sentence_transformers.json``, as sentence-transformers reads it."""
    values = {key: value for key, value in model.items() if key in _PYLATE and value is not None}
    if not _PYLATE & set(model):
        return values
    if "query_expansion" in model:
        values["query_expansion"] = model["query_expansion"]
    elif model.get("do_query_expansion") is False:
        values["query_expansion"] = None
    else:
        attend = model.get("attend_to_expansion_tokens", model.get("attend_to_mask_tokens"))
        length = values.pop("query_length", None) or 32
        values["query_expansion"] = {"strategy": "fixed", "attend": bool(attend), "length": length}
    markers = {task: model.get(f"{task}_prefix") or "" for task in ("query", "document") if f"{task}_prefix" in model}
    return {**values, "markers": markers}


def _of_stanford(root: Path, encoder: Path) -> dict[str, Any]:
    """What ``artifact.metadata`` of a checkpoint of ColBERT itself says; nothing of others."""
    config = read_json(encoder / "config.json")
    if config.get("architectures") != [STANFORD] or (root / "modules.json").is_file():
        return {}
    path = root / "artifact.metadata"
    metadata = read_json(path) if path.is_file() else {}
    length = metadata.get("query_maxlen") or 32
    attend = bool(metadata.get("attend_to_mask_tokens"))
    return {
        "markers": {
            "query": f"{metadata.get('query_token_id') or '[unused0]'} ",
            "document": f"{metadata.get('doc_token_id') or '[unused1]'} ",
        },
        "document_length": metadata.get("doc_maxlen"),
        "query_expansion": {"strategy": "fixed", "attend": attend, "length": length},
        "skiplist_words": list(_PUNCTUATION) if metadata.get("mask_punctuation", True) else [],
    }


def _expansion(path: Path, given: Any) -> Expansion | None:
    if given is None:
        return None
    known = {"strategy", "attend", "token", "length"}
    if (
        not isinstance(given, dict)
        or given.get("strategy") not in ("fixed", "min")
        or set(given) - known
        or not isinstance(given.get("attend", False), bool)
        or not isinstance(given.get("token"), str | None)
    ):
        raise UnsupportedModelError(
            f"{path}: 'query_expansion' is {given!r}; it must have 'strategy' (fixed or min) and 'length', and may "
            "have 'attend' and 'token'"
        )
    length = _count(path, "query_expansion", given.get("length"))
    if length is None:
        raise CheckpointError(f"{path}: 'query_expansion' has no 'length'; classic ColBERT takes 32")
    return Expansion(length, given["strategy"] == "fixed", given.get("attend", False), given.get("token"))


def _count(path: Path, key: str, value: Any) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise CheckpointError(f"{path}: {key!r} is {value!r}; it must be an integer of at least 1")
    return value


def _strings(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
