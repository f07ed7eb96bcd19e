"""T5's encoder, plain and gated, equals transformers; what it does not share with BERT shows when it is changed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from helpers.engines import ENGINES, native, native_packed
from helpers.kernels import aligned
from helpers.torch_models import VOCAB, Inputs, deviation, make_adversarial, torch_outputs, write_modules
from pocketformer.compression import compress_graph
from pocketformer.errors import UnsupportedModelError
from pocketformer.graph import Graph
from pocketformer.sources.huggingface import load_checkpoint

LENGTHS = (1, 7, 65, 129, 300)  # beyond the distance at which buckets end
SIZES = {"d_model": 48, "d_kv": 16, "num_heads": 2, "num_layers": 2, "d_ff": 70, "layer_norm_epsilon": 1e-2}
KINDS = ("relu", "gated-gelu", "gated-silu")


def build(folder: Path, kind: str, seed: int = 1, **sizes: int) -> torch.nn.Module:
    config = transformers.T5Config(vocab_size=VOCAB, feed_forward_proj=kind, **{**SIZES, **sizes})
    config._attn_implementation = "eager"
    model = transformers.T5EncoderModel(config).eval()
    make_adversarial(model, seed)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_parity(tmp_path: Path, kind: str) -> None:
    model = build(tmp_path, kind)
    checkpoint = load_checkpoint(tmp_path)
    assert (checkpoint.model["family"], checkpoint.model["task"]) == ("t5", "embed")
    inputs = Inputs.random(LENGTHS, 0)
    expected = torch_outputs(model, inputs, "embed")
    for engine in ENGINES.values():
        assert deviation(engine(checkpoint.graph, inputs.ids, inputs.lengths), expected) <= 1


def test_the_encoder_of_a_whole_model(tmp_path: Path) -> None:
    """A file that holds a decoder too, pooled and projected as sentence-t5 is."""
    config = transformers.T5Config(vocab_size=VOCAB, **SIZES)
    whole = transformers.T5Model(config).eval()
    make_adversarial(whole, 3)
    whole.save_pretrained(tmp_path)
    write_modules(tmp_path, {"pooling_mode_mean_tokens": True}, "Normalize")
    inputs = Inputs.random((9, 30), 0)
    expected = torch_outputs(whole.encoder, inputs, "embed")
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert deviation(native(load_checkpoint(tmp_path).graph, inputs.ids, inputs.lengths), expected) <= 1


def _mirror(graph: Graph) -> None:
    graph.params["encoder.relative_bias"] = np.ascontiguousarray(graph.params["encoder.relative_bias"][:, ::-1])


def _edit(op: str, field: str, value: object) -> Callable[[Graph], None]:
    def mutate(graph: Graph) -> None:
        for entry in graph.ops:
            if entry["op"] == op and field in entry:
                entry[field] = value

    return mutate


MUTATIONS: dict[str, Callable[[Graph], None]] = {
    "bias mirrored": _mirror,
    "scaled products": _edit("attention", "scale", 0.25),
    "means subtracted": _edit("norm", "kind", "layer"),
    "erf gelu": _edit("linear", "activation", "gelu"),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutations_break_parity(tmp_path: Path, mutation: str) -> None:
    model = build(tmp_path, "gated-gelu")
    graph = copy.deepcopy(load_checkpoint(tmp_path).graph)
    MUTATIONS[mutation](graph)
    inputs = Inputs.random((7, 65), 0)
    expected = torch_outputs(model, inputs, "embed")
    assert deviation(native(graph, inputs.ids, inputs.lengths), expected) > 1


def test_int8_is_near_fp32(tmp_path: Path) -> None:
    model = build(tmp_path, "gated-gelu", d_model=128, d_kv=32, num_heads=4, d_ff=192)
    inputs = Inputs.random((1, 40, 200), 0)
    packed, _ = compress_graph(load_checkpoint(tmp_path).graph)
    packed.params = {name: aligned(array) for name, array in packed.params.items()}
    actual, expected = native_packed(packed, inputs.ids, inputs.lengths), torch_outputs(model, inputs, "embed")
    cosine = torch.nn.functional.cosine_similarity(torch.tensor(actual), torch.tensor(expected))
    assert float(cosine.min()) > 0.999


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"feed_forward_proj": "wide-gated-gelu"}, "'feed_forward_proj'"),
        ({"relative_attention_num_buckets": 64}, "'relative_attention_num_buckets' is 64"),
        ({"relative_attention_max_distance": 256}, "'relative_attention_max_distance' is 256"),
        ({"architectures": ["T5ForConditionalGeneration"]}, "'T5ForConditionalGeneration' is not supported"),
        ({"architectures": ["T5EncoderForMaskedLM"]}, "type 't5' are not supported with a head for masked words"),
    ],
)
def test_refused_by_name(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    build(tmp_path, "relu")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UnsupportedModelError, match=words):
        load_checkpoint(tmp_path)
