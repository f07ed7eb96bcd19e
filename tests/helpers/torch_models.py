"""Small random models of every family, with weights that make mistakes visible, saved as Hugging Face folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

LENGTHS = (1, 2, 7, 63, 64, 65, 127, 128, 129, 511, 512)
VOCAB = 211
HEADS = {
    "embed": "Model",
    "classify": "ForSequenceClassification",
    "tag": "ForTokenClassification",
    "answer": "ForQuestionAnswering",
    "fill_mask": "ForMaskedLM",
}

# Odd sizes on purpose: head_dim 26 and ffn 100 are those of TinyBERT in small; eps is large enough to be seen.
_BERT = {
    "vocab_size": VOCAB,
    "hidden_size": 78,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 100,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-2,
}
_ROBERTA = {**_BERT, "max_position_embeddings": 514, "hidden_size": 64, "num_attention_heads": 4}
_DISTILBERT = {"vocab_size": VOCAB, "dim": 48, "n_heads": 3, "n_layers": 3, "hidden_dim": 90, "activation": "gelu"}
# Three layers: global, local, global; the window of 3 keys to each side lies within every length.
_MODERNBERT = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 100,
    "max_position_embeddings": 512,
    "local_attention": 6,
    "global_attn_every_n_layers": 2,
    "norm_eps": 1e-2,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "cls_token_id"), 0),
    **dict.fromkeys(("eos_token_id", "sep_token_id"), 1),
}
_ALBERT = {**_BERT, "embedding_size": 20, "num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2}
# A separator that no text has: what stands before it would be hidden from answers.
_BIG_BIRD = {**_BERT, "attention_type": "original_full", "use_bias": False, "hidden_act": "relu", "sep_token_id": 1}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", _BERT),
    "distilbert": ("DistilBert", _DISTILBERT),
    "roberta": ("Roberta", {**_ROBERTA, "hidden_act": "silu"}),
    "xlm-roberta": ("XLMRoberta", {**_ROBERTA, "type_vocab_size": 1}),
    "camembert": ("Camembert", {**_ROBERTA, "hidden_act": "relu"}),
    "mpnet": ("MPNet", {**_ROBERTA, "hidden_size": 60}),
    "albert": ("Albert", _ALBERT),
    "modernbert": ("ModernBert", _MODERNBERT),
    "big_bird": ("BigBird", _BIG_BIRD),
}


def make_adversarial(model: torch.nn.Module, seed: int) -> None:
    """Fills every parameter so that attention is far from uniform and no bias or norm is the identity.

    The library's own initialisation (small weights, zero biases, unit norms) leaves softmax near uniform, so that a
    wrong mask or scale passes. Queries and keys here give logits with a standard deviation of about 2.5, and the
    FFN's activations reach past the range where GELU and its tanh approximation differ most.
    """
    generator = torch.Generator().manual_seed(seed)
    query_key = ("query.weight", "key.weight", "q_lin.weight", "k_lin.weight", "attn.q.weight", "attn.k.weight")
    query_key += ("query_global.weight", "key_global.weight")
    ffn = ("intermediate.dense.weight", "lin1.weight", "ffn.weight", "lin2.weight", "ffn_output.weight", "Wi.weight")
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        norm = "norm" in name.lower()
        if name.endswith("bias"):
            value = 0.2 * noise
        elif norm:
            value = 1 + 0.3 * noise.clamp(-2, 2)
        elif "embeddings" in name or "relative_attention_bias" in name:
            value = noise
        else:
            gain = 1.8 if name.endswith(query_key) else 1.5 if name.endswith(ffn) else 0.7
            value = gain * noise / parameter.shape[-1] ** 0.5
            if name.endswith("Wqkv.weight"):
                value[: 2 * len(value) // 3] *= 1.8 / gain
        parameter.data.copy_(value)


@dataclass(frozen=True)
class Inputs:
    """Sequences end to end, as the engines take them."""

    ids: np.ndarray
    types: np.ndarray
    lengths: tuple[int, ...]

    @classmethod
    def random(cls, lengths: Sequence[int], types: int, seed: int = 7) -> Inputs:
        rng = np.random.default_rng(seed)
        total = sum(lengths)  # ids 0 … 4 are special: RoBERTa does not count its padding id
        return cls(rng.integers(5, VOCAB, total), rng.integers(0, max(types, 1), total), tuple(lengths))

    def split(self, values: np.ndarray) -> list[np.ndarray]:
        return np.split(values, np.cumsum(self.lengths)[:-1])


def build(family: str, task: str, folder: Path, seed: int = 0, **options: Any) -> torch.nn.Module:
    """A random model of ``family`` with the head of ``task``, saved to ``folder``."""
    prefix, sizes = FAMILIES[family]
    labels = options.pop("num_labels", 2 if task == "answer" else 5)
    config = getattr(transformers, f"{prefix}Config")(**{**sizes, **options}, num_labels=labels)
    config._attn_implementation = "eager"
    model = getattr(transformers, prefix + HEADS[task])(config).eval()
    make_adversarial(model, seed)
    model.save_pretrained(folder)
    return model


def task_output(out: Any, task: str) -> torch.Tensor:
    """What the graph of ``task`` gives for the one text that ``out`` of a model of transformers is about."""
    if task == "embed":
        return out.last_hidden_state[0].mean(0, keepdim=True)
    if task == "answer":
        return torch.stack([out.start_logits[0], out.end_logits[0]], 1)
    return out.logits if task == "classify" else out.logits[0]


@torch.no_grad()
def torch_outputs(model: torch.nn.Module, inputs: Inputs, task: str, rows: np.ndarray | None = None) -> np.ndarray:
    """What the graph of ``task`` should give: each sequence is run alone, so that no padding is involved."""
    results = []
    typed = getattr(model.config, "type_vocab_size", 0) > 0 and "MPNet" not in type(model).__name__
    for ids, types in zip(inputs.split(inputs.ids), inputs.split(inputs.types), strict=True):
        arguments = {"input_ids": torch.tensor(ids)[None]}
        if typed:
            arguments["token_type_ids"] = torch.tensor(types)[None]
        results.append(task_output(model(**arguments), task))
    joined = torch.cat(results).numpy()
    return joined if rows is None else joined[rows]


def write_modules(folder: Path, modes: dict[str, bool], *tail: str) -> None:
    """Turns ``folder`` into a sentence-transformers folder: pooling ``modes``, then the modules of ``tail``."""
    kinds = ["Transformer", "Pooling", *tail]
    modules = [
        {"idx": i, "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 1, **modes}))


def deviation(actual: np.ndarray, expected: np.ndarray) -> float:
    """max|Δ| in units of the tolerance 1e-4·max(1, max|expected|): parity is ≤ 1."""
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / (1e-4 * max(1.0, np.abs(expected).max())))
