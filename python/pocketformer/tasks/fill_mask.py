"""What may stand in a gap: the likeliest tokens for each mask."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, overload

import numpy as np

from ..batches import run_batches
from ..model import Model
from .answer import check_count
from .classify import softmax
from .inputs import Text, as_texts

_MASKS = ("[MASK]", "<mask>")


class Candidate(NamedTuple):
    """A token of the vocabulary, its probability in the gap and its id."""

    text: str
    score: float
    id: int


class MaskFiller(Model):
    """Texts with gaps to what may stand there."""

    _method = "fill_mask"

    @property
    def mask_token(self) -> str | None:
        """The text of the mask token, or None if the model has none."""
        mask_id = self._mask_id()
        return None if mask_id is None else self._reader.tokenizer().id_to_token(mask_id)

    @overload
    def fill_mask(self, texts: str, *, top_k: int = 5) -> list[list[Candidate]]: ...  # type: ignore[overload-overlap]  # str is iterable
    @overload
    def fill_mask(self, texts: Iterable[Text | list[str]], *, top_k: int = 5) -> list[list[list[Candidate]]]: ...
    def fill_mask(
        self, texts: str | Iterable[Text | list[str]], *, top_k: int = 5
    ) -> list[list[Candidate]] | list[list[list[Candidate]]]:
        """The ``top_k`` likeliest tokens for each mask in each text (one level less for a single string).

        The mask is the model's own token, such as ``[MASK]``; :attr:`mask_token` names it. Only the masked rows meet
        the vocabulary. Raises ValueError for a text without mask.
        """
        check_count("top_k", top_k)
        listed, single = as_texts(texts)
        mask_id, mask, tokenizer = self._mask_id(), self.mask_token, self._reader.tokenizer()
        if mask is None:
            raise ValueError(f"{self._source[0]} names no mask token; call the model on token ids with rows")
        sequences, types = self._reader.inputs(listed)
        rows = [np.flatnonzero(ids == mask_id) for ids in sequences]
        for i, found in enumerate(rows):
            if not len(found):
                raise ValueError(
                    f"texts[{i}], {listed[i]!r:.60}, has no {mask} that the model can see; put one where a word lacks"
                )

        def decode(token: int) -> str:
            return tokenizer.decode([token], skip_special_tokens=False).strip()

        results: list[list[list[Candidate]]] = [[] for _ in listed]
        for batch, logits in run_batches(self._engine, sequences, types, rows):
            probabilities = softmax(logits)
            k = min(top_k, probabilities.shape[1])
            best = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
            gaps = [
                [Candidate(decode(token), float(row[token]), token) for token in order.tolist()]
                for order, row in zip(best, probabilities, strict=True)
            ]
            for i in batch:
                results[i], gaps = gaps[: len(rows[i])], gaps[len(rows[i]) :]
        return results[0] if single else results

    def _mask_id(self) -> int | None:
        """What the checkpoint names, or the special token that BERT and RoBERTa use: many checkpoints rely on it."""
        declared = self._engine.file.text.get("mask_token_id")
        if declared is not None:
            return int(declared)
        added = self._reader.tokenizer().get_added_tokens_decoder()
        special = {token.content: i for i, token in added.items() if token.special}
        return next((special[mask] for mask in _MASKS if mask in special), None)
