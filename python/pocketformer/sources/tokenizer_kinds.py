"""What the tokenizer classes of transformers build: normalisation, splitting, model, and the template around a text.

Each class is a :class:`Kind`. Steps and defaults are those of the class of that name in transformers 5, which takes the
vocabulary from the checkpoint and everything else from its settings.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, UnsupportedModelError
from .config import Config
from .tokenizer_files import BYTE_PAIRS, SENTENCE_PIECE, WORD_PIECE, Settings, TokenizerFiles

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

Named = Mapping[str, "AddedToken | str | None"]

_BERT_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
_ALBERT_TOKENS = {
    **_BERT_TOKENS,
    "bos_token": "[CLS]",
    "eos_token": "[SEP]",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
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
    extra: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    mask_strips: bool = False
    names_control: bool = True


def choose(settings: Settings, config: Config) -> Kind:
    """The class that AutoTokenizer would take: the one that a file names, else that of the model.

    Raises UnsupportedModelError for classes that are programs of their own and cannot be a ``tokenizer.json``.
    """
    model = str(config.values.get("model_type"))
    named = settings.class_name or config.values.get("tokenizer_class")
    if not isinstance(named, str) or model in _AS_SAVED_MODELS:
        return _BY_MODEL.get(model, _AS_SAVED)
    name = named.removesuffix("Fast")
    if name in _PROGRAMS:
        path = settings.path if settings.class_name else config.path
        raise UnsupportedModelError(
            f"{path}: tokenizer_class {named!r} splits words with a program of its own, which a tokenizer.json cannot "
            f"hold; supported are {', '.join(_BY_CLASS)} and others with a tokenizer.json"
        )
    return _BY_CLASS.get(name, replace(_AS_SAVED, name=named, build=_checked))


def _token(named: Named, key: str) -> str:
    value = named[key]
    if value is None:
        raise CheckpointError(f"the tokenizer has no {key}, which it puts around every text; set it to a token")
    return str(value)


def _identified(tokenizer: Tokenizer, named: Named, key: str) -> tuple[str, int]:
    text = _token(named, key)
    index = tokenizer.token_to_id(text)
    if index is None:
        raise CheckpointError(f"{key} {text!r} has no id; the vocabulary belongs to another tokenizer")
    return text, index


def _word_piece(files: TokenizerFiles, settings: Settings, named: Named) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordPiece(_indexed(files.vocabulary), unk_token=str(named["unk_token"])))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.flag("tokenize_chinese_chars", True),
        strip_accents=settings.optional_flag("strip_accents"),
        lowercase=settings.flag("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def _bert_template(tokenizer: Tokenizer, files: TokenizerFiles, settings: Settings, named: Named) -> None:
    from tokenizers import processors

    cls, sep = _identified(tokenizer, named, "cls_token"), _identified(tokenizer, named, "sep_token")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls[0]}:0 $A:0 {sep[0]}:0",
        pair=f"{cls[0]}:0 $A:0 {sep[0]}:0 $B:1 {sep[0]}:1",
        special_tokens=[cls, sep],
    )


def _mpnet_template(tokenizer: Tokenizer, files: TokenizerFiles, settings: Settings, named: Named) -> None:
    from tokenizers import processors

    cls, sep = _identified(tokenizer, named, "cls_token"), _identified(tokenizer, named, "sep_token")
    tokenizer.post_processor = processors.RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=False)


def _byte_pairs(files: TokenizerFiles, settings: Settings, named: Named) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(
        models.BPE(
            vocab=_indexed(files.vocabulary),
            merges=files.merges or [],
            continuing_subword_prefix="",
            end_of_word_suffix="",
            fuse_unk=False,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=settings.flag("add_prefix_space", False))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _clip(files: TokenizerFiles, settings: Settings, named: Named) -> Tokenizer:
    """Byte pairs of lower case, whose last piece of a word says so."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(
        models.BPE(
            vocab=_indexed(files.vocabulary),
            merges=files.merges or [],
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
            unk_token=_token(named, "unk_token"),
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _clip_template(tokenizer: Tokenizer, files: TokenizerFiles, settings: Settings, named: Named) -> None:
    from tokenizers import processors

    end, start = _identified(tokenizer, named, "eos_token"), _identified(tokenizer, named, "bos_token")
    tokenizer.post_processor = processors.RobertaProcessing(end, start, trim_offsets=False, add_prefix_space=False)


def _roberta_template(tokenizer: Tokenizer, files: TokenizerFiles, settings: Settings, named: Named) -> None:
    from tokenizers import processors

    tokenizer.post_processor = processors.RobertaProcessing(
        _identified(tokenizer, named, "sep_token"),
        _identified(tokenizer, named, "cls_token"),
        settings.flag("trim_offsets", True),
        settings.flag("add_prefix_space", False),
    )


def _sentences(tokenizer: Tokenizer, settings: Settings) -> Tokenizer:
    """Splitting at blanks, which become part of the words."""
    from tokenizers import decoders, pre_tokenizers

    scheme = "always" if settings.flag("add_prefix_space", True) else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    return tokenizer


def _xlm_roberta(files: TokenizerFiles, settings: Settings, named: Named) -> Tokenizer:
    """fairseq's order: four special tokens before SentencePiece's own three, the mask at the end."""
    from tokenizers import Tokenizer, models, normalizers

    pieces = _scored(files.vocabulary)
    if files.json is None:
        first = [(_token(named, key), 0.0) for key in ("bos_token", "pad_token", "eos_token", "unk_token")]
        pieces = [*first, *pieces[3:], (_token(named, "mask_token"), 0.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    if files.charsmap:
        tokenizer.normalizer = normalizers.Precompiled(files.charsmap)
    return _sentences(tokenizer, settings)


def _camembert(files: TokenizerFiles, settings: Settings, named: Named) -> Tokenizer:
    from tokenizers import Tokenizer, models, normalizers

    pieces = _scored(files.vocabulary)
    unknown = _token(named, "unk_token")
    if files.json is None:
        first = [("<s>NOTUSED", 0.0), (_token(named, "pad_token"), 0.0), ("</s>NOTUSED", 0.0), (unknown, 0.0)]
        pieces = [*first, ("<unk>NOTUSED", -100.0), *pieces[1:], (_token(named, "mask_token"), 0.0)]
    index = next((i for i, (text, _) in enumerate(pieces) if text == unknown), 0)
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=index, byte_fallback=False))
    if files.charsmap:
        tokenizer.normalizer = normalizers.Precompiled(files.charsmap)
    return _sentences(tokenizer, settings)


def _fairseq_template(tokenizer: Tokenizer, files: TokenizerFiles, settings: Settings, named: Named) -> None:
    from tokenizers import processors

    bos, eos = _identified(tokenizer, named, "bos_token"), _identified(tokenizer, named, "eos_token")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[bos[0], "$A", eos[0]],
        pair=[bos[0], "$A", eos[0], eos[0], "$B", eos[0]],
        special_tokens=[bos, eos],
    )


