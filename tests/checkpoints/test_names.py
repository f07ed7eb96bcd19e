"""Checkpoints that training tools wrapped: the same graph as the plain one, or a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from helpers.torch_models import build
from pocketformer.errors import CheckpointError
from pocketformer.sources.huggingface import Checkpoint, load_checkpoint

Rename = Callable[[str], str]


def rename(folder: Path, new: Rename) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({new(name): tensor for name, tensor in tensors.items()}, folder / "model.safetensors")


def assert_same(actual: Checkpoint, expected: Checkpoint) -> None:
    assert actual.graph.ops == expected.graph.ops
    assert actual.graph.params.keys() == expected.graph.params.keys()
    for name, array in expected.graph.params.items():
        assert np.array_equal(actual.graph.params[name], array), name


@pytest.mark.parametrize(
    "prefix",
    ["model.", "module.", "0.auto_model.", "_orig_mod.", "auto_model.", "_orig_mod.module.", "module.model.backbone."],
)
@pytest.mark.parametrize(
    ("family", "task"), [("bert", "embed"), ("roberta", "classify"), ("distilbert", "tag"), ("mpnet", "fill_mask")]
)
def test_every_tensor_is_prefixed(tmp_path: Path, family: str, task: str, prefix: str) -> None:
    build(family, task, tmp_path)
    expected = load_checkpoint(tmp_path)
    rename(tmp_path, lambda name: prefix + name)
    assert_same(load_checkpoint(tmp_path), expected)


@pytest.mark.parametrize(("family", "base"), [("bert", "bert."), ("xlm-roberta", "roberta."), ("albert", "albert.")])
@pytest.mark.parametrize("prefix", ["", "model.", "module."])
def test_an_encoder_alone_may_carry_its_base_name(tmp_path: Path, family: str, base: str, prefix: str) -> None:
    build(family, "embed", tmp_path)
    expected = load_checkpoint(tmp_path)
    rename(tmp_path, lambda name: prefix + base + name)
    assert_same(load_checkpoint(tmp_path), expected)


WRAPS: dict[str, Rename] = {
    "activation checkpointing": lambda name: name.replace(".attention.", "._checkpoint_wrapped_module.attention."),
    "FSDP": lambda name: f"_fsdp_wrapped_module.{name}".replace(".layer.", ".layer._fsdp_wrapped_module."),
    "compiled encoder": lambda name: name.replace("bert.", "bert._orig_mod.", 1),
}


@pytest.mark.parametrize("wrap", WRAPS)
def test_wrappers_inside_of_names(tmp_path: Path, wrap: str) -> None:
    build("bert", "classify", tmp_path)
    expected = load_checkpoint(tmp_path)
    rename(tmp_path, WRAPS[wrap])
    assert_same(load_checkpoint(tmp_path), expected)


def test_two_towers_are_told_apart_by_name_or_refused(tmp_path: Path) -> None:
    build("bert", "embed", tmp_path)
    expected = load_checkpoint(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    other = {f"document_encoder.{name}": np.zeros_like(tensor) for name, tensor in tensors.items()}
    save_file({**tensors, **other}, tmp_path / "model.safetensors")
    assert_same(load_checkpoint(tmp_path), expected)  # transformers reads the plain names too
    towers = {f"query_encoder.{name}": tensor for name, tensor in tensors.items()}
    save_file({**towers, **other}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"several encoders.*'document_encoder\.'.*'query_encoder\.'"):
        load_checkpoint(tmp_path)


def test_a_missing_tensor_is_named_as_the_file_would(tmp_path: Path) -> None:
    build("bert", "embed", tmp_path)
    rename(tmp_path, lambda name: f"model.{name}".replace("layer.1.", "layer.7."))
    with pytest.raises(CheckpointError, match=r"'model\.encoder\.layer\.1\.attention\.self\.query\.weight'"):
        load_checkpoint(tmp_path)


def test_a_head_beside_the_wrapper_is_not_taken_for_its_own(tmp_path: Path) -> None:
    """A class of its own around an encoder computes its own way between the two."""
    build("bert", "classify", tmp_path)
    rename(tmp_path, lambda name: f"encoder.{name}" if name.startswith("bert.") else name)
    with pytest.raises(CheckpointError, match=r"'encoder\.classifier\.weight' is missing"):
        load_checkpoint(tmp_path)
