"""What the tokenizer classes of transformers build: normalisation, splitting, model, and the template around a text.

Each class is a :class:`~pocketformer.sources.tokenizer_parts.Kind`. Steps and defaults are those of the class of that
name in transformers 5, which takes the vocabulary from the checkpoint and everything else from its settings.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import UnsupportedModelError
from .config import Config
from .tokenizer_files import BYTE_PAIRS, WORD_PIECE, Settings, TokenizerFiles
from .tokenizer_parts import BERT_TOKENS, ROBERTA_TOKENS, Kind, Named, cls_sep_template, identified, indexed, token
from .tokenizer_pieces import ALBERT, BIG_BIRD, CAMEMBERT, SIGLIP, T5, XLM_ROBERTA

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def choose(settings: Settings, config: Config) -> Kind:
    """The class that AutoTokenizer would take: the one that a file names, else that of the model.

    Raises UnsupportedModelError for classes that are programs of their own and cannot be a ``tokenizer.json``.
    """
    model = str(config.values.get("model_type"))
    named = settings.class_name or config.values.get("tokenizer_class")
    if not isinstance(named, str) or model in _OF_THE_MODEL:
        return _BY_MODEL.get(model, _AS_SAVED)
    name = named.removesuffix("Fast")
    if name in _PROGRAMS:
        path = settings.path if settings.class_name else config.path
        raise UnsupportedModelError(
            f"{path}: tokenizer_class {named!r} splits words with a program of its own, which a tokenizer.json cannot "
            f"hold; supported are {', '.join(_BY_CLASS)} and others with a tokenizer.json"
        )
    return _BY_CLASS.get(name, replace(_AS_SAVED, name=named, build=_checked))


def _word_piece(files: TokenizerFiles, settings: Settings, named: Named) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordPiece(indexed(files.vocabulary), unk_token=str(named["unk_token"])))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.flag("tokenize_chinese_chars", True),
        strip_accents=settings.optional_flag("strip_accents"),
        lowercase=settings.flag("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def _mpnet_template(tokenizer: Tokenizer, files: TokenizerFiles, settings: Settings, named: Named) -> None:
    from tokenizers import processors

    cls, sep = identified(tokenizer, named, "cls_token"), identified(tokenizer, named, "sep_token")
    tokenizer.post_processor = processors.RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=False)


def _byte_pairs(files: TokenizerFiles, settings: Settings, named: Named) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(
        models.BPE(
            vocab=indexed(files.vocabulary),
            merges=files.merges or [],
            continuing_subword_prefix="",
            end_of_word_suffix="",
            fuse_unk=False,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=settings.flag("add_prefix_space", False))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _gpt2(files: TokenizerFiles, settings: Settings, named: Named) -> Tokenizer:
    """Of a ``tokenizer.json`` that splits words further (SmolLM2's cuts numbers into digits), as that has it."""
    if files.json is not None and (files.json.get("pre_tokenizer") or {}).get("type") != "ByteLevel":
        return _checked(files, settings, named)
    tokenizer = _byte_pairs(files, settings, named)
    saved = files.post_processor()
    if saved is not None:
        tokenizer.post_processor = saved
    return tokenizer


def _qwen2(files: TokenizerFiles, settings: Settings, named: Named) -> Tokenizer:
    from tokenizers import Regex, normalizers, pre_tokenizers

    if files.json is not None:
        return _checked(files, settings, named)
    tokenizer = _byte_pairs(files, settings, named)
    tokenizer.normalizer = normalizers.NFC()
    words = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{words}"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=settings.flag("add_prefix_space", False), use_regex=False),
        ]
    )
    return tokenizer


