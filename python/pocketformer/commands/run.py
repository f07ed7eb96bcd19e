"""Do with texts or images what the model was trained for: embed, classify, rank, tag, answer or fill a mask."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .. import console
from ..errors import UnsupportedModelError
from . import encode, images, options

if TYPE_CHECKING:
    from ..model import Model

HELP = "run the file's own task on texts or images"
EXAMPLE = """  pocketformer run sentiment.pocket "What a film!"
  pocketformer run nli.pocket "The stove is hot." --pair "Do not touch it."
  pocketformer run nli.pocket "The stove is hot." --labels kitchen weather
  pocketformer run reranker.pocket --query "Who wrote it?" "It rains." "Ada wrote the letter."
  pocketformer run qa.pocket --question "Who wrote it?" "The letter was written by Ada."
  pocketformer run bert.pocket "Paris is the [MASK] of France." --top-k 3
  pocketformer run vit.pocket photo.jpg more-photos/
  pocketformer run clip-vision.pocket photos/ --labels owl boat --text-model clip-text.pocket
  ffmpeg -f v4l2 -i /dev/video0 -f rawvideo -pix_fmt rgb24 -s 640x480 - | \\
    pocketformer run vit.pocket --input - --frame 640x480"""

AGGREGATIONS = ("none", "simple", "first", "max", "average")  # those of tasks/tag.py, whose import would cost
_TASK_OPTIONS = {
    "question": ("answer",),
    "allow_empty": ("answer",),
    "pair": ("classify",),
    "labels": ("classify", "embed_image"),
    "text_model": ("embed_image",),
    "template": ("embed_image",),
    "query": ("classify", "embed_tokens"),
    "aggregation": ("tag",),
}


def arguments(parser: argparse.ArgumentParser) -> None:
    options.model_file(parser)
    options.texts(parser)
    options.threads(parser)
    parser.add_argument("--question", metavar="Q", help="what to ask each text, for a model that answers")
    parser.add_argument("--allow-empty", action="store_true", help="let there be no answer")
    parser.add_argument("--pair", metavar="TEXT", help="the second text beside each, for a model that reads pairs")
    parser.add_argument(
        "--labels", nargs="+", metavar="LABEL", help="any labels, for a model of language inference or a vision tower"
    )
    parser.add_argument(
        "--text-model", metavar="FILE.pocket", help="the text tower beside a vision tower, for --labels"
    )
    parser.add_argument(
        "--template",
        action="append",
        metavar="TEXT",
        help='what labels of images go into (default: "a photo of a {}."); may be repeated, then their mean counts',
    )
    images.arguments(parser)
    parser.add_argument("--query", metavar="Q", help="rank the texts by how they fit Q, for rerankers")
    parser.add_argument("--aggregation", choices=AGGREGATIONS, help="how tokens become entities")
    parser.add_argument("--top-k", type=options.positive, default=5, metavar="K", help="results of each (default: 5)")


def execute(args: argparse.Namespace) -> dict[str, Any] | None:
    texts = [] if args.frame else options.read_texts(args)
    model = options.load_model(args.model, args.threads)
    images.check(args, model.task)
    for name, tasks in _TASK_OPTIONS.items():
        if getattr(args, name) and model.task not in tasks:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} was given, but the model's task is {model.task!r}; leave it out")
    if model.task == "embed_image" and bool(args.labels) != bool(args.text_model):
        raise ValueError("labels of images need both --labels and --text-model, the text tower's file; give both")
    if args.template and not args.labels:
        raise ValueError("--template was given without --labels, which go into it; give both")
    if args.frame:
        if args.labels:
            raise ValueError("--labels and --frame were given; labels of frames are made in Python, image by image")
        with images.frames(args) as stream:
            images.follow(model, stream, args.top_k, args.json)
        return None
    given = "text"
    if model.task in images.TASKS:
        given, texts = "image", images.files(texts)
    found = _results(model, texts, args)
    results = [{given: text, **result} for text, result in found]
    return {"task": model.task, "width": model.width, "results": results}


def _results(model: Model, texts: list[str], args: argparse.Namespace) -> list[tuple[str, dict[str, Any]]]:
    top_k: int = args.top_k
    if args.query:
        return [(texts[i], {"score": score, "index": i}) for i, score in model.rank(args.query, texts, top_k)]
    if model.task == "embed_image" and args.labels:
        results: list[dict[str, Any]] = images.zero_shot(model, args.text_model, texts, args)
    elif model.task in ("embed", "embed_image"):
        results = [{"embedding": row} for row in model.encode(texts).tolist()]
    elif model.task == "embed_sparse":
        results = [
            {
                "indices": found.indices.tolist(),
                "values": found.values.tolist(),
                "tokens": [{"text": token, "score": weight} for token, weight in model.decode(found, top_k)],
            }
            for found in model.encode(texts)
        ]
    elif model.task == "embed_tokens":
        results = [{"embeddings": rows.tolist()} for rows in model.encode_document(texts)]
    elif model.task == "classify":
        rows: list[Any] = [text if args.pair is None else (text, args.pair) for text in texts]
        results = [{"labels": _dicts(labels[:top_k])} for labels in model.classify(rows, labels=args.labels)]
    elif model.task == "classify_image":
        results = [{"labels": _dicts(labels)} for labels in model.classify(texts, top_k=top_k)]
    elif model.task == "tag":
        results = [{"entities": _dicts(found)} for found in model.tag(texts, aggregation=args.aggregation)]
    elif model.task == "fill_mask":
        results = [{"masks": [_dicts(gap) for gap in gaps]} for gaps in model.fill_mask(texts, top_k=top_k)]
    elif model.task == "answer":
        if args.question is None:
            raise ValueError('the model answers questions about the texts; ask with --question "…"')
        questions = [args.question] * len(texts)
        answers = model.answer(questions, texts, top_k=top_k, allow_empty=args.allow_empty)
        results = [{"answers": _dicts(found)} for found in answers]
    elif model.task == "generate":
        raise UnsupportedModelError("the model generates text; use `pocketformer generate` or `pocketformer chat`")
    else:
        raise UnsupportedModelError(f"the task {model.task!r} has no command; call the model from Python on token ids")
    return list(zip(texts, results, strict=True))


def _dicts(results: Any) -> list[dict[str, Any]]:
    return [result._asdict() for result in results]


def show(result: dict[str, Any]) -> None:
    results = result["results"]
    if "embedding" in results[0]:
        encode.show({**result, "texts": len(results)})
        return
    if "index" in results[0]:
        console.table("Ranking", ("text", "score"), [_row(entry, "text") for entry in results])
        return
    for entry in results:
        title = console.shorten(options.title(entry), 100)
        if result["task"] == "embed_sparse":
            count = f"{len(entry['indices'])} entries"
            console.table(f"{title} ({count})", ("token", "weight"), [_row(token, "text") for token in entry["tokens"]])
        elif result["task"] == "embed_tokens":
            print(f"{title}: {len(entry['embeddings'])} × {result['width']}; all values: --json")
        elif "labels" in entry:
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
    return console.shorten(result[key]), f"{result['score']:.3f}"
