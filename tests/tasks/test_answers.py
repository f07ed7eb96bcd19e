"""Answers in every kind of tokenizer and script, and the answer that there is none."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from helpers.task_models import TaskModel, make

QUESTION = "Who lives in Paris?"
CONTEXTS = ["Ada lives in London, and Babbage (a letter) in Paris.", "张伟住在北京。", "Ada 42 อยู่กรุงเทพ"]


@pytest.fixture(scope="module", params=["bert", "xlm-roberta", "roberta", "distilbert"])
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TaskModel:
    return make("answer", tmp_path_factory.mktemp("answer"), family=request.param)


def reference(made: TaskModel, question: str, context: str) -> tuple[dict[tuple[int, int], float], float]:
    """Character spans of tokens and their scores as the pipeline of transformers 4 has them, and that of no answer.

    Softmax over the context, [CLS] and the last [SEP]; at most 15 tokens; start times end.
    """
    encoding, out = made.tokenizer.encode(question, context), made.logits(question, context)
    kept = [i for i, s in enumerate(encoding.sequence_ids) if s == 1 or i in (0, len(encoding.ids) - 1)]
    logits = (out.start_logits[0][kept], out.end_logits[0][kept])
    starts, ends = (dict(zip(kept, row.softmax(0).tolist(), strict=True)) for row in logits)
    spans: dict[tuple[int, int], float] = {}
    for first, last in itertools.product(kept[1:-1], kept[1:-1]):
        if first <= last < first + 15:
            span = (encoding.offsets[first][0], encoding.offsets[last][1])
            spans[span] = max(spans.get(span, 0.0), starts[first] * ends[last])
    return spans, starts[0] * ends[0]


@pytest.mark.parametrize("context", CONTEXTS)
def test_scores_weigh_the_null_answer(reader: TaskModel, context: str) -> None:
    spans, null = reference(reader, QUESTION, context)
    spans = {span: score for span, score in spans.items() if context[slice(*span)].strip()}
    answers = reader.load().answer(QUESTION, context, top_k=500, allow_empty=True)
    empty = [answer for answer in answers if not answer.text]
    assert [(a.start, a.end) for a in empty] == [(0, 0)]
    assert empty[0].score == pytest.approx(null, rel=1e-3)
    best = max(spans.values())
    found = [answer for answer in answers if answer.text]
    assert found[0].score == pytest.approx(best, rel=1e-3)
    assert [a.score for a in answers] == sorted((a.score for a in answers), reverse=True)
    assert all(a.text == context[a.start : a.end] for a in found)
    without = reader.load().answer(QUESTION, context, top_k=500)
    assert without == found[:500]


def peaked(folder: Path, family: str, piece: str, null: float = 0.0) -> Any:
    """A model that starts and ends its answer at ``piece``, and points at the first token by ``null``."""
    import torch

    made = make("answer", folder, family=family, plant={piece: 2})
    with torch.no_grad():
        table, head = made.torch.get_input_embeddings().weight, made.torch.qa_outputs
        first = 2 if family == "bert" else 0
        table[first] = 0.0
        table[first, 3] = 5.0
        head.weight.zero_()
        head.weight[:, 2] = 3.0
        head.weight[:, 3] = null
    return saved_again(made, folder)


def saved_again(made: TaskModel, folder: Path) -> Any:
    import pocketformer

    made.torch.save_pretrained(folder)
    pocketformer.compress(folder, made.pocket, weights="fp32")
    return made.load()


@pytest.mark.parametrize(
    ("family", "piece", "context", "expected"),
    [
        ("xlm-roberta", "▁London", "Ada (in London, 42) lives", "London"),
        ("xlm-roberta", "▁(", "Ada (London) lives", "("),
        ("xlm-roberta", "北", "张伟住在北京。", "北"),
        ("xlm-roberta", "เทพ", "อยู่กรุงเทพ", "เทพ"),
        ("xlm-roberta", "x", "Ada wxyz, London", "wxyz"),
        ("roberta", "Ġlon", "in lonesome, ada", "lonesome"),
        ("roberta", "Ada", "(Adas) letter", "Adas"),
        ("roberta", "¼", "Ada 张伟 lives", "张"),
        ("bert", "london", "Ada lives in London.", "London"),
        ("bert", "##x", "a wxyz-ada", "wxyz"),
        ("bert", "##เทพ", "อยู่กรุงเทพ", "เทพ"),
    ],
)
def test_words_and_scripts(tmp_path: Path, family: str, piece: str, context: str, expected: str) -> None:
    (answer,) = peaked(tmp_path, family, piece).answer("who", context)
    assert answer.text == expected


def test_no_answer(tmp_path: Path) -> None:
    for null, empty in ((0.0, False), (6.0, True)):
        folder = tmp_path / str(null)
        folder.mkdir()
        model = peaked(folder, "bert", "london", null)
        answers = model.answer("who", "ada lives in london", top_k=99, allow_empty=True)
        assert answers[0].text == ("" if empty else "london")
        assert {"", "london"} < {found.text for found in answers}
        (answer,) = model.answer("who", "ada lives in london")
        assert answer.text == "london"
        assert (answer.score < 0.1) == empty
    assert [a.text for a in model.answer("who", "", allow_empty=True)] == [""]
