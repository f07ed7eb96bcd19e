"""Tiny models with a head and a tokenizer, as folders and as fp32 pocket files: random, or with planted results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer

import pocketformer
from helpers import torch_models
from helpers.tokenizers import albert_pieces, byte_pairs, sentence_pieces, untrimmed_byte_pairs, word_pieces
from pocketformer.compression import compress_checkpoint
from pocketformer.sources.huggingface import load_checkpoint

TOKENIZERS = {
    "bert": word_pieces,
    "distilbert": word_pieces,
    "albert": albert_pieces,
    "camembert": sentence_pieces,
    "xlm-roberta": sentence_pieces,
    "roberta": byte_pairs,
    "modernbert": untrimmed_byte_pairs,
}
# What the classes of transformers would otherwise decide by themselves: accents are kept, which in Thai are vowels, and
# ALBERT gets token types.
_SETTINGS: dict[str, dict[str, Any]] = {
    "bert": {"strip_accents": False},
    "distilbert": {"strip_accents": False},
    "albert": {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]},
}


@dataclass
class TaskModel:
    """``tokenizer`` is the one transformers makes of ``folder``."""

    torch: torch.nn.Module
    tokenizer: Tokenizer
    folder: Path
    pocket: Path

    def load(self) -> Any:
        return pocketformer.load(self.pocket)

    def pipeline(self, task: str, **options: Any) -> transformers.Pipeline:
        """What transformers makes of the same model."""
        return transformers.pipeline(
            task, model=self.torch, tokenizer=in_transformers(self.folder), device="cpu", **options
        )

    @torch.no_grad()
    def logits(self, *texts: str) -> Any:
        """The output of torch for one text, or for a pair."""
        encoding = self.tokenizer.encode(*texts)
        arguments = {"input_ids": torch.tensor([encoding.ids])}
        if getattr(self.torch.config, "type_vocab_size", 0) > 1:
            arguments["token_type_ids"] = torch.tensor([encoding.type_ids])
        return self.torch(**arguments)


def in_transformers(folder: Path) -> Any:
    """The tokenizer of ``folder``, which how it is called leaves cutting: one for each use."""
    return transformers.AutoTokenizer.from_pretrained(folder)


def labelled(names: list[str]) -> dict[str, dict[str, object]]:
    """What ``config.json`` says of the outputs of a head."""
    return {"id2label": {str(i): name for i, name in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}


def make(
    task: str,
    folder: Path,
    max_length: int = 512,
    family: str = "bert",
    plant: Mapping[str, int] | None = None,
    text: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    **config: Any,
) -> TaskModel:
    """A model of ``family`` with the head of ``task``; ``config`` changes its ``config.json``.

    Its weights are random, or with ``plant`` each piece has the output that is given for it and all others output 0.
    ``text`` and ``model`` are added to the metadata of the pocket file.
    """
    tokenizer = TOKENIZERS[family]()
    names = config.get("id2label") or {}
    sizes: dict[str, Any] = {"vocab_size": max(torch_models.VOCAB, tokenizer.get_vocab_size())}
    built = torch_models.build(family, task, folder, **sizes, **({"num_labels": len(names)} if names else {}))
    if names:
        built.config.id2label = {int(i): name for i, name in names.items()}
        built.config.label2id = {name: int(i) for i, name in names.items()}
    if plant is not None:
        _plant(built, tokenizer, plant)
        built.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    mask = "[MASK]" if tokenizer.token_to_id("[MASK]") is not None else "<mask>"
    settings = {"mask_token": mask, "model_max_length": max_length, **_SETTINGS.get(family, {})}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    loaded = load_checkpoint(folder)
    loaded = replace(loaded, text={**loaded.text, **(text or {})}, model={**loaded.model, **(model or {})})
    pocket = folder / f"{task}.pocket"
    compress_checkpoint(loaded, pocket, "fp32")
    return TaskModel(built, in_transformers(folder).backend_tokenizer, folder, pocket)


@torch.no_grad()
def _plant(model: torch.nn.Module, tokenizer: Tokenizer, classes: Mapping[str, int]) -> None:
    """Every layer passes on what it gets, and the word table says which output a token has."""
    for name, parameter in model.named_parameters():
        parameter.fill_(1.0) if "norm.weight" in name.lower() else parameter.zero_()
    table = model.get_input_embeddings().weight
    table[:, 0] = 5.0
    for piece, output in classes.items():
        token = tokenizer.token_to_id(piece)
        assert token is not None, piece
        table[token] = 0.0
        table[token, output] = 5.0
    head = next(module for name, module in model.named_modules() if name in ("classifier", "qa_outputs"))
    head.weight[:, : head.out_features] = 3 * torch.eye(head.out_features)
