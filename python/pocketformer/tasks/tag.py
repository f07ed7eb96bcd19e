"""Entities in texts: labels of tokens, merged to words and spans as the pipeline of transformers does."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, get_args, overload

import numpy as np

from ..batches import token_outputs
from ..engine import Outputs
from ..model import Model
from .classify import softmax
from .inputs import as_list
from .spans import continuing_prefix, is_blankless

if TYPE_CHECKING:
    from tokenizers import Encoding

Aggregation: TypeAlias = Literal["none", "simple", "first", "max", "average"]

OUTSIDE = "O"
_UNKNOWN = ("[UNK]", "<unk>")
_ENDS = "ELSU"  # end and single of BIOES, last and unit of BILOU
_BEGINS = "BSU"


class Entity(NamedTuple):
    """A span ``text[start:end]`` of one label; ``score`` is the mean probability of its words or tokens."""

    label: str
    score: float
    text: str
    start: int
    end: int


class _Piece(NamedTuple):
    """A token with the probabilities of its labels; ``inside`` if it continues the word of the piece before it."""

    scores: Outputs
    start: int
    end: int
    inside: bool


class _Tagged(NamedTuple):
    """A token or a word with its label."""

    label: str
    score: float
    start: int
    end: int


class Tagger(Model):
    """Texts to entities."""

    _method = "tag"

    @overload
    def tag(  # type: ignore[overload-overlap]  # str is iterable
        self, texts: str, *, aggregation: Aggregation | None = None
    ) -> list[Entity]: ...
    @overload
    def tag(self, texts: Iterable[str], *, aggregation: Aggregation | None = None) -> list[list[Entity]]: ...
    def tag(
        self, texts: str | Iterable[str], *, aggregation: Aggregation | None = None
    ) -> list[Entity] | list[list[Entity]]:
        """The entities in each text in order, with offsets in characters (a plain list for a single string).

        ``aggregation`` is named as in transformers: ``none`` gives every token that is not O with its full label,
        ``simple`` merges neighbours of one label, and ``first``, ``max`` and ``average`` give each word the label of
        its first token, of its surest one, or of the mean of their probabilities, before words are merged. None is
        ``first`` for tokenizers that know words (WordPiece; in scripts without blanks each of their tokens is a word)
        and ``simple`` for others, for which a word is all that stands between two blanks, punctuation included.

        B- begins an entity. Where a tagger has labels with E- or L- and S- or U- beside those with B- (BIOES, BILOU),
        they end one.
        """
        if aggregation is not None and aggregation not in get_args(Aggregation):
            raise ValueError(f"aggregation is {aggregation!r}; it must be one of {', '.join(get_args(Aggregation))}")
        listed, single = as_list(texts)
        encodings = self._reader.encodings(listed)
        sequences = [np.array(encoding.ids, np.int32) for encoding in encodings]
        names = self.labels or [f"LABEL_{i}" for i in range(self.width)]
        results: list[list[Entity]] = [[] for _ in listed]
        for i, logits in token_outputs(self._engine, sequences):
            results[i] = self._entities(encodings[i], softmax(logits), names, listed[i], aggregation)
        return results[0] if single else results

    def _entities(
        self,
        encoding: Encoding,
        probabilities: Outputs,
        names: Sequence[str],
        text: str,
        aggregation: Aggregation | None,
    ) -> list[Entity]:
        tokenizer = self._reader.tokenizer()
        prefix = continuing_prefix(tokenizer)
        unknown = {tokenizer.token_to_id(token) for token in _UNKNOWN}
        how = aggregation or ("first" if prefix else "simple")
        pieces = _pieces(encoding, probabilities, text, prefix, unknown)
        if aggregation is None:
            pieces = [p._replace(inside=p.inside and not is_blankless(text[p.start])) for p in pieces]
        if how in ("none", "simple"):
            tagged = [_tagged([piece], "first", names) for piece in pieces]
        else:
            tagged = [_tagged(word, how, names) for word in _words(pieces)]
        if how == "none":
            groups: Iterable[list[_Tagged]] = ([item] for item in tagged)
            return [_entity(group, group[0].label, text) for group in groups if group[0].label != OUTSIDE]
        split = _prefixes(names)
        merged = ((group, split(group[0].label)[1]) for group in _merged(tagged, split))
        return [_entity(group, label, text) for group, label in merged if label != OUTSIDE]


def _pieces(
    encoding: Encoding, probabilities: Outputs, text: str, prefix: str, unknown: Container[int | None]
) -> list[_Piece]:
    pieces = []
    columns = (encoding.tokens, encoding.ids, encoding.offsets, encoding.special_tokens_mask, probabilities)
    for token, number, (start, end), special, scores in zip(*columns, strict=True):
        if special:
            continue
        if prefix:
            inside = token.startswith(prefix)
        else:  # transformers' rule for tokenizers that know no words: what no blank parts
            inside = start > 0 and " " not in text[start - 1 : start + 1] and number not in unknown
        pieces.append(_Piece(scores, start, end, inside))
    return pieces


def _words(pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    word: list[_Piece] = []
    for piece in pieces:
        if word and not piece.inside:
            yield word
            word = []
        word.append(piece)
    if word:
        yield word


def _tagged(word: Sequence[_Piece], how: str, names: Sequence[str]) -> _Tagged:
    if how == "first":
        scores = word[0].scores
    elif how == "max":
        scores = max(word, key=lambda piece: piece.scores.max()).scores
    else:
        scores = np.mean([piece.scores for piece in word], axis=0)
    best = int(scores.argmax())
    return _Tagged(names[best], float(scores[best]), word[0].start, word[-1].end)


def _prefixes(names: Sequence[str]) -> Callable[[str], tuple[str, str]]:
    """How labels are split into B, I, E, L, S or U and the kind of entity; a label without such is inside of its own.

    The last four count only where the kind also has B- or I-: ``E-mail`` is a kind.
    """
    kinds = {name[2:] for name in names if name.startswith(("B-", "I-"))}

    def split(label: str) -> tuple[str, str]:
        mark, dash, kind = label[:1], label[1:2], label[2:]
        if dash == "-" and kind and (mark in "BI" or (mark in _ENDS and kind in kinds)):
            return mark, kind
        return "I", label

    return split


def _merged(tagged: Sequence[_Tagged], split: Callable[[str], tuple[str, str]]) -> list[list[_Tagged]]:
    """Neighbours of one kind, up to a label that begins another entity or after one that ends it."""
    groups: list[list[_Tagged]] = []
    last_mark, last_kind = "E", None
    for item in tagged:
        mark, kind = split(item.label)
        if groups and kind == last_kind and mark not in _BEGINS and last_mark not in _ENDS:
            groups[-1].append(item)
        else:
            groups.append([item])
        last_mark, last_kind = mark, kind
    return groups


def _entity(group: Sequence[_Tagged], label: str, text: str) -> Entity:
    start, end = group[0].start, group[-1].end
    while start < end and text[start].isspace():  # some tokenizers count the blank before a word as its part
        start += 1
    return Entity(label, sum(item.score for item in group) / len(group), text[start:end], start, end)
