"""What a checkpoint puts before a text, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..engine import Engine, Ids
from ..graph import SKIPPED
from .inputs import Text
from .text import TextReader

# The prompts that stand for documents, as sentence-transformers looks for them.
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")


@dataclass(frozen=True)
class Prompts:
    """The prompts of a file's ``text`` section, and the name of the one that is taken where none is named."""

    named: dict[str, str]
    default: str | None
    included: bool
    can_skip: bool = field(default=True)

    @classmethod
    def of(cls, engine: Engine) -> Prompts:
        text: dict[str, Any] = engine.file.text
        skips = engine.file.graph.find_input(SKIPPED) is not None
        named = dict(text.get("prompts") or {})
        return cls(named, text.get("default_prompt_name"), text.get("include_prompt") is not False, skips)

    @property
    def query(self) -> str | None:
        """The name of the prompt for queries, or None."""
        return "query" if "query" in self.named else None

    @property
    def document(self) -> str | None:
        """The name of the prompt for documents, or None."""
        return next((name for name in _DOCUMENT_PROMPTS if name in self.named), None)

    def prefix(self, prompt: str | None) -> str:
        """What stands before a text where ``prompt`` is named; None means the default, an empty name nothing."""
        name = self.default if prompt is None else prompt
        if not name:
            return ""
        if name not in self.named:
            known = ", ".join(map(repr, self.named)) or "none"
            raise ValueError(f"prompt is {name!r}; the model has {known}: put other words before the texts yourself")
        prefix = self.named[name]
        if prefix and not self.included and not self.can_skip:
            raise ValueError(
                f"prompt is {name!r}, whose tokens this model leaves out when it pools, which this file cannot: "
                "compress the model again, or pass prompt='' to go without"
            )
        return prefix

    def skipped(
        self, prefix: str, reader: TextReader, sequences: Sequence[Ids], max_length: int | None = None
    ) -> dict[str, Ids] | None:
        """The input that leaves out the tokens of ``prefix`` where the model does not pool them.

        Raises ValueError where nothing else is left of a text.
        """
        if not prefix or self.included:
            return None
        length = reader.prefix_length(prefix, max_length)
        for i, ids in enumerate(sequences):
            if len(ids) <= length:
                raise ValueError(
                    f"texts[{i}] has no token beside those of its prompt {prefix!r:.60}, which this model does not "
                    "pool: give a text, or pass prompt='' to go without"
                )
        return {SKIPPED: np.full(len(sequences), length, np.int32)}


def prompted(texts: Sequence[Text], prefix: str) -> list[Text]:
    """``prefix`` before each text, or before the first of each pair."""
    if not prefix:
        return list(texts)
    return [prefix + text if isinstance(text, str) else (prefix + text[0], text[1]) for text in texts]