def _clip(files: TokenizerFiles, settings: Settings, named: Named) -> Tokenizer:
    """Byte pairs of lower case, whose last piece of a word says so."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(
        models.BPE(
            vocab=indexed(files.vocabulary),
            merges=files.merges or [],
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
            unk_token=token(named, "unk_token"),
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

    end, start = identified(tokenizer, named, "eos_token"), identified(tokenizer, named, "bos_token")
    tokenizer.post_processor = processors.RobertaProcessing(end, start, trim_offsets=False, add_prefix_space=False)


def _roberta_template(tokenizer: Tokenizer, files: TokenizerFiles, settings: Settings, named: Named) -> None:
    from tokenizers import processors

    tokenizer.post_processor = processors.RobertaProcessing(
        identified(tokenizer, named, "sep_token"),
        identified(tokenizer, named, "cls_token"),
        settings.flag("trim_offsets", True),
        settings.flag("add_prefix_space", False),
    )


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
    ids = [identified(tokenizer, named, key) for key in keys if key]
    first, last = ("" if key is None else token(named, key) for key in keys)
    single = [piece for piece in (first, "$A", last) if piece]
    second = [f"{piece}:1" for piece in (first, "$B", last) if piece]
    tokenizer.post_processor = processors.TemplateProcessing(single, [*single, *second], ids)


_BERT = Kind(
    "BertTokenizer",
    _word_piece,
    cls_sep_template,
    WORD_PIECE,
    BERT_TOKENS,
    inputs=("input_ids", "token_type_ids", "attention_mask"),
)
_MPNET = Kind(
    "MPNetTokenizer",
    _word_piece,
    _mpnet_template,
    WORD_PIECE,
    {**ROBERTA_TOKENS, "unk_token": "[UNK]"},
    mask_strips=True,
)
_ROBERTA = Kind("RobertaTokenizer", _byte_pairs, _roberta_template, BYTE_PAIRS, ROBERTA_TOKENS)
_GPT2_TOKENS = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
_GPT2 = Kind("GPT2Tokenizer", _gpt2, _keep_template, BYTE_PAIRS, _GPT2_TOKENS)
_QWEN2_TOKENS = dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")
_QWEN2 = Kind("Qwen2Tokenizer", _qwen2, _keep_template, BYTE_PAIRS, _QWEN2_TOKENS)
_CLIP_TOKENS = {
    **dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
    "bos_token": "<|startoftext|>",
}
_CLIP = Kind("CLIPTokenizer", _clip, _clip_template, BYTE_PAIRS, _CLIP_TOKENS)
_AS_SAVED = Kind("PreTrainedTokenizerFast", _as_saved, _keep_template)

_BY_CLASS: dict[str, Kind] = {
    **dict.fromkeys(("BertTokenizer", "ElectraTokenizer", "MobileBertTokenizer", "SqueezeBertTokenizer"), _BERT),
    **dict.fromkeys(("LayoutLMTokenizer", "LxmertTokenizer"), _BERT),
    "DistilBertTokenizer": replace(_BERT, inputs=("input_ids", "attention_mask")),
    "MPNetTokenizer": _MPNET,
    **dict.fromkeys(("RobertaTokenizer", "BartTokenizer", "LEDTokenizer", "LongformerTokenizer"), _ROBERTA),
    "XLMRobertaTokenizer": XLM_ROBERTA,
    "CamembertTokenizer": CAMEMBERT,
    "AlbertTokenizer": ALBERT,
    "T5Tokenizer": T5,
    "BigBirdTokenizer": BIG_BIRD,
    "GPT2Tokenizer": _GPT2,
    "Qwen2Tokenizer": _QWEN2,
    "CLIPTokenizer": _CLIP,
    "SiglipTokenizer": SIGLIP,
    **dict.fromkeys(("PreTrainedTokenizer", "TokenizersBackend", "ConvBertTokenizer", "FNetTokenizer"), _AS_SAVED),
}
_BY_MODEL = {
    **dict.fromkeys(("bert", "distilbert", "nomic_bert"), _BERT),
    "mpnet": _MPNET,
    **dict.fromkeys(("roberta", "longformer"), _ROBERTA),
    "xlm-roberta": XLM_ROBERTA,
    "camembert": CAMEMBERT,
    "albert": ALBERT,
    "t5": T5,
    "big_bird": BIG_BIRD,
    "gpt2": _GPT2,
    **dict.fromkeys(("qwen2", "qwen3"), _QWEN2),
    **dict.fromkeys(("clip", "clip_text_model"), _CLIP),
    **dict.fromkeys(("siglip", "siglip_text_model"), SIGLIP),
}
# Models for which transformers does not believe what their repositories name as the class.
_OF_THE_MODEL = ("modernbert", "modernbert-decoder", "xlm-roberta-xl", "phi3", "qwen2")
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
