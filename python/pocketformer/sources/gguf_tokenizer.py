"""The vocabulary of a GGUF file as a ``tokenizer.json``.

The file names the algorithm (``tokenizer.ggml.model``) and, of byte pairs, how words are split before (``.pre``). The
rest is rebuilt as the tokenizer of that model has it: what a GGUF leaves out are merges of SentencePiece vocabularies,
which follow from the pieces, and normalisation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CheckpointError, UnsupportedModelError
from .gguf_reader import GgufHeader

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<EOT>", "<|endoftext|>")
"""Control tokens that end an answer, whatever the file says of them."""
_NAMED = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}

_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2 = _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Splitting:
    """What a ``tokenizer.ggml.pre`` means: GPT-2's words where ``pattern`` is None, with single ``digits``; NFC first;
    ``whole`` words of the vocabulary taken without merging; a beginning token unless the file says otherwise."""

    pattern: str | None = None
    digits: bool = False
    nfc: bool = False
    whole: bool = False
    begins: bool = False


_GPT_2, _DIGITS = Splitting(), Splitting(digits=True)
_LLAMA = Splitting(_LLAMA_3, whole=True, begins=True)
SPLITTINGS: dict[str, Splitting] = {
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt", "jais", "trillion"), _GPT_2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"), _LLAMA),
    **dict.fromkeys(("dbrx", "smaug-bpe"), Splitting(_LLAMA_3)),
    "qwen2": Splitting(_QWEN_2, nfc=True),
    **dict.fromkeys(("deepseek-r1-qwen", "megrez", "stablelm2"), Splitting(_QWEN_2)),
    "tekken": Splitting(_TEKKEN, whole=True),
}


@dataclass(frozen=True)
class GgufTokenizer:
    """``json`` is a complete ``tokenizer.json``; ``special_tokens`` are the texts that a template may name."""

    json: bytes
    end_token_ids: list[int]
    chat_template: str | None
    special_tokens: dict[str, str]


class _Vocabulary:
    """The entries ``tokenizer.ggml.…`` of a file, checked against each other."""

    def __init__(self, header: GgufHeader, rows: int) -> None:
        self.header = header
        self.rows = rows
        tokens = self.get("tokens")
        if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
            raise self.wrong("tokens", "must be a list of texts")
        if len(tokens) > rows:
            raise CheckpointError(f"{header.path}: {len(tokens)} tokens, but the token table has {rows} rows")
        self.tokens: list[str] = tokens
        self.types = self._numbers("token_type", np.full(len(tokens), NORMAL))
        if len(self.types) and not (self.types.min() >= 0 and self.types.max() <= BYTE):
            raise self.wrong("token_type", f"must hold types of 0…{BYTE}")

    def get(self, key: str) -> Any:
        return self.header.metadata.get(f"tokenizer.ggml.{key}")

    def wrong(self, key: str, rule: str) -> CheckpointError:
        return CheckpointError(f"{self.header.path}: tokenizer.ggml.{key} {rule}")

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(key, f"is {value!r:.80}; it must be true or false")
        return default if value is None else value

    def id(self, key: str) -> int | None:
        value = self.get(f"{key}_token_id")
        if value is not None and (type(value) is not int or not 0 <= value < len(self.tokens)):
            raise self.wrong(f"{key}_token_id", f"is {value!r:.80}; there are {len(self.tokens)} tokens")
        return value

    def scores(self) -> list[float]:
        scores = self._numbers("scores", None)
        if not np.isfinite(scores).all():
            raise self.wrong("scores", "holds NaN or infinity; the file is damaged")
        return [float(score) for score in scores]

    def merges(self) -> list[tuple[str, str]]:
        merges = self.get("merges")
        if not isinstance(merges, list):
            raise self.wrong("merges", "is missing; byte pairs cannot be put together without")
        known, pairs = set(self.tokens), []
        for merge in merges:
            pair = tuple(merge.split(" ", 1)) if isinstance(merge, str) else ()
            if len(pair) != 2 or not {*pair, "".join(pair)} <= known:
                raise self.wrong("merges", f"holds {merge!r:.80}, which is no pair of tokens that make a third")
            pairs.append((pair[0], pair[1]))
        return pairs

    def of_type(self, kind: int) -> list[tuple[int, str]]:
        return [(int(i), self.tokens[i]) for i in np.flatnonzero(self.types == kind)]

    def index(self, tokens: Sequence[str]) -> dict[str, int]:
        index = {token: i for i, token in enumerate(tokens)}
        if len(index) != len(tokens):
            twice = next(token for i, token in enumerate(tokens) if index[token] != i)
            raise self.wrong("tokens", f"holds {twice!r:.80} twice; a text must have one id")
        return index

    def _numbers(self, key: str, default: Any) -> Any:
        values = self.get(key)
        if values is None and default is not None:
            return default
        if not isinstance(values, np.ndarray) or len(values) != len(self.tokens):
            raise self.wrong(key, f"must be a list of {len(self.tokens)} numbers, one a token")
        return values


def read_gguf_tokenizer(header: GgufHeader, rows: int, max_length: int) -> GgufTokenizer | None:
    """The tokenizer of a file, or None where it has no vocabulary.

    ``rows`` is the height of the model's token table, ``max_length`` the tokens at which texts are cut.

    Raises:
        CheckpointError: the vocabulary is incomplete or contradicts itself.
        UnsupportedModelError: its algorithm or splitting is not supported; the message lists what is.
    """
    kind = header.metadata.get("tokenizer.ggml.model")
    if kind is None or (isinstance(kind, str) and kind in ("none", "no_vocab")):
        return None
    if not isinstance(kind, str) or kind not in _BUILDERS:
        raise UnsupportedModelError(
            f"{header.path}: tokenizer.ggml.model is {kind!r:.80}; supported are {', '.join(_BUILDERS)}: compress the "
            "model's Hugging Face folder"
        )
    vocabulary = _Vocabulary(header, rows)
    try:
        content = _assemble(vocabulary, _BUILDERS[kind], max_length)
    except (CheckpointError, UnsupportedModelError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # what the tokenizers library raises, panics too, has no type of its own
        raise CheckpointError(f"{header.path}: its vocabulary does not make a tokenizer ({error})") from error
    template = header.metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{header.path}: tokenizer.chat_template is {template!r:.80}; it must be a text")
    found = ((f"{short}_token", vocabulary.id(key)) for key, short in _NAMED.items())
    special = {key: vocabulary.tokens[index] for key, index in found if index is not None}
    return GgufTokenizer(content, _ends(vocabulary), template, special)


def _assemble(
    vocabulary: _Vocabulary, build: Callable[[_Vocabulary], tuple[Tokenizer, bool]], max_length: int
) -> bytes:
    from tokenizers import AddedToken, processors

    tokenizer, begins = build(vocabulary)
    known = tokenizer.get_vocab()
    named = [vocabulary.id(key) for key in _NAMED]
    special = [*vocabulary.of_type(CONTROL), *vocabulary.of_type(UNKNOWN)]
    texts = [*(text for _, text in special), *(vocabulary.tokens[index] for index in named if index is not None)]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in dict.fromkeys(texts)])
    own = (text for _, text in vocabulary.of_type(USER_DEFINED) if text in known)
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in own])
    around = []
    for key, wanted in (
        ("bos", vocabulary.flag("add_bos_token", begins)),
        ("eos", vocabulary.flag("add_eos_token", False)),
    ):
        index = vocabulary.id(key)
        if wanted and index is None:
            raise vocabulary.wrong(f"{key}_token_id", f"is missing, but add_{key}_token asks for it")
        around.append([vocabulary.tokens[index]] if wanted and index is not None else [])
    if any(around):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*around[0], "$A", *around[1]],
            pair=[*around[0], "$A", *around[1], *around[0], "$B:1", *around[1]],
            special_tokens=[(text, known[text]) for part in around for text in part],
        )
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":")).encode()


def _byte_pairs(vocabulary: _Vocabulary) -> tuple[Tokenizer, bool]:
    """GPT-2's algorithm: bytes as letters, and the file's merges."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    name = vocabulary.get("pre")
    if not isinstance(name, str) or name not in SPLITTINGS:
        raise UnsupportedModelError(
            f"{vocabulary.header.path}: tokenizer.ggml.pre is {name!r:.80}: how its words are split is not known here; "
            f"supported are {', '.join(SPLITTINGS)}: convert the model again, or compress its Hugging Face folder"
        )
    splitting = SPLITTINGS[name]
    index = vocabulary.index(vocabulary.tokens)
    tokenizer = Tokenizer(models.BPE(vocab=index, merges=vocabulary.merges(), ignore_merges=splitting.whole))
    if splitting.nfc:
        tokenizer.normalizer = normalizers.NFC()
    words: Any = pre_tokenizers.ByteLevel(
        add_prefix_space=vocabulary.flag("add_space_prefix", False), use_regex=splitting.pattern is None
    )
    before: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if splitting.digits else []
    if splitting.pattern:
        before.append(pre_tokenizers.Split(Regex(splitting.pattern), behavior="isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, words])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, splitting.begins


def _sentence_pieces(vocabulary: _Vocabulary) -> tuple[Tokenizer, bool]:
    """SentencePiece's byte pairs, with bytes for what the vocabulary lacks.

    Gemma's pieces lie in the order of their merges, whose scores do not tell it; runs of blanks are written as such.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    gemma = str(vocabulary.header.metadata.get("general.architecture")).startswith("gemma")
    tokens = vocabulary.tokens
    if gemma:
        tokens = ["▁" * len(token) if token and not token.strip(" ") else token for token in tokens]
    index = vocabulary.index(tokens)
    ranks = list(range(0, -len(tokens), -1)) if gemma else vocabulary.scores()
    unknown = vocabulary.id("unknown")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=index,
            merges=merges_of(tokens, index, ranks),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    prefix = vocabulary.flag("add_space_prefix", not gemma)
    if gemma and not prefix:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    else:
        scheme = "first" if prefix else "never"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(content=" ", left=1)] if prefix else [])])
    return tokenizer, True


def merges_of(tokens: Sequence[str], index: dict[str, int], ranks: Sequence[float]) -> list[tuple[str, str]]:
    """Every way to make a token of two others, the highest ranks first; of one token, the longest first part."""
    found = []
    for token, rank in zip(tokens, ranks, strict=True):
        pairs = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in index and token[i:] in index]
        pairs.sort(key=lambda pair: (index[pair[0]], index[pair[1]]))
        found += [(-rank, -len(left), -len(right), left, right) for left, right in pairs]
    found.sort(key=lambda merge: merge[:3])
    return [(left, right) for *_, left, right in found]


def _ends(vocabulary: _Vocabulary) -> list[int]:
    said = [vocabulary.id(key) for key in ("eos", "eot", "eom")]
    known = [i for i, text in vocabulary.of_type(CONTROL) if text in END_OF_TURN]
    return list(dict.fromkeys([index for index in said if index is not None] + known))


_BUILDERS: dict[str, Callable[[_Vocabulary], tuple[Tokenizer, bool]]] = {
    "gpt2": _byte_pairs,
    "llama": _sentence_pieces,
}
