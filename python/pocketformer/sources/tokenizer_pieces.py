"""The tokenizer classes of transformers that work with the pieces of SentencePiece's unigram models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from .tokenizer_files import SENTENCE_PIECE, Settings, TokenizerFiles
from .tokenizer_parts import BERT_TOKENS, ROBERTA_TOKENS, Kind, Named, cls_sep_template, identified, scored, token

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_ALBERT_TOKENS = {
    **BERT_TOKENS,
    "bos_token": "[CLS]",
    "eos_token": "[SEP]",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
}


def _prefix(settings: Settings) -> str:
    """Whether a text's first word has a blank before it, as the others have."""
    return "always" if settings.flag("add_prefix_space", True) else "never"


def _sentences(tokenizer: Tokenizer, scheme: str) -> Tokenizer:
    """Splitting at blanks, which become part of the words."""
    from tokenizers import decoders, pre_tokenizers

    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    return tokenizer


def _xlm_roberta(files: TokenizerFiles, settings: Settings, named: Named) -> Tokenizer:
    """fairseq's order: four special tokens before SentencePiece's own three, the mask at the end."""
    from tokenizers import Tokenizer, models, normalizers

    pieces = scored(files.vocabulary)
    if files.json is None:
        first = [(token(named, key), 0.0) for key in ("bos_token", "pad_token", "eos_token", "unk_token")]
        pieces = [*first, *pieces[3:], (token(named, "mask_token"), 0.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    if files.charsmap:
        tokenizer.normalizer = normalizers.Precompiled(files.charsmap)
    return _sentences(tokenizer, _prefix(settings))


def _camembert(files: TokenizerFiles, settings: Settings, named: Named) -> Tokenizer:
    from tokenizers import Tokenizer, models, normalizers

    pieces = scored(files.vocabulary)
    unknown = token(named, "unk_token")
    if files.json is None:
        first = [("<s>NOTUSED", 0.0), (token(named, "pad_token"), 0.0), ("</s>NOTUSED", 0.0), (unknown, 0.0)]
        pieces = [*first, ("<unk>NOTUSED", -100.0), *pieces[1:], (token(named, "mask_token"), 0.0)]
    index = next((i for i, (text, _) in enumerate(pieces) if text == unknown), 0)
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=index, byte_fallback=False))
    if files.charsmap:
        tokenizer.normalizer = normalizers.Precompiled(files.charsmap)
    return _sentences(tokenizer, _prefix(settings))


def _fairseq_template(tokenizer: Tokenizer, files: TokenizerFiles, settings: Settings, named: Named) -> None:
    from tokenizers import processors

    bos, eos = identified(tokenizer, named, "bos_token"), identified(tokenizer, named, "eos_token")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[bos[0], "$A", eos[0]],
        pair=[bos[0], "$A", eos[0], eos[0], "$B", eos[0]],
        special_tokens=[bos, eos],
    )


def _albert(files: TokenizerFiles, settings: Settings, named: Named) -> Tokenizer:
    from tokenizers import Tokenizer, models, normalizers

    tokenizer = Tokenizer(models.Unigram(scored(files.vocabulary), unk_id=1, byte_fallback=False))
    steps: list[Any] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not settings.flag("keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if settings.flag("do_lower_case", True):
        steps.append(normalizers.Lowercase())
    if files.charsmap:
        steps.append(normalizers.Precompiled(files.charsmap))
    tokenizer.normalizer = normalizers.Sequence(steps)
    return _sentences(tokenizer, _prefix(settings))


def _albert_template(tokenizer: Tokenizer, files: TokenizerFiles, settings: Settings, named: Named) -> None:
    """The one class that keeps the template of its ``tokenizer.json``."""
    from tokenizers import processors

    if files.json is None:
        for key in ("add_bos_token", "add_eos_token"):
            settings.refuse(key, "ALBERT puts [CLS] and [SEP] around a text")
    saved = files.post_processor()
    if saved is None:
        ids = [(text, identified(tokenizer, named, key)[1]) for text, key in _ALBERT_TEMPLATE]
        saved = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=ids
        )
    tokenizer.post_processor = saved