def _albert(files: TokenizerFiles, settings: Settings, named: Named) -> Tokenizer:
    from tokenizers import Tokenizer, models, normalizers

    tokenizer = Tokenizer(models.Unigram(_scored(files.vocabulary), unk_id=1, byte_fallback=False))
    steps: list[Any] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not settings.flag("keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if settings.flag("do_lower_case", True):
        steps.append(normalizers.Lowercase())
    if files.charsmap:
        steps.append(normalizers.Precompiled(files.charsmap))
    tokenizer.normalizer = normalizers.Sequence(steps)
    return _sentences(tokenizer, settings)


def _albert_template(tokenizer: Tokenizer, files: TokenizerFiles, settings: Settings, named: Named) -> None:
    """The one class that keeps the template of its ``tokenizer.json``."""
    from tokenizers import processors

    if files.json is None:
        for key in ("add_bos_token", "add_eos_token"):
            settings.refuse(key, "ALBERT puts [CLS] and [SEP] around a text")
    saved = files.post_processor()
    if saved is None:
        ids = [(text, _identified(tokenizer, named, key)[1]) for text, key in _ALBERT_TEMPLATE]
        saved = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=ids
        )
    tokenizer.post_processor = saved


def _siglip(files: TokenizerFiles, settings: Settings, named: Named) -> Tokenizer:
    """Lower case without punctuation, in pieces whose blanks are part of them: a text begins with one more."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pieces, unknown = _scored(files.vocabulary), _token(named, "unk_token")
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


def _siglip_template(tokenizer: Tokenizer, files: TokenizerFiles, settings: Settings, named: Named) -> None:
    from tokenizers import processors

    end = _identified(tokenizer, named, "eos_token")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", end[0]], pair=["$A", end[0], "$B", end[0]], special_tokens=[end]
    )


_ALBERT_TEMPLATE = (("[CLS]", "cls_token"), ("[SEP]", "sep_token"))


def _as_saved(files: TokenizerFiles, settings: Settings, named: Named) -> Tokenizer:
    from tokenizers import Tokenizer

    assert files.json is not None  # the kinds that come here have no other vocabulary files
    return Tokenizer.from_str(json.dumps(files.json))


def _checked(files: TokenizerFiles, settings: Settings, named: Named) -> Tokenizer:
    """``tokenizer.json`` as it is, where the settings of a class that may override it agree with it."""
    assert files.json is not None
    steps = [*_steps(files.json.get("normalizer")), *_steps(files.json.get("pre_tokenizer"))]
    lower = any(step.get("type") == "Lowercase" or step.get("lowercase") is True for step in steps)
    said: dict[str, Any] = {"do_lower_case": lower}
    for step in steps:
        if step.get("type") == "BertNormalizer":
            said["strip_accents"] = step.get("strip_accents")
            said["tokenize_chinese_chars"] = step.get("handle_chinese_chars")
        elif step.get("type") == "ByteLevel":
            said["add_prefix_space"] = step.get("add_prefix_space")
        elif step.get("type") == "Metaspace":
            said["add_prefix_space"] = step.get("prepend_scheme", "always") != "never"
    said["keep_accents"] = not any(step.get("type") == "StripAccents" for step in steps)
    for key in ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space", "keep_accents"):
        value = settings.values.get(key)
        if value is not None and value != said.get(key, value):
            raise UnsupportedModelError(
                f"{settings.path}: {key!r} is {value!r}, but {files.path} was saved with {said[key]!r}; save the "
                "tokenizer again with save_pretrained"
            )
    return _as_saved(files, settings, named)


def _steps(node: Any) -> list[dict[str, Any]]:
    if not isinstance(node, dict):
        return []
    inner = node.get("normalizers") or node.get("pretokenizers") or []
    return [node, *(step for child in inner for step in _steps(child))]


def _keep_template(tokenizer: Tokenizer, files: TokenizerFiles, settings: Settings, named: Named) -> None:
    """A ``tokenizer.json`` that is taken as it is brings its template.

    Its settings may ask for a beginning or an end token besides. What they do without stays where the template has it:
    the file is what the model was trained with (the last token of Qwen3-Embedding).
    """
    asked = [settings.optional_flag(key) for key in ("add_bos_token", "add_eos_token")]
    if not any(asked):
        return
    from tokenizers import processors

    tokenizer.no_padding()
    around = tokenizer.encode("").tokens
    present = [around[:1] == [str(named["bos_token"])], around[-1:] == [str(named["eos_token"])]]
    keys = [
        key if there or (wanted and named[key] is not None) else None
        for key, there, wanted in zip(("bos_token", "eos_token"), present, asked, strict=True)
    ]
    if present == [key is not None for key in keys]:
        return
    ids = [_identified(tokenizer, named, key) for key in keys if key]
    first, last = ("" if key is None else _token(named, key) for key in keys)
    single = [piece for piece in (first, "$A", last) if piece]
    second = [f"{piece}:1" for piece in (first, "$B", last) if piece]
    tokenizer.post_processor = processors.TemplateProcessing(single, [*single, *second], ids)


def _indexed(vocabulary: Any) -> dict[str, int]:
    if isinstance(vocabulary, list):
        return {entry[0] if isinstance(entry, tuple) else entry: i for i, entry in enumerate(vocabulary)}
    if isinstance(vocabulary, dict):
        return vocabulary
    raise CheckpointError(_OTHER_KIND)


def _scored(vocabulary: Any) -> list[tuple[str, float]]:
    if isinstance(vocabulary, list):
        return vocabulary
    raise CheckpointError(_OTHER_KIND)


_OTHER_KIND = "the vocabulary in tokenizer.json is of another kind than tokenizer_class; correct the class"


_BERT = Kind(
    "BertTokenizer",
    _word_piece,
    _bert_template,
    WORD_PIECE,
    _BERT_TOKENS,
    inputs=("input_ids", "token_type_ids", "attention_mask"),
)
_MPNET = Kind(
    "MPNetTokenizer",
    _word_piece,
    _mpnet_template,
    WORD_PIECE,
    {**_ROBERTA_TOKENS, "unk_token": "[UNK]"},
    mask_strips=True,
)
_ROBERTA = Kind("RobertaTokenizer", _byte_pairs, _roberta_template, BYTE_PAIRS, _ROBERTA_TOKENS)
_XLM_ROBERTA = Kind("XLMRobertaTokenizer", _xlm_roberta, _fairseq_template, SENTENCE_PIECE, _ROBERTA_TOKENS)
_CAMEMBERT = Kind(
    "CamembertTokenizer",
    _camembert,
    _fairseq_template,
    SENTENCE_PIECE,
    _ROBERTA_TOKENS,
    extra=("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"),
    mask_strips=True,
)
_ALBERT = Kind("AlbertTokenizer", _albert, _albert_template, SENTENCE_PIECE, _ALBERT_TOKENS)
_CLIP_TOKENS = {
    **dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
    "bos_token": "<|startoftext|>",
}
_CLIP = Kind("CLIPTokenizer", _clip, _clip_template, BYTE_PAIRS, _CLIP_TOKENS)
_SIGLIP_TOKENS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
_SIGLIP = Kind("SiglipTokenizer", _siglip, _siglip_template, SENTENCE_PIECE, _SIGLIP_TOKENS, names_control=False)
_AS_SAVED = Kind("PreTrainedTokenizerFast", _as_saved, _keep_template)

_BY_CLASS: dict[str, Kind] = {
    **dict.fromkeys(("BertTokenizer", "ElectraTokenizer", "MobileBertTokenizer", "SqueezeBertTokenizer"), _BERT),
    **dict.fromkeys(("LayoutLMTokenizer", "LxmertTokenizer"), _BERT),
    "DistilBertTokenizer": replace(_BERT, inputs=("input_ids", "attention_mask")),
    "MPNetTokenizer": _MPNET,
    **dict.fromkeys(("RobertaTokenizer", "BartTokenizer", "LEDTokenizer", "LongformerTokenizer"), _ROBERTA),
    "XLMRobertaTokenizer": _XLM_ROBERTA,
    "CamembertTokenizer": _CAMEMBERT,
    "AlbertTokenizer": _ALBERT,
    "CLIPTokenizer": _CLIP,
    "SiglipTokenizer": _SIGLIP,
    **dict.fromkeys(("PreTrainedTokenizer", "TokenizersBackend", "ConvBertTokenizer", "FNetTokenizer"), _AS_SAVED),
}
_BY_MODEL = {
    "bert": _BERT,
    "distilbert": _BERT,
    "mpnet": _MPNET,
    "roberta": _ROBERTA,
    "xlm-roberta": _XLM_ROBERTA,
    "camembert": _CAMEMBERT,
    "albert": _ALBERT,
    **dict.fromkeys(("clip", "clip_text_model"), _CLIP),
    **dict.fromkeys(("siglip", "siglip_text_model"), _SIGLIP),
}
# Models for which transformers does not believe what their repositories name as the class.
_AS_SAVED_MODELS = ("modernbert", "modernbert-decoder", "xlm-roberta-xl")
_PROGRAMS = (
    *(
        "BartphoTokenizer",
        "BertGenerationTokenizer",
        "BertJapaneseTokenizer",
        "BertTokenizerLegacy",
        "BertweetTokenizer",
    ),
    *("ByT5Tokenizer", "CanineTokenizer", "EsmTokenizer", "FlaubertTokenizer", "PhobertTokenizer", "RoCBertTokenizer"),
    *("TapasTokenizer", "XLMTokenizer"),
)
