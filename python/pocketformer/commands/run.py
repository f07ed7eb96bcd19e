"""Do with texts what the model was trained for: embed, classify, tag, answer a question or fill a mask."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .. import console
from ..errors import UnsupportedModelError
from . import encode, options

if TYPE_CHECKING:
    from ..model import Model

HELP = "run the file's own task on texts"
EXAMPLE = """  pocketformer run sentiment.pocket "What a film!"
  pocketformer run qa.pocket --question "Who wrote it?" "The letter was written by Ada."
  pocketformer run bert.pocket "Paris is the [MASK] of France." --top-k 3"""


def arguments(parser: argparse.ArgumentParser) -> None:
    options.model_file(parser)
    options.texts(parser)
    options.threads(parser)
    parser.add_argument("--question", metavar="Q", help="what to ask each text, for a model that answers")
    parser.add_argument("--top-k", type=options.positive, default=5, metavar="K", help="results of each (default: 5)")


def execute(args: argparse.Namespace) -> dict[str, Any]:
    from ..model import load

    texts = options.read_texts(args)
    model = load(args.model, args.threads)
    found = _results(model, texts, args.question, args.top_k)
    results = [{"text": text, **result} for text, result in zip(texts, found, strict=True)]
    return {"task": model.task, "width": model.width, "results": results}


def _results(model: Model, texts: list[str], question: str | None, top_k: int) -> list[dict[str, Any]]:
    if question is not None and model.task != "answer":
        raise ValueError(f"--question was given, but the model's task is {model.task!r}; leave it out")
    if model.task == "embed":
        return [{"embedding": row} for row in model.encode(texts).tolist()]
    if model.task == "classify":
        return [{"labels": _dicts(labels[:top_k])} for labels in model.classify(texts)]
    if model.task == "tag":
        return [{"entities": _dicts(entities)} for entities in model.tag(texts)]
    if model.task == "fill_mask":
        return [{"masks": [_dicts(gap) for gap in gaps]} for gaps in model.fill_mask(texts, top_k=top_k)]
    if model.task == "answer":
        if question is None:
            raise ValueError('the model answers questions about the texts; ask with --question "…"')
        answers = model.answer([question] * len(texts), texts, top_k=top_k)
        return [{"answers": _dicts(found)} for found in answers]
    raise UnsupportedModelError(f"the task {model.task!r} has no command; call the model from Python on token ids")


def _dicts(results: Any) -> list[dict[str, Any]]:
    return [result._asdict() for result in results]


def show(result: dict[str, Any]) -> None:
    if result["task"] == "embed":
        encode.show({**result, "texts": len(result["results"])})
        return
    for entry in result["results"]:
        title = console.shorten(entry["text"], 100)
        if result["task"] == "classify":
            console.table(title, ("label", "score"), [_row(label, "label") for label in entry["labels"]])
        elif result["task"] == "tag":
            rows = [(e["text"], e["label"], f"{e['score']:.3f}", f"{e['start']}–{e['end']}") for e in entry["entities"]]
            console.table(title, ("entity", "label", "score", "characters"), rows)
        elif result["task"] == "answer":
            console.table(title, ("answer", "score"), [_row(answer, "text") for answer in entry["answers"]])
        else:
            for number, gap in enumerate(entry["masks"], 1):
                console.table(f"{title} (mask {number})", ("token", "score"), [_row(token, "text") for token in gap])


def _row(result: dict[str, Any], key: str) -> tuple[str, str]:
    return result[key], f"{result['score']:.3f}"
