"""Each task on texts equals plain loops over what torch computes for the same tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.task_models import TaskModel, labelled, make
from pocketformer import TaskError

TEXTS = ["Ada lives in London.", "Who wrote the first program? Mr Babbage and Ada!", "a", "to Paris 42"]
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
CONTEXT = "Ada lives in London and wrote the first program. "


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> TaskModel:
    return make("classify", tmp_path_factory.mktemp("classify"), **labelled(["a", "b", "c", "d", "e"]))


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> TaskModel:
    return make("tag", tmp_path_factory.mktemp("tag"), **labelled(TAGS))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> TaskModel:
    return make("answer", tmp_path_factory.mktemp("answer"), max_length=64)


@pytest.fixture(scope="module")
def filler(tmp_path_factory: pytest.TempPathFactory) -> TaskModel:
    return make("fill_mask", tmp_path_factory.mktemp("fill_mask"))


def test_classify(classifier: TaskModel) -> None:
    model = classifier.load()
    results = model.classify(TEXTS)
    for text, labels in zip(TEXTS, results, strict=True):
        expected = dict(zip("abcde", classifier.logits(text).logits[0].softmax(0).tolist(), strict=True))
        assert {label.label: label.score for label in labels} == pytest.approx(expected, abs=1e-5)
        assert [label.score for label in labels] == sorted((label.score for label in labels), reverse=True)
        assert model.classify(text) == labels
    assert model.classify([]) == []
    assert model.labels == ["a", "b", "c", "d", "e"]
    with pytest.raises(TaskError, match=r"'classify', not 'embed'; use Model\.classify"):
        model.encode("a")


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_problem_types(tmp_path: Path, problem_type: str) -> None:
    made = make("classify", tmp_path, problem_type=problem_type)
    logits = made.logits("Ada").logits[0]
    expected = logits if problem_type == "regression" else logits.sigmoid()
    scores = {label.label: label.score for label in made.load().classify("Ada")}
    assert [scores[f"LABEL_{i}"] for i in range(5)] == pytest.approx(expected.tolist(), abs=1e-4)


def expected_entities(made: TaskModel, text: str) -> list[tuple[str, float, str, int, int]]:
    """Words take the label of their first piece; I- continues what is beside it and alike, B- begins."""
    encoding = made.tokenizer.encode(text)
    probabilities = made.logits(text).logits[0].softmax(1)
    entities: list[dict[str, object]] = []
    previous = "O"
    for word in range(1 + max(w for w in encoding.word_ids if w is not None)):
        tokens = [t for t, w in enumerate(encoding.word_ids) if w == word]
        score, best = (float(v) for v in probabilities[tokens[0]].max(0))
        name, start, end = TAGS[int(best)], encoding.offsets[tokens[0]][0], encoding.offsets[tokens[-1]][1]
        if name == "O":
            previous = "O"
            continue
        kind = name[2:]
        if name[0] == "B" or previous != kind:
            entities.append({"label": kind, "scores": [], "start": start})
        entities[-1]["end"] = end
        entities[-1]["scores"].append(score)  # type: ignore[attr-defined]
        previous = kind
    return [
        (e["label"], sum(e["scores"]) / len(e["scores"]), text[e["start"] : e["end"]], e["start"], e["end"])  # type: ignore
        for e in entities
    ]


def test_tag(tagger: TaskModel) -> None:
    texts = [*TEXTS, "Zoe wrote xyz, Ada wrote abc0. Who lives in qqq? " * 8]
    results = tagger.load().tag(texts)
    kinds = set()
    for text, entities in zip(texts, results, strict=True):
        expected = expected_entities(tagger, text)
        assert [(e.label, e.text, e.start, e.end) for e in entities] == [(x[0], *x[2:]) for x in expected]
        assert [e.score for e in entities] == pytest.approx([x[1] for x in expected], abs=1e-4)
        kinds |= {e.label for e in entities}
    assert kinds == {"PER", "LOC"}
    assert any(" " in e.text for entities in results for e in entities), "no entity of several words was tested"
    assert tagger.load().tag("") == []


def expected_answers(made: TaskModel, question: str, context: str, longest: int) -> dict[tuple[int, int], float]:
    """Every span of a context that fits in one window, by its words; [CLS] and the last [SEP] are in the softmax."""
    encoding = made.tokenizer.encode(question, context)
    out = made.logits(question, context)
    tokens = [i for i, s in enumerate(encoding.sequence_ids) if s == 1]
    kept = [*tokens, 0, len(encoding.ids) - 1]
    starts, ends = out.start_logits[0][kept].softmax(0), out.end_logits[0][kept].softmax(0)
    words = encoding.word_ids
    spans: dict[tuple[int, int], float] = {}
    for i, first in enumerate(tokens):
        for j in range(i, min(i + longest, len(tokens))):
            word_first = next(t for t in tokens if words[t] == words[first])
            word_last = [t for t in tokens if words[t] == words[tokens[j]]][-1]
            span = (encoding.offsets[word_first][0], encoding.offsets[word_last][1])
            spans[span] = max(spans.get(span, 0.0), float(starts[i] * ends[j]))
    return spans


@pytest.mark.parametrize("longest", [1, 3, 15])
def test_answer(reader: TaskModel, longest: int) -> None:
    model, question = reader.load(), "Who wrote the xyz program?"
    answers = model.answer(question, CONTEXT, top_k=4, max_answer_tokens=longest)
    spans = expected_answers(reader, question, CONTEXT, longest)
    expected = sorted(spans.values(), reverse=True)
    assert answers[0].score == pytest.approx(expected[0], rel=1e-3)
    for answer in answers:
        assert answer.text == CONTEXT[answer.start : answer.end]
        assert answer.score == pytest.approx(spans[answer.start, answer.end], rel=1e-3)


def test_answer_reads_long_contexts(reader: TaskModel) -> None:
    model = reader.load()
    context = CONTEXT * 20  # about 200 tokens in windows of 64
    with pytest.warns(UserWarning, match="the context is longer than the 64 tokens of one pass"):
        answers = model.answer("Who?", context, top_k=20)
    assert len({(a.start, a.end) for a in answers}) == 20
    assert max(a.end for a in answers) > len(context) * 0.6
    assert all(a.text == context[a.start : a.end] for a in answers)
    pairs = model.answer(["Who?", "Where is Ada?"], [context, CONTEXT], top_k=20)
    assert pairs[0] == answers
    assert pairs[1] == model.answer("Where is Ada?", CONTEXT, top_k=20)


def test_answer_edges(reader: TaskModel) -> None:
    model = reader.load()
    assert model.answer("Who?", "") == []
    assert model.answer([], []) == []
    with pytest.raises(ValueError, match="2 questions and 1 contexts"):
        model.answer(["a", "b"], ["c"])
    with pytest.raises(ValueError, match="no room for its context"):
        model.answer("who " * 200, CONTEXT)
    with pytest.raises(ValueError, match="top_k is 0"):
        model.answer("Who?", CONTEXT, top_k=0)


def test_fill_mask(filler: TaskModel) -> None:
    model = filler.load()
    assert model.mask_token == "[MASK]"
    texts = ["Ada lives in [MASK].", "[MASK] wrote the first [MASK]."]
    results = model.fill_mask(texts, top_k=3)
    assert [len(gaps) for gaps in results] == [1, 2]
    for text, gaps in zip(texts, results, strict=True):
        ids = filler.tokenizer.encode(text).ids
        logits = filler.logits(text).logits[0][[i for i, t in enumerate(ids) if t == 4]]
        scores, order = torch.topk(logits.softmax(1), 3)
        assert [[c.id for c in gap] for gap in gaps] == order.tolist()
        assert [[c.score for c in gap] for gap in gaps] == [pytest.approx(row, rel=1e-3) for row in scores.tolist()]
        assert model.fill_mask(text, top_k=3) == gaps
    known = [c for gap in model.fill_mask(texts[0], top_k=300) for c in gap if c.text == "ada"]
    assert len(known) == 1
    with pytest.raises(ValueError, match=r"has no \[MASK\]"):
        model.fill_mask("no gap")


def test_rows_on_raw_ids(filler: TaskModel) -> None:
    model = filler.load()
    ids = filler.tokenizer.encode("Ada lives in [MASK].").ids
    expected = filler.logits("Ada lives in [MASK].").logits[0].numpy()
    assert model([ids, ids], rows=[4, len(ids) + 1]) == pytest.approx(expected[[4, 1]], abs=2e-3)
    with pytest.raises(ValueError, match="rows is None"):
        model([ids])
