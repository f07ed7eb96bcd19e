"""Entities equal those of transformers' pipeline, whatever the tokenizer takes for a word."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from helpers.task_models import TaskModel, labelled, make
from pocketformer.commands.run import AGGREGATIONS

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
TEXTS = [
    "Ada Babbage lives in London, and wrote the first program.",
    "Who (Ada) wrote to Mr. Babbage-London? The 42nd letter!",
    '"Ada" lives  in Paris',
    "张伟住在北京。Ada 住 东京です",
    "อยู่กรุงเทพ Ada",
    "zoe xyz9 É café",
    "",
]


@pytest.fixture(scope="module", params=["bert", "distilbert", "xlm-roberta", "albert", "roberta", "modernbert"])
def random_tagger(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TaskModel:
    return make("tag", tmp_path_factory.mktemp("tag"), family=request.param, **labelled(TAGS))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_equal_to_the_pipeline(random_tagger: TaskModel, aggregation: str) -> None:
    pipeline = random_tagger.pipeline("token-classification", aggregation_strategy=aggregation)
    found = random_tagger.load().tag(TEXTS, aggregation=aggregation)
    several = 0
    for text, entities in zip(TEXTS, found, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the heuristic for words
            expected = pipeline(text) if text else []
        label = "entity" if aggregation == "none" else "entity_group"
        spans = [(x[label], _after_blanks(text, x["start"], x["end"]), x["end"]) for x in expected]
        assert [(e.label, e.start, e.end) for e in entities] == spans
        assert [e.score for e in entities] == pytest.approx([float(x["score"]) for x in expected], abs=1e-4)
        assert all(e.text == text[e.start : e.end] for e in entities)
        several += len(entities)
    assert several > 10


def _after_blanks(text: str, start: int, end: int) -> int:
    """Tokenizers that count the blank before a word as its part give the pipeline spans that begin with it."""
    return end - len(text[start:end].lstrip())


def planted(folder: Path, family: str, plant: dict[str, int], names: list[str] = TAGS) -> TaskModel:
    return make("tag", folder, family=family, plant=plant, **labelled(names))


@pytest.mark.parametrize(
    ("family", "plant"),
    [
        ("xlm-roberta", {"▁Ada": 1, "▁Babbage": 2, "▁London": 3, "▁Paris": 3, "张": 1, "伟": 2, "北": 3, "京": 4}),
        ("camembert", {"▁Ada": 1, "▁Babbage": 2, "▁London": 3, "▁Paris": 3, "张": 1, "伟": 2, "北": 3, "京": 4}),
        ("bert", {"ada": 1, "babbage": 2, "london": 3, "paris": 3, "张": 1, "伟": 2, "北": 3, "京": 4}),
    ],
)
def test_punctuation_brackets_and_scripts_without_blanks(tmp_path: Path, family: str, plant: dict[str, int]) -> None:
    plant = {**plant, "กรุง": 3, "##เทพ" if family == "bert" else "เทพ": 4}
    model = planted(tmp_path, family, plant).load()
    for text, expected in {
        "Ada Babbage lives in London, and Paris.": [("Ada Babbage", "PER"), ("London", "LOC"), ("Paris", "LOC")],
        "( Ada ) Paris!": [("Ada", "PER"), ("Paris", "LOC")],
        "张伟住在北京。": [("张伟", "PER"), ("北京", "LOC")],
        "อยู่ กรุงเทพ": [("กรุงเทพ", "LOC")],
    }.items():
        assert [(e.text, e.label) for e in model.tag(text)] == expected


def test_pieces_of_scripts_without_blanks_are_words(tmp_path: Path) -> None:
    """A WordPiece tokenizer takes a run of Thai or kana for one word, whose first piece would label all."""
    model = planted(tmp_path, "bert", {"##เทพ": 3, "##う": 3}).load()
    assert [(e.text, e.label) for e in model.tag("กรุงเทพ とうです")] == [("เทพ", "LOC"), ("う", "LOC")]
    assert model.tag("กรุงเทพ", aggregation="first") == []


@pytest.mark.parametrize(("end", "single"), [("E", "S"), ("L", "U")])
def test_schemes_that_mark_the_end(tmp_path: Path, end: str, single: str) -> None:
    names = ["O", "B-PER", "I-PER", f"{end}-PER", f"{single}-PER", "E-mail"]
    plant = {"ada": 1, "mr": 2, "babbage": 3, "london": 4, "letter": 5}
    model = planted(tmp_path, "bert", plant, names).load()
    text = "Ada Mr Babbage London London Ada Babbage letter letter"
    found = [(e.text, e.label) for e in model.tag(text)]
    assert found == [
        ("Ada Mr Babbage", "PER"),
        ("London", "PER"),
        ("London", "PER"),
        ("Ada Babbage", "PER"),
        ("letter letter", "E-mail"),
    ]
    assert model.tag("London", aggregation="none")[0].label == f"{single}-PER"


def test_unknown_aggregation(random_tagger: TaskModel) -> None:
    with pytest.raises(ValueError, match="aggregation is 'best'; it must be one of none, simple, first, max, average"):
        random_tagger.load().tag("a", aggregation="best")
