"""Two texts read together: pairs, ranking and zero-shot classification, equal to torch and to transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pocketformer
from helpers.task_models import TaskModel, in_transformers, labelled, make
from pocketformer import TaskError

PAIRS = [("Where is Ada?", "Ada lives in London."), ("a", "b c d e f " * 20), ("first program " * 30, "letter " * 60)]
FAMILIES = ["bert", "distilbert", "roberta", "albert"]
MAX_LENGTH = 64


@pytest.fixture(scope="module", params=FAMILIES)
def classifier(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TaskModel:
    return make("classify", tmp_path_factory.mktemp("classify"), MAX_LENGTH, family=request.param)


@pytest.fixture(scope="module", params=FAMILIES)
def ranker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TaskModel:
    folder = tmp_path_factory.mktemp("rank")
    return make("classify", folder, MAX_LENGTH, family=request.param, **labelled(["LABEL_0"]))


@pytest.fixture(
    scope="module",
    params=[
        ("bert", ["entailment", "neutral", "contradiction"]),
        ("bert", ["no", "maybe", "ENTAILS"]),
        ("roberta", ["contradiction", "entailment"]),
        ("xlm-roberta", ["contradiction", "neutral", "entailment"]),
    ],
    ids=str,
)
def inference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TaskModel:
    family, names = request.param
    return make("classify", tmp_path_factory.mktemp("nli"), MAX_LENGTH, family=family, **labelled(names))


@torch.no_grad()
def logits(made: TaskModel, *texts: str) -> torch.Tensor:
    """Cut by transformers, which takes from the longer of two texts."""
    tokenizer = in_transformers(made.folder)
    typed = getattr(made.torch.config, "type_vocab_size", 0) > 1
    batch = [[text] for text in texts]  # alone, an empty second text would be no second text
    arguments = tokenizer(*batch, truncation=True, return_tensors="pt", return_token_type_ids=typed)
    return made.torch(**arguments).logits[0]


@pytest.mark.filterwarnings("ignore:.*texts are longer:UserWarning")
def test_pairs(classifier: TaskModel) -> None:
    model = classifier.load()
    mixed = [*PAIRS, "Ada lives in London.", list(PAIRS[0])]
    for text, labels in zip(mixed, model.classify(mixed), strict=True):
        expected = logits(classifier, *([text] if isinstance(text, str) else text)).softmax(0)
        scores = [dict(labels)[f"LABEL_{i}"] for i in range(5)]
        assert scores == pytest.approx(expected.tolist(), abs=1e-4)
    one = model.classify([PAIRS[0]])
    assert dict(one[0]) != pytest.approx(dict(model.classify([PAIRS[0][::-1]])[0]), abs=1e-3)
    assert model([PAIRS[0]]) == one


@pytest.mark.filterwarnings("ignore:.*texts are longer:UserWarning")
@pytest.mark.parametrize("threads", [1, 2])
def test_rank(ranker: TaskModel, threads: int) -> None:
    model = pocketformer.Ranker.load(ranker.pocket, threads=threads)
    query, documents = "who wrote the first letter", [b for _, b in PAIRS] + ["", "張 Ada", "letter to Mr Babbage"]
    expected = [float(logits(ranker, query, document)[0].sigmoid()) for document in documents]
    hits = model.rank(query, documents)
    assert sorted(i for i, _ in hits) == list(range(len(documents)))
    assert [score for _, score in hits] == pytest.approx([expected[i] for i, _ in hits], abs=1e-4)
    assert [score for _, score in hits] == sorted((score for _, score in hits), reverse=True)
    assert model.rank(query, iter(documents), top_k=2) == hits[:2]
    assert model.rank(query, []) == []
    best = documents[hits[0][0]]
    assert dict(model.classify([(query, best)])[0])["LABEL_0"] == pytest.approx(hits[0][1], abs=1e-6)


def test_rank_by_the_plain_output(tmp_path: Path) -> None:
    made = make("classify", tmp_path, model={"activation": "identity"}, **labelled(["LABEL_0"]))
    ((_, score),) = made.load().rank("who", ["ada wrote the letter"])
    assert score == pytest.approx(float(logits(made, "who", "ada wrote the letter")[0]), abs=1e-4)


def test_ranking_mistakes(ranker: TaskModel, classifier: TaskModel) -> None:
    model = ranker.load()
    for arguments, error, message in (
        ((["a"], ["b"]), TypeError, "query is list"),
        (("a", "b"), TypeError, "documents is a str"),
        (("a", ["b", None]), TypeError, r"documents\[1\]: a text is NoneType"),
        (("a", ["b", "\udc80"]), ValueError, r"documents\[1\] holds '\\udc80'"),
        (("a\udc80", ["b"]), ValueError, "query holds"),
        (("a", ["b"], 0), ValueError, "top_k is 0"),
    ):
        with pytest.raises(error, match=message):
            model.rank(*arguments)
    with pytest.raises(TaskError, match=r"'classify', not 'rank'; use Model\.classify"):
        classifier.load().rank("a", ["b"])
    with pytest.raises(TaskError, match="use Classifier"):
        pocketformer.Ranker.load(classifier.pocket)


@pytest.mark.filterwarnings("ignore:.*texts are longer:UserWarning")
@pytest.mark.parametrize("multi_label", [False, True])
def test_zero_shot(inference: TaskModel, multi_label: bool) -> None:
    model, pipeline = inference.load(), inference.pipeline("zero-shot-classification")
    hypothesis = "the letter is about {}."
    texts = ["Ada lives in London.", "who wrote the first program " * 30, "to"]
    for labels in (["paris", "program", "mr babbage"], ["paris"]):
        results = model.classify(texts, labels=labels, hypothesis=hypothesis, multi_label=multi_label)
        for text, found in zip(texts, results, strict=True):
            expected = pipeline(text, labels, hypothesis_template=hypothesis, multi_label=multi_label)
            assert [label for label, _ in found] == expected["labels"]
            assert [score for _, score in found] == pytest.approx(expected["scores"], abs=1e-4)
    assert model.classify("to", labels=["paris", "program"])[0].label in ("paris", "program")


def test_zero_shot_mistakes(inference: TaskModel, classifier: TaskModel) -> None:
    model = inference.load()
    with pytest.raises(ValueError, match="labels is 'paris'"):
        model.classify("a", labels="paris")
    with pytest.raises(ValueError, match=r"labels is \[\]"):
        model.classify("a", labels=[])
    with pytest.raises(ValueError, match=r"must hold .. where the label goes"):
        model.classify("a", labels=["paris"], hypothesis="about paris")
    with pytest.raises(ValueError, match="leaves no room for the first in 64 tokens"):
        model.classify("a", labels=["paris " * 80])
    with pytest.raises(TypeError, match="not pairs"):
        model.classify([("a", "b")], labels=["paris"])
    with pytest.raises(TaskError, match="begins with 'entail'"):
        classifier.load().classify("a", labels=["paris"])


def test_masks_in_pairs(tmp_path: Path) -> None:
    made = make("fill_mask", tmp_path)
    pair = ("Ada lives in [MASK].", "the first [MASK]")
    ids = made.tokenizer.encode(*pair).ids
    expected = made.logits(*pair).logits[0][[i for i, t in enumerate(ids) if t == 4]].argmax(1)
    (gaps,) = made.load().fill_mask([pair], top_k=1)
    assert [gap[0].id for gap in gaps] == expected.tolist()