def _sentinels(settings: Settings) -> tuple[str, ...]:
    """``<extra_id_0>`` and so on, as many as ``extra_ids`` says."""
    count = settings.values.get("extra_ids", 100)
    if not isinstance(count, int) or not 0 <= count <= 1000:
        raise CheckpointError(f"{settings.path}: 'extra_ids' is {count!r}; it must be a number from 0 to 1000")
    return tuple(f"<extra_id_{i}>" for i in range(count))


def _t5(files: TokenizerFiles, settings: Settings, named: Named) -> Tokenizer:
    from tokenizers import Tokenizer, models, normalizers

    pieces = scored(files.vocabulary)
    if files.json is None:
        pieces = [*pieces, *((text, 0.0) for text in reversed(_sentinels(settings)))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    if files.charsmap:
        tokenizer.normalizer = normalizers.Precompiled(files.charsmap)
    return _sentences(tokenizer, "always")


def _big_bird(files: TokenizerFiles, settings: Settings, named: Named) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pieces = scored(files.vocabulary)
    unknown = (token(named, "unk_token"), 0.0)
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=pieces.index(unknown) if unknown in pieces else 100))
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), "▁")
    scheme = _prefix(settings)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    return tokenizer


def _siglip(files: TokenizerFiles, settings: Settings, named: Named) -> Tokenizer:
    """Lower case without punctuation, in pieces whose blanks are part of them: a text begins with one more."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pieces, unknown = scored(files.vocabulary), token(named, "unk_token")
    index = next((i for i, (text, _) in enumerate(pieces) if text == unknown), 0)
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=index, byte_fallback=False))
    steps: list[Any] = [normalizers.Replace("▁", " ")]
    if settings.flag("do_lower_case", True):
        steps.append(normalizers.Lowercase())
    blank, mark = r"\s\x1c-\x1f", r"!-/:-@\[-`{-~"
    steps += [
        # A text's own first blank comes after the one that every text gets; with a mark for it, that one is not added.
        normalizers.Replace(Regex(rf"\A[{mark}]*[{blank}][{mark}{blank}]*"), "▁▁"),
        normalizers.Replace(Regex(rf"\A[{mark}]+"), "▁"),
        normalizers.Replace(Regex(f"[{mark}]"), ""),
        normalizers.Replace(Regex(f"[{blank}]+"), " "),
    ]
    if files.charsmap:
        steps.append(normalizers.Precompiled(files.charsmap))
    steps += [
        normalizers.Replace(Regex(" {2,}"), " "),
        normalizers.Replace(Regex(r"\A "), "▁▁"),
        normalizers.Replace(Regex(r"[ ▁]+\z"), ""),
    ]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first")
    return tokenizer


def _end_template(tokenizer: Tokenizer, files: TokenizerFiles, settings: Settings, named: Named) -> None:
    from tokenizers import processors

    end = identified(tokenizer, named, "eos_token")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", end[0]], pair=["$A", end[0], "$B", end[0]], special_tokens=[end]
    )


_ALBERT_TEMPLATE = (("[CLS]", "cls_token"), ("[SEP]", "sep_token"))

XLM_ROBERTA = Kind("XLMRobertaTokenizer", _xlm_roberta, _fairseq_template, SENTENCE_PIECE, ROBERTA_TOKENS)
CAMEMBERT = Kind(
    "CamembertTokenizer",
    _camembert,
    _fairseq_template,
    SENTENCE_PIECE,
    ROBERTA_TOKENS,
    extra=lambda settings: ("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"),
    mask_strips=True,
)
ALBERT = Kind("AlbertTokenizer", _albert, _albert_template, SENTENCE_PIECE, _ALBERT_TOKENS)
_SIGLIP_TOKENS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
SIGLIP = Kind("SiglipTokenizer", _siglip, _end_template, SENTENCE_PIECE, _SIGLIP_TOKENS, names_control=False)
_T5_TOKENS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
T5 = Kind("T5Tokenizer", _t5, _end_template, SENTENCE_PIECE, _T5_TOKENS, extra=_sentinels)
_BIG_BIRD_TOKENS = {**_ALBERT_TOKENS, "bos_token": "<s>", "eos_token": "</s>"}
BIG_BIRD = Kind("BigBirdTokenizer", _big_bird, cls_sep_template, SENTENCE_PIECE, _BIG_BIRD_TOKENS, mask_strips=True)
