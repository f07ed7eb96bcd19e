"""Writes a repository of :mod:`helpers.repositories` as a folder, and computes in torch what it should give."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch.nn import functional

from helpers.repository import Pooling, Repository
from helpers.torch_models import make_adversarial, write_modules

_TEXT = "the a house was sold by an old painter in berlin and paris is capital of france who what good bad film"
WORDS = _TEXT.split(" ")
SENTENCES = ("the old house was sold by a painter in berlin", "paris is the capital of france", "good film")
POSITIONS, DENSE = 70, 24


def rebuild(repository: Repository, folder: Path) -> torch.nn.Module:
    """The folder with random weights, and its model in torch; what it stores in half precision is rounded there too."""
    vocab = _write_tokenizer(repository, folder)
    kind = getattr(transformers, repository.saved_as or repository.architecture)
    config = kind.config_class(**_config(repository, vocab))
    config._attn_implementation = "eager"
    model = kind(config).eval()
    make_adversarial(model, 11)
    copy.deepcopy(model).to(repository.dtype).save_pretrained(folder)
    settings = {"architectures": [repository.architecture], **_config(repository, vocab)}
    written = {repository.renamed.get(key, key): value for key, value in settings.items()}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in written.items() if key}))
    if repository.legacy:
        _rename_as_old_releases(folder / "model.safetensors")
    if repository.pooling:
        _write_sentence_transformers(repository.pooling, folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    for parameter in model.parameters():  # not the buffers, which files do not hold
        parameter.data = parameter.data.to(repository.dtype).float()
    return model


def _config(repository: Repository, vocab: int) -> dict[str, Any]:
    sizes = {"vocab_size": vocab, "max_position_embeddings": POSITIONS}
    if repository.config["model_type"] == "t5":
        sizes = {"vocab_size": vocab, "d_model": 32, "d_kv": 16, "num_layers": 2, "num_heads": 2, "d_ff": 48}
    elif repository.config["model_type"] == "distilbert":
        sizes |= {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48}
    else:
        sizes |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    if repository.config["model_type"] == "albert":
        sizes["embedding_size"] = 16
    return {**repository.config, **sizes}


def _write_tokenizer(repository: Repository, folder: Path) -> int:
    """The tokenizer's files, those of the list that the library does not write included; returns its size."""
    kind, files = repository.config["model_type"], repository.files
    if "merges.txt" in files:
        letters = sorted({letter for word in WORDS for letter in word} | {"Ġ"})
        pieces = ["<s>", "<pad>", "</s>", "<unk>", *letters, "th", "<mask>"]
        tokenizer = transformers.RobertaTokenizer(vocab=_numbered(pieces), merges=[("t", "h")])
    elif kind == "t5":
        scored = [(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>")]
        scored += [(f"▁{word}", -1 - i / 10) for i, word in enumerate(WORDS)]
        pieces = [piece for piece, _ in scored]
        tokenizer = transformers.T5Tokenizer(vocab=[*scored, ("▁", -9.0)], extra_ids=3)
    elif kind == "modernbert":
        pieces = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", *sorted({letter for word in WORDS for letter in word})]
        tokenizer = _byte_level([*pieces, "Ġ", "th"])
        pieces = list(tokenizer.get_vocab())
    elif "vocab.txt" in files and kind == "mpnet":
        pieces = ["<s>", "<pad>", "</s>", "[UNK]", *WORDS, "<mask>"]
        tokenizer = transformers.MPNetTokenizer(vocab=_numbered(pieces))
    elif "vocab.txt" in files:
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
        tokenizer = transformers.BertTokenizer(vocab=_numbered(pieces))
    else:
        special, factory = {
            "albert": (["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"], transformers.AlbertTokenizer),
            "camembert": (
                ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>", "<mask>"],
                transformers.CamembertTokenizer,
            ),
        }.get(kind, (["<s>", "<pad>", "</s>", "<unk>", "<mask>"], transformers.XLMRobertaTokenizer))
        scored = [(piece, 0.0) for piece in special] + [(f"▁{word}", -1 - i / 10) for i, word in enumerate(WORDS)]
        pieces = [piece for piece, _ in scored]
        tokenizer = factory(vocab=[*scored, ("▁", -9.0)])
    tokenizer.save_pretrained(folder)
    contents = {
        "vocab.txt": "\n".join(pieces),
        "vocab.json": json.dumps(_numbered(pieces)),
        "merges.txt": "#version: 0.2\nt h\n",
        "added_tokens.json": "{}",
        "unigram.json": "{}",
        "special_tokens_map.json": json.dumps(dict(tokenizer.special_tokens_map)),
    }
    for name in files:
        if name in contents:
            (folder / name).write_text(contents[name], encoding="utf-8")
    assert set(files) <= {path.name for path in folder.iterdir()}
    return len(tokenizer)


def _byte_level(pieces: list[str]) -> transformers.PreTrainedTokenizerFast:
    """As ModernBERT's: pieces of bytes between [CLS] and [SEP], without a class of its own."""
    tokenizer = Tokenizer(models.BPE(_numbered(pieces), [("t", "h")], unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "cls", "sep", "pad", "mask")}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=8192, **special)


def _numbered(pieces: list[str]) -> dict[str, int]:
    return {piece: i for i, piece in enumerate(pieces)}


def _rename_as_old_releases(path: Path) -> None:
    tensors = load_file(path)
    for name in [name for name in tensors if "LayerNorm" in name and name.startswith(("bert.", "cls."))]:
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        tensors[old] = tensors.pop(name)
    base = "bert." if "bert.embeddings.word_embeddings.weight" in tensors else ""
    tensors[f"{base}embeddings.position_ids"] = torch.arange(POSITIONS)[None]
    save_file(tensors, path)


def _write_sentence_transformers(pooling: Pooling, folder: Path) -> None:
    modes = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens"}
    write_modules(folder, {f"pooling_mode_{mode}": name == pooling.mode for name, mode in modes.items()}, *pooling.tail)
    sentence = {"max_seq_length": pooling.max_seq_length, "do_lower_case": pooling.do_lower_case}
    (folder / "sentence_bert_config.json").write_text(json.dumps(sentence))
    versions = {"__version__": {"sentence_transformers": "2.0.0", "transformers": "4.6.1", "pytorch": "1.8.1"}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(versions))
    for place, module in enumerate(pooling.tail, start=2):
        home = folder / f"{place}_{module}"
        home.mkdir()
        if module == "Dense":
            settings = {"in_features": 32, "out_features": DENSE, "bias": True}
            activation = {"activation_function": "torch.nn.modules.activation.Tanh"}
            (home / "config.json").write_text(json.dumps({**settings, **activation}))
            generator = torch.Generator().manual_seed(5)
            weight, bias = torch.randn(DENSE, 32, generator=generator) / 4, torch.randn(DENSE, generator=generator)
            save_file({"linear.weight": weight, "linear.bias": bias}, home / "model.safetensors")


@torch.no_grad()
def expected_output(repository: Repository, model: torch.nn.Module, folder: Path, ids: list[int]) -> torch.Tensor:
    """What the graph gives for one text: an embedding, logits of the text, or of each of its tokens."""
    out = model(torch.tensor(ids)[None])
    if repository.task == "answer":
        return torch.stack([out.start_logits[0], out.end_logits[0]], 1)
    if repository.task == "fill_mask":
        return out.prediction_logits[0] if hasattr(out, "prediction_logits") else out.logits[0]
    if repository.pooling is None:
        return out.logits if repository.task == "classify" else out.logits[0]
    hidden = out.last_hidden_state[0]
    x = {"mean": hidden.mean(0), "cls": hidden[0]}[repository.pooling.mode]
    for place, module in enumerate(repository.pooling.tail, start=2):
        if module == "Dense":
            dense = load_file(folder / f"{place}_Dense" / "model.safetensors")
            x = torch.tanh(functional.linear(x, dense["linear.weight"], dense["linear.bias"]))
        else:
            x = functional.normalize(x, dim=0)
    return x[None]
