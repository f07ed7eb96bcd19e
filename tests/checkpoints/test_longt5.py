"""LongT5's encoder with local attention equals transformers at lengths around its radius and its blocks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from helpers.encoder_checks import assert_breaks_parity, assert_int8_is_near
from helpers.engines import ENGINES, native
from helpers.torch_models import VOCAB, Inputs, deviation, make_adversarial, torch_outputs
from pocketformer.errors import UnsupportedModelError
from pocketformer.graph import Graph
from pocketformer.sources.huggingface import load_checkpoint

RADIUS = 5
# The radius, its blocks of radius + 1, two and three of them, and each one more and less; beyond all buckets.
LENGTHS = (1, 2, 4, 5, 6, 7, 11, 12, 13, 18, 19, 65, 300)
SIZES = {"d_model": 48, "d_kv": 16, "num_heads": 2, "num_layers": 3, "d_ff": 70, "layer_norm_epsilon": 1e-2}


def build(folder: Path, kind: str = "gated-gelu", **sizes: int | str) -> torch.nn.Module:
    config = transformers.LongT5Config(
        vocab_size=VOCAB, feed_forward_proj=kind, **{"local_radius": RADIUS, **SIZES, **sizes}
    )
    model = transformers.LongT5EncoderModel(config).eval()
    make_adversarial(model, 1)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", ["relu", "gated-gelu"])
def test_parity(tmp_path: Path, kind: str) -> None:
    model = build(tmp_path, kind)
    checkpoint = load_checkpoint(tmp_path)
    assert (checkpoint.model["family"], checkpoint.model["task"]) == ("longt5", "embed")
    assert checkpoint.graph.max_length == 4096
    inputs = Inputs.random(LENGTHS, 0)
    expected = torch_outputs(model, inputs, "embed")
    for engine in ENGINES.values():
        assert deviation(engine(checkpoint.graph, inputs.ids, inputs.lengths), expected) <= 1


def test_parity_at_the_radius_of_the_published_models(tmp_path: Path) -> None:
    model = build(tmp_path, local_radius=127, num_layers=1)
    inputs = Inputs.random((127, 128, 129, 255, 256, 257, 511, 512, 513), 0)
    graph = load_checkpoint(tmp_path).graph
    assert deviation(native(graph, inputs.ids, inputs.lengths), torch_outputs(model, inputs, "embed")) <= 1


def _window(field: str, by: int) -> Callable[[Graph], None]:
    def mutate(graph: Graph) -> None:
        for op in graph.ops:
            if op["op"] == "attention":
                op[field] += by

    return mutate


def _mirror(graph: Graph) -> None:
    graph.params["encoder.relative_bias"] = np.ascontiguousarray(graph.params["encoder.relative_bias"][:, ::-1])


MUTATIONS: dict[str, Callable[[Graph], None]] = {
    "one more key before": _window("left", 1),
    "one fewer before": _window("left", -1),
    "one more after": _window("right", 1),
    "one fewer after": _window("right", -1),
    "bias mirrored": _mirror,
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutations_break_parity(tmp_path: Path, mutation: str) -> None:
    assert_breaks_parity(tmp_path, build(tmp_path), MUTATIONS[mutation])


def test_int8_is_near_fp32(tmp_path: Path) -> None:
    assert_int8_is_near(tmp_path, build(tmp_path, d_model=128, d_kv=32, num_heads=4, d_ff=192), (1, 40, 200))


def test_another_kind_of_attention_is_refused_by_name(tmp_path: Path) -> None:
    build(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "encoder_attention_type": "global"}))
    with pytest.raises(
        UnsupportedModelError, match=r"'encoder_attention_type' is 'global'; supported: local, transient-global"
    ):
        load_checkpoint(tmp_path)
