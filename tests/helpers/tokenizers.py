"""One small tokenizer of each kind: WordPiece as BERT has it, SentencePiece as XLM-RoBERTa, byte-level as RoBERTa."""

from __future__ import annotations

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (
    *("ada", "lives", "in", "london", "and", "wrote", "the", "first", "program", "who", "where", "is", "a", "of"),
    *("paris", "letter", "to", "mr", "babbage"),
)
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?!"
SYMBOLS = '()[]"-'
HAN, KANA, THAI = "张伟住在北京东", "とうです", ("กรุง", "เทพ", "อยู่")
ROBERTA_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
ALBERT_SPECIAL = ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")


def word_pieces() -> Tokenizer:
    """Known words, and single letters for the others."""
    pieces = [*SPECIAL, *WORDS, *(c for c in LETTERS if c not in WORDS), *(f"##{letter}" for letter in LETTERS)]
    pieces += [*SYMBOLS, *HAN, *KANA, *(f"##{kana}" for kana in KANA), *THAI, *(f"##{syllable}" for syllable in THAI)]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def sentence_pieces() -> Tokenizer:
    """Unigram over what stands between two blanks, punctuation included."""
    vocabulary = [(piece, 0.0) for piece in ROBERTA_SPECIAL]
    tokenizer = Tokenizer(models.Unigram([*vocabulary, *_sentence_vocabulary(), ("<mask>", 0.0)], unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer.add_special_tokens([*ROBERTA_SPECIAL, "<mask>"])
    return tokenizer


def albert_pieces() -> Tokenizer:
    """The same pieces with the special tokens, the normalisation and the token types of ALBERT."""
    vocabulary = [(piece, 0.0) for piece in ALBERT_SPECIAL]
    tokenizer = Tokenizer(models.Unigram([*vocabulary, *_sentence_vocabulary()], unk_id=1))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.add_special_tokens(list(ALBERT_SPECIAL))
    return tokenizer


def _sentence_vocabulary() -> list[tuple[str, float]]:
    pieces = [*(f"▁{word.capitalize()}" for word in WORDS), *(f"▁{word}" for word in WORDS), "▁"]
    pieces += [*LETTERS, *LETTERS[:26].upper(), *SYMBOLS, "▁(", '▁"', *HAN, *KANA, *THAI]
    return [(piece, -2.0 - len(piece) * 0.1) for piece in dict.fromkeys(pieces)]


def byte_pairs() -> Tokenizer:
    """Bytes with a few merges, so that most words and all of other scripts are several tokens."""
    pieces = [*ROBERTA_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = [("l", "o"), ("lo", "n"), ("Ġ", "lon"), ("Ġ", "w"), ("A", "d"), ("Ad", "a"), ("Ġ", "Ada"), ("e", "r")]
    pieces += [a + b for a, b in merges] + ["<mask>"]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.add_special_tokens([*ROBERTA_SPECIAL, "<mask>"])
    return tokenizer


def untrimmed_byte_pairs() -> Tokenizer:
    """The same pieces with ModernBERT's template, after which the blank before a word is a part of its token."""
    tokenizer = byte_pairs()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def clip_pairs() -> Tokenizer:
    """Bytes, those that end a word apart, with a few merges; the end of a text has the highest id, as in CLIP."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("o", "w"), ("ow", "l</w>"), ("b", "o"), ("a", "t</w>"), ("bo", "at</w>"), ("t", "h"), ("th", "e</w>")]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    ids = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(ids, merges, end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    tokenizer.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    return tokenizer
