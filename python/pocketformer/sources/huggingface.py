"""Reads a Hugging Face or sentence-transformers folder into a graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UnsupportedModelError
from ..families import FAMILIES, TASKS, Family
from ..families.heads import HEADS
from ..graph import Graph, GraphBuilder
from .config import Config
from .sentence_settings import SentenceSettings
from .sentence_transformers import Modules, read_modules
from .tokenizer import read_tokenizer
from .tokenizer_files import Settings
from .weights import Weights, open_weights


@dataclass(frozen=True)
class Checkpoint:
    """An imported model; ``model`` and ``text`` are the metadata that docs/format.md defines."""

    graph: Graph
    model: dict[str, Any]
    text: dict[str, Any]
    tokenizer_json: bytes | None


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Imports a folder with ``config.json``, ``model.safetensors`` (or shards) and, for text, ``tokenizer.json``.

    The task follows from ``architectures``, or is ``embed`` where ``modules.json`` says how to pool. An encoder without
    head and without ``modules.json`` embeds by the mean of its tokens, unnormalised. Texts are cut at
    ``max_seq_length`` of ``sentence_bert_config.json``, else at ``model_max_length`` of ``tokenizer_config.json``,
    never above the position table.

    Example:
        >>> checkpoint = load_checkpoint("all-MiniLM-L6-v2")  # doctest: +SKIP
        >>> checkpoint.model["task"]  # doctest: +SKIP
        'embed'

    Raises:
        CheckpointError: a file is missing or damaged, or a tensor is missing or has another shape than the config says.
        UnsupportedModelError: the architecture, head or an option is not supported; the message lists what is.
        ImportError: the safetensors package is absent (``pip install 'pocketformer[compress]'``).
    """
    root = Path(folder)
    if not root.is_dir():
        raise CheckpointError(f"{root} is not a folder; pass the folder that holds config.json and model.safetensors")
    modules = read_modules(root)
    home = modules.encoder if modules else root
    config = Config.read(home / "config.json")
    sentence = SentenceSettings.read(root, home, config.values)
    config = Config({**config.values, **sentence.config}, config.path)
    family = _family(config)
    embeds = modules is not None and bool(modules.steps)
    task = "embed" if embeds else _task(config)
    graph = _build(family, task, config, open_weights(home), modules if embeds else None)
    labels = _labels(config, graph) if task in ("classify", "tag") else []
    model = {
        "name": root.resolve().name,
        "family": family.name,
        "task": task,
        "labels": labels,
        "params": sum(array.size for array in graph.params.values()),
        "weights": "fp32",
    }
    if task == "classify" and isinstance(config.values.get("problem_type"), str):
        model["problem_type"] = config.values["problem_type"]
    settings = Settings(home, sentence.tokenizer)
    max_length = min(settings.max_length or graph.max_length, graph.max_length)
    tokenizer = read_tokenizer(settings, config, graph.vocab_size, max_length, sentence.lowercase)
    text = {
        "max_length": max_length,
        "pad_token_id": config.integer("pad_token_id", family.pad_token_id, minimum=0),
        "mask_token_id": tokenizer.mask_token_id if tokenizer else None,
        "token_types": graph.type_vocab_size > 1,
        **sentence.text(task, modules.include_prompt if modules else True),
    }
    return Checkpoint(graph, {**model, **sentence.model(task)}, text, tokenizer.json if tokenizer else None)


def _family(config: Config) -> Family:
    model_type = config.text("model_type", "")
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"{config.path}: model_type {model_type!r} ({_architecture(config) or 'no architecture named'}) is not "
            f"supported; supported are {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def _architecture(config: Config) -> str:
    names = config.values.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def _task(config: Config) -> str:
    """The task of the first architecture; a config that names none is a bare encoder."""
    architecture = _architecture(config)
    for suffix, task in TASKS.items():
        if architecture.endswith(suffix) and (suffix != "Model" or not architecture.endswith("HeadModel")):
            return task
    if architecture:
        raise UnsupportedModelError(
            f"{config.path}: architecture {architecture!r} is not supported; supported are names that end in "
            f"{', '.join(TASKS)}"
        )
    return "embed"


def _build(family: Family, task: str, config: Config, weights: Weights, modules: Modules | None) -> Graph:
    spec = family.spec(config)
    builder = GraphBuilder.text(spec.vocab, spec.types, spec.max_length)
    prefixed = f"{family.base}.embeddings.word_embeddings.weight" in weights
    x = family.encode(builder, config, spec, weights.under(f"{family.base}." if prefixed else ""))
    if modules:
        x = modules.append_to(builder, x, spec.hidden)
    elif task == "embed":
        x = builder.pool(x, "mean")
    else:
        x = HEADS[task](builder, x, family, spec, weights)
    return builder.build(x)


def _labels(config: Config, graph: Graph) -> list[str]:
    count = graph.params["classifier.weight"].shape[0]
    names = config.values.get("id2label") or {i: f"LABEL_{i}" for i in range(count)}
    by_index = {str(index): str(name) for index, name in names.items()} if isinstance(names, dict) else {}
    if sorted(by_index) != sorted(str(i) for i in range(count)):
        raise CheckpointError(
            f"{config.path}: 'id2label' must name the {count} outputs of the classifier, but is {names!r}"
        )
    return [by_index[str(i)] for i in range(count)]
