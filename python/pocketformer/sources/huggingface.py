"""Reads a Hugging Face or sentence-transformers folder into a graph."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from math import exp
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UnsupportedModelError
from ..families import CLASSES, DECODERS, FAMILIES, IMAGE_FAMILIES, TASKS, TEXT_TOWERS, Family, decoder
from ..families.heads import HEADS
from ..graph import SEEN, Graph, GraphBuilder
from ..lazy import Float32
from .adapter import Adapter, open_adapter, refuse_lone_adapter
from .config import Config
from .foreign import refuse_foreign_computation
from .generation import generation_settings
from .images import read_preprocessing
from .late_interaction import LateInteraction
from .names import Names, find_names
from .provenance import license_of, model_name, repository
from .sentence_settings import SentenceSettings
from .sentence_transformers import Modules, read_modules
from .source import Source
from .tokenizer import ImportedTokenizer, read_tokenizer
from .tokenizer_files import Settings
from .towers import of_tower
from .weights import Weights, open_weights


@dataclass(frozen=True)
class Checkpoint:
    """An imported model; ``model`` and ``text`` are the metadata that docs/format.md defines.

    Matrices of the graph are read when they are used (:class:`~pocketformer.lazy.LazyArray`).
    """

    graph: Graph
    model: dict[str, Any]
    text: dict[str, Any]
    tokenizer_json: bytes | None


@dataclass(frozen=True)
class HuggingFaceSource:
    """A folder with ``config.json`` and safetensors, and perhaps an adapter beside them.

    ``root`` is what the user named, ``folder`` where the encoder lies in it.
    """

    root: Path
    folder: Path
    config: Config
    weights: Weights
    names: Names
    adapter: Adapter | None

    @classmethod
    def open(cls, root: Path, folder: Path, config: Config, base: str, table: str) -> HuggingFaceSource:
        """``table`` is a tensor that every encoder of the family has, below ``base`` where there is a head."""
        weights = open_weights(folder)
        names = find_names(weights.entries, base, table, folder)
        adapter = open_adapter(folder)
        if adapter:
            adapter.check_targets(names)
        return cls(root, folder, config, weights, names, adapter)

    @property
    def name(self) -> str:
        return model_name(self.root)

    @property
    def repository(self) -> str | None:
        return repository(self.root, self.config)

    @property
    def license(self) -> str | None:
        return license_of(self.root, self.config)

    def __contains__(self, name: str) -> bool:
        return self._replaced(name) is not None or self.names(name) in self.weights

    def shape(self, name: str) -> tuple[int, ...]:
        file, stored = self._where(name)
        return file.shape(stored)

    def weight(self, name: str, *shape: int) -> Float32:
        file, stored = self._where(name)
        weight = file.weight(stored, *shape)
        return self.adapter.merged(self.names.spellings(name), weight) if self.adapter else weight

    def vector(self, name: str, length: int) -> Float32:
        file, stored = self._where(name)
        return file.vector(stored, length)

    def agreement(self) -> dict[str, float]:
        """What turns the cosine of an image and a text into a logit, where towers were taught to agree."""
        if "logit_scale" not in self:
            return {}
        found = {"logit_scale": exp(self._scalar("logit_scale"))}
        return found | ({"logit_bias": self._scalar("logit_bias")} if "logit_bias" in self else {})

    def _scalar(self, name: str) -> float:
        file, stored = self._where(name)
        values = file.tensor(stored, *file.shape(stored)).reshape(-1)
        if len(values) != 1:
            raise CheckpointError(f"tensor {name!r} has {len(values)} entries; it must have one")
        return float(values[0])

    def _where(self, name: str) -> tuple[Weights, str]:
        """The file that holds ``name``, and its name there."""
        replaced = self._replaced(name)
        if self.adapter and replaced is not None:
            return self.adapter.tensors, replaced
        return self.weights, self.names(name)

    def _replaced(self, name: str) -> str | None:
        return self.adapter.replacement(self.names.spellings(name)) if self.adapter else None


def load_checkpoint(folder: str | Path, tower: str | None = None) -> Checkpoint:
    """Imports a folder with ``config.json``, ``model.safetensors`` (or shards) and, for text, ``tokenizer.json``; or a
    GGUF file.

    The task follows from ``architectures``, or is ``embed`` where ``modules.json`` says how to pool. An encoder without
    head and without ``modules.json`` embeds by the mean of its tokens, unnormalised. A LoRA adapter beside the model is
    merged. Texts are cut at ``max_seq_length`` of ``sentence_bert_config.json``, else at ``model_max_length`` of
    ``tokenizer_config.json``, never above the position table. ``tower`` says which half of a CLIP or SigLIP is meant:
    ``vision`` or ``text``.

    Example:
        >>> checkpoint = load_checkpoint("all-MiniLM-L6-v2")  # doctest: +SKIP
        >>> checkpoint.model["task"]  # doctest: +SKIP
        'embed'

    Raises:
        CheckpointError: a file is missing or damaged, or a tensor is missing or has another shape than the config says.
            A tensor that holds NaN or infinity raises it when it is read.
        UnsupportedModelError: the architecture, head or an option is not supported; the message lists what is.
        ImportError: the safetensors package is absent (``pip install 'pocketformer[compress]'``).
    """
    root = Path(folder)
    if root.is_file() and root.suffix == ".gguf":
        from .gguf import load_gguf

        if tower is not None:
            raise UnsupportedModelError(f"tower is {tower!r}, but {root} holds a single model: leave it out")
        return load_gguf(root)
    if not root.is_dir():
        raise CheckpointError(
            f"{root} is not a folder; pass the folder that holds config.json and model.safetensors, or a .gguf file"
        )
    modules = read_modules(root)
    home = modules.encoder if modules else root
    refuse_lone_adapter(home)
    config = Config.read(home / "config.json")
    config = of_tower(config, tower)
    if config.values.get("model_type") in IMAGE_FAMILIES:
        return _load_images(root, config)
    if config.values.get("model_type") in TEXT_TOWERS:
        return _load_text_tower(root, config)
    if not modules and _generates(config, home):
        return _load_decoder(root, config)
    sentence = SentenceSettings.read(root, home, config.values, modules.task if modules else None)
    config = Config({**config.values, **sentence.config}, config.path)
    family = _family(config)
    refuse_foreign_computation(config, repository(root, config))
    source = HuggingFaceSource.open(root, home, config, family.base, family.table)
    _refuse_transposed_adapter(source)
    task = modules.task if modules else _task(config, source.adapter)
    late = None
    if modules and task == "embed_tokens":
        late = LateInteraction.read(root, home, sentence.encoder, modules.mask)
    graph = _build(family, task, source, modules, late)
    labels = _labels(config, graph) if task in ("classify", "tag") else []
    model = _described(source, family.name, task, graph, labels)
    if task == "classify" and isinstance(config.values.get("problem_type"), str):
        model["problem_type"] = config.values["problem_type"]
    settings = Settings(home, sentence.tokenizer)
    max_length = min(settings.max_length or graph.max_length, graph.max_length)
    tokenizer = read_tokenizer(settings, config, graph.vocab_size, max_length, sentence.lowercase)
    if task == "classify" and family.name in DECODERS and tokenizer:
        _check_last_token(config, tokenizer)
    text = {
        "max_length": max_length,
        "mask_token_id": tokenizer.mask_token_id if tokenizer else None,
        **sentence.text(task, modules.include_prompt if modules else True),
    }
    content = tokenizer.json if tokenizer else None
    if late and tokenizer:
        content, own = late.text(tokenizer, max_length, settings.values.get("padding_side", "right"), text["prompts"])
        text |= own
    model |= {**sentence.model(task), **(modules.model() if modules else {})}
    return Checkpoint(graph, model, text, content)


def _load_images(root: Path, config: Config) -> Checkpoint:
    family = IMAGE_FAMILIES[config.text("model_type", "")]
    refuse_foreign_computation(config, repository(root, config))
    architecture = _architecture_of(config, family.classes)
    task = family.classes[architecture]
    source = HuggingFaceSource.open(root, root, config, family.base, family.table)
    image = read_preprocessing(root)
    builder, output = family.build(config, source, architecture, (image["height"], image["width"]))
    graph = builder.build(output)
    labels = _labels(config, graph) if task == "classify_image" else []
    model = {**_described(source, family.name, task, graph, labels), "image": image, **source.agreement()}
    return Checkpoint(graph, model, {"max_length": 1}, None)


def _load_text_tower(root: Path, config: Config) -> Checkpoint:
    tower = TEXT_TOWERS[config.text("model_type", "")]
    refuse_foreign_computation(config, repository(root, config))
    _architecture_of(config, tower.classes)
    source = HuggingFaceSource.open(root, root, config, tower.base, tower.table)
    builder, output = tower.build(config, source)
    graph = builder.build(output)
    tokenizer = read_tokenizer(Settings(root), config, graph.vocab_size, graph.max_length)
    model = {**_described(source, tower.name, "embed", graph), **source.agreement()}
    text: dict[str, Any] = {"max_length": graph.max_length, "pooled_token": tower.pooled(config)}
    if tower.padded(config):
        text |= {"padded_length": tower.padded(config), "pad_token_id": config.integer("pad_token_id", 1, minimum=0)}
    return Checkpoint(graph, model, text, tokenizer.json if tokenizer else None)


def _load_decoder(root: Path, config: Config) -> Checkpoint:
    refuse_foreign_computation(config, repository(root, config))
    family = DECODERS[config.text("model_type", "")]
    source = HuggingFaceSource.open(root, root, config, family.base, family.words)
    _refuse_transposed_adapter(source)
    graph, model = read_decoder(source)
    tokenizer = read_tokenizer(Settings(root), config, graph.vocab_size, graph.max_length)
    text = {"max_length": graph.max_length, **generation_settings(root, config, graph.vocab_size)}
    return Checkpoint(graph, model, text, tokenizer.json if tokenizer else None)


def _generates(config: Config, home: Path) -> bool:
    """Whether a checkpoint predicts tokens: neither its class nor an adapter beside it is of another task."""
    family = DECODERS.get(str(config.values.get("model_type")))
    if family is None or _architecture(config) != family.architecture:
        return False
    adapter = open_adapter(home)
    return adapter is None or adapter.task is None


def _refuse_transposed_adapter(source: HuggingFaceSource) -> None:
    family = DECODERS.get(str(source.config.values.get("model_type")))
    if source.adapter and family and family.transposed:
        raise UnsupportedModelError(
            f"{source.adapter.config.path}: adapters of {family.name}, whose linears are stored the other way round, "
            "are not merged; call merge_and_unload of peft, save_pretrained, and pass the new folder"
        )


def _check_last_token(config: Config, tokenizer: ImportedTokenizer) -> None:
    """Classifiers read the last token that is no padding; here every token counts."""
    from tokenizers import Tokenizer

    ids = Tokenizer.from_str(tokenizer.json.decode()).encode("a").ids
    config.refuse(
        "pad_token_id",
        ids and ids[-1] == config.values.get("pad_token_id"),
        "the tokenizer ends every text with it, but the classifier reads the token before: end texts with another one",
    )


def read_decoder(source: Source, *, transposed: bool = True) -> tuple[Graph, dict[str, Any]]:
    """The graph of a decoder, and ``model`` of its checkpoint. ``transposed`` is False where all linears are stored as
    [n, k], whatever the family says.
    """
    config = source.config
    family = DECODERS[config.text("model_type", "")]
    family = replace(family, transposed=family.transposed and transposed)
    if _architecture(config) != family.architecture:
        raise UnsupportedModelError(
            f"{config.path}: architecture {_architecture(config)!r} is not supported; supported of its family is "
            f"{family.architecture}"
        )
    builder, output = decoder.generator(family, config, source)
    graph = builder.build(output)
    return graph, _described(source, family.name, "generate", graph)


def _described(source: Source, family: str, task: str, graph: Graph, labels: list[str] | None = None) -> dict[str, Any]:
    """What every file says of its ``model``."""
    known = (("license", source.license), ("source", source.repository))
    return {
        "name": source.name,
        "family": family,
        "task": task,
        "labels": labels or [],
        "params": sum(array.size for array in graph.params.values()),
        "weights": "fp32",
        **{key: value for key, value in known if value},
    }


def _architecture_of(config: Config, classes: Collection[str]) -> str:
    """The first architecture of ``config``, or the first of ``classes`` where it names none; it is one of them."""
    architecture = _architecture(config) or next(iter(classes))
    if architecture not in classes:
        raise UnsupportedModelError(
            f"{config.path}: architecture {architecture!r} is not supported; supported of its family are "
            f"{', '.join(classes)}"
        )
    return architecture


def _family(config: Config) -> Family:
    model_type = config.text("model_type", "")
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"{config.path}: model_type {model_type!r} ({_architecture(config) or 'no architecture named'}) is not "
            f"supported; supported are {', '.join((*FAMILIES, *IMAGE_FAMILIES, *TEXT_TOWERS))}"
        )
    return FAMILIES[model_type]


def _architecture(config: Config) -> str:
    names = config.values.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def _task(config: Config, adapter: Adapter | None) -> str:
    """The task of an adapter that names one, else of the first architecture, else that of a bare encoder."""
    if adapter and adapter.task:
        return adapter.task
    architecture = _architecture(config)
    task = CLASSES.get(architecture, "embed")
    if architecture and architecture not in CLASSES:
        raise UnsupportedModelError(
            f"{config.path}: architecture {architecture!r} is not supported; supported are the classes of "
            f"{', '.join((*FAMILIES, *IMAGE_FAMILIES, *TEXT_TOWERS))} whose names end in {', '.join(TASKS)}"
        )
    return task


def _build(
    family: Family, task: str, source: Source, modules: Modules | None, late: LateInteraction | None = None
) -> Graph:
    spec = family.for_task(family.spec(source.config), task)
    builder = GraphBuilder.text(spec.vocab, spec.types, spec.max_length)
    x = family.encode(builder, spec, source, f"{family.base}.")
    if late and late.expansion and not late.expansion.attend:
        builder.attend_to_first(SEEN, spec.max_length)
    if modules and task in ("embed", "embed_tokens"):
        x = modules.append_to(builder, x, spec.hidden, spec.max_length)
    elif task == "embed":
        x = builder.pool(x, "mean")
    else:
        x = {**HEADS, **family.heads}[task](builder, x, family, spec, source)
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
