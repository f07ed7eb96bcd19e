"""Tiny random models with a head and a tokenizer, as folders and as fp32 pocket files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

import pocketformer
from helpers import torch_models

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (
    *("ada", "lives", "in", "london", "and", "wrote", "the", "first", "program", "who", "where", "is", "a", "of"),
    *("paris", "letter", "to", "mr", "babbage"),
)
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?!"


@dataclass
class TaskModel:
    torch: torch.nn.Module
    tokenizer: Tokenizer
    pocket: Path

    def load(self) -> pocketformer.Model:
        return pocketformer.load(self.pocket)

    @torch.no_grad()
    def logits(self, *texts: str) -> Any:
        """The output of torch for one text, or for a pair."""
        encoding = self.tokenizer.encode(*texts)
        return self.torch(input_ids=torch.tensor([encoding.ids]), token_type_ids=torch.tensor([encoding.type_ids]))


def word_pieces() -> Tokenizer:
    """A WordPiece tokenizer like BERT's: known words, and single letters for the others."""
    pieces = [*SPECIAL, *WORDS, *(c for c in LETTERS if c not in WORDS), *(f"##{letter}" for letter in LETTERS)]
    assert len(pieces) <= torch_models.VOCAB
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def make(task: str, folder: Path, max_length: int = 512, **config: Any) -> TaskModel:
    """A BERT with the head of ``task``; ``config`` changes its ``config.json``."""
    model = torch_models.build("bert", task, folder)
    tokenizer = word_pieces()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"mask_token": "[MASK]", "model_max_length": max_length}))
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    pocket = folder / f"{task}.pocket"
    pocketformer.compress(folder, pocket, weights="fp32")
    return TaskModel(model, tokenizer, pocket)
