"""What the tokenizer classes of transformers are made of here, and how they take tokens and vocabularies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from .tokenizer_files import Settings, TokenizerFiles

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

Named = Mapping[str, "AddedToken | str | None"]

BERT_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}


@dataclass(frozen=True)
class Kind:
    """One tokenizer class.

    ``build`` makes the tokenizer before its special tokens are added, ``finish`` sets the template after. ``tokens``
    and ``extra`` are the default special tokens, ``inputs`` what the class gives to a model; ``mask_strips`` says that
    a mask token which comes as plain text takes the blank before it, ``names_control`` that a text may name the control
    pieces of a SentencePiece model outright.
    """

    name: str
    build: Callable[[TokenizerFiles, Settings, Named], Tokenizer]
    finish: Callable[[Tokenizer, TokenizerFiles, Settings, Named], None]
    vocabulary_files: tuple[str, ...] = ()
    tokens: Mapping[str, str] = field(default_factory=dict)
    extra: Callable[[Settings], tuple[str, ...]] = lambda settings: ()
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    mask_strips: bool = False
    names_control: bool = True


def token(named: Named, key: str) -> str:
    value = named[key]
    if value is None:
        raise CheckpointError(f"the tokenizer has no {key}, which it puts around every text; set it to a token")
    return str(value)


def identified(tokenizer: Tokenizer, named: Named, key: str) -> tuple[str, int]:
    text = token(named, key)
    index = tokenizer.token_to_id(text)
    if index is None:
        raise CheckpointError(f"{key} {text!r} has no id; the vocabulary belongs to another tokenizer")
    return text, index


def indexed(vocabulary: Any) -> dict[str, int]:
    if isinstance(vocabulary, list):
        return {entry[0] if isinstance(entry, tuple) else entry: i for i, entry in enumerate(vocabulary)}
    if isinstance(vocabulary, dict):
        return vocabulary
    raise CheckpointError(_OTHER_KIND)


def scored(vocabulary: Any) -> list[tuple[str, float]]:
    if isinstance(vocabulary, list):
        return vocabulary
    raise CheckpointError(_OTHER_KIND)


_OTHER_KIND = "the vocabulary in tokenizer.json is of another kind than tokenizer_class; correct the class"


def cls_sep_template(tokenizer: Tokenizer, files: TokenizerFiles, settings: Settings, named: Named) -> None:
    """BERT's: the second of two texts has a token type of its own."""
    from tokenizers import processors

    cls, sep = identified(tokenizer, named, "cls_token"), identified(tokenizer, named, "sep_token")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls[0]}:0 $A:0 {sep[0]}:0",
        pair=f"{cls[0]}:0 $A:0 {sep[0]}:0 $B:1 {sep[0]}:1",
        special_tokens=[cls, sep],
    )
