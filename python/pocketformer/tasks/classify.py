"""Labels of whole texts or pairs of texts, and of any labels by a model that knows what follows from what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, overload

import numpy as np

from ..batches import sequence_outputs
from ..engine import Outputs
from ..errors import TaskError
from ..model import Model
from .inputs import Pair, Text, as_list, as_texts
from .text import Truncation, check_unicode

HYPOTHESIS = "This text is about {}."


class Label(NamedTuple):
    """A label and its probability; of a regression, its value."""

    label: str
    score: float


class Classifier(Model):
    """Texts, or pairs of them, to labels."""

    _method = "classify"

    @overload
    def classify(  # type: ignore[overload-overlap]  # str is iterable
        self, texts: str, *, labels: Sequence[str] | None = None, hypothesis: str = ..., multi_label: bool = ...
    ) -> list[Label]: ...
    @overload
    def classify(
        self,
        texts: Iterable[Text | list[str]],
        *,
        labels: Sequence[str] | None = None,
        hypothesis: str = ...,
        multi_label: bool = ...,
    ) -> list[list[Label]]: ...
    def classify(
        self,
        texts: str | Iterable[Text | list[str]],
        *,
        labels: Sequence[str] | None = None,
        hypothesis: str = HYPOTHESIS,
        multi_label: bool = False,
    ) -> list[Label] | list[list[Label]]:
        """All labels with their probabilities, best first, for each text (a plain list for a single string).

        A text is a str, or a pair ``(a, b)`` of them for models that read two texts together. Probabilities are a
        softmax over the labels, independent for multi-label models, and plain values for regressions.

        With ``labels``, any words, a model of natural language inference says which of them fit (zero-shot, Yin et
        al., arXiv 1909.00161): each text is its premise, and ``hypothesis`` with a label in place of ``{}`` what may
        follow. The probabilities are a softmax over the labels, or with ``multi_label`` of each label against its
        contradiction.

        Raises TypeError for texts in a form that would be misread, TaskError for ``labels`` where the model has no
        label that begins with "entail", ValueError for a hypothesis without ``{}``.
        """
        if labels is not None:
            plain, single = as_list(texts)  # type: ignore[arg-type]  # pairs are refused
            results = self._zero_shot(plain, labels, hypothesis, multi_label)
        else:
            listed, single = as_texts(texts)
            scores = _probabilities(self._logits(listed), self._engine.file.model.get("problem_type"))
            results = [ranked(self._names(), row) for row in scores]
        return results[0] if single else results

    def _names(self) -> list[str]:
        return self.labels or [f"LABEL_{i}" for i in range(self.width)]

    def _logits(self, texts: Sequence[Text], truncation: Truncation = "longest_first", name: str = "texts") -> Outputs:
        """float32 [texts, labels]."""
        return sequence_outputs(self._engine, *self._reader.inputs(texts, truncation, name))

    def _zero_shot(
        self, texts: Sequence[str], labels: Sequence[str], hypothesis: str, multi_label: bool
    ) -> list[list[Label]]:
        listed, single = as_list(labels, "labels")
        if single or not listed:
            raise ValueError(f"labels is {labels!r:.60}; give a list of at least one")
        if "{}" not in hypothesis:
            raise ValueError(f"hypothesis is {hypothesis!r}; it must hold {{}} where the label goes")
        for i, text in enumerate(texts):
            check_unicode(f"texts[{i}]", text)
        entailment, contradiction = self._inference_labels()
        claims = [hypothesis.replace("{}", label) for label in listed]
        pairs: list[Pair] = [(text, claim) for text in texts for claim in claims]
        logits = self._logits(pairs, "only_first", "pairs").reshape(len(texts), len(listed), -1)
        if multi_label or len(listed) == 1:
            scores = softmax(logits[..., [contradiction, entailment]])[..., 1]
        else:
            scores = softmax(logits[..., entailment])
        return [ranked(listed, row) for row in scores]

    def _inference_labels(self) -> tuple[int, int]:
        """The outputs for entailment and contradiction, chosen as the zero-shot pipeline of transformers does."""
        names = [name.lower() for name in self._names()]
        entailment = next((i for i, name in enumerate(names) if name.startswith("entail")), None)
        if entailment is None or len(names) < 2:
            raise TaskError(
                f"{self._source[0]} has the labels {', '.join(self._names()[:6])}; labels=… needs a model of natural "
                "language inference, with a label that begins with 'entail': leave it out"
            )
        return entailment, len(names) - 1 if entailment == 0 else 0


def softmax(logits: Outputs) -> Outputs:
    """Over the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: Outputs = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def sigmoid(logits: Outputs) -> Outputs:
    """The logistic function without overflow."""
    result: Outputs = 0.5 * (1 + np.tanh(0.5 * logits))
    return result


def _probabilities(logits: Outputs, problem_type: str | None) -> Outputs:
    """Independent probabilities for many labels or a single one, a distribution otherwise."""
    if problem_type == "regression":
        return logits
    if problem_type == "multi_label_classification" or logits.shape[1] == 1:
        return sigmoid(logits)
    return softmax(logits)


def ranked(names: Sequence[str], scores: Outputs, top_k: int | None = None) -> list[Label]:
    """The ``top_k`` best of ``names``, all if None, by ``scores`` float32 [names]; best first."""
    return [Label(names[i], float(scores[i])) for i in np.argsort(-scores, kind="stable")[:top_k]]
