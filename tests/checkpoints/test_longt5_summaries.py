"""LongT5's encoder with transient-global attention equals transformers at lengths around its blocks and its radius."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from helpers.encoder_checks import assert_breaks_parity, assert_int8_is_near
from helpers.engines import ENGINES, native
from helpers.kernels import aligned
from helpers.torch_models import VOCAB, Inputs, deviation, make_adversarial, torch_outputs
from pocketformer._core import Program
from pocketformer.graph import Graph
from pocketformer.packing import pack_graph
from pocketformer.sources.huggingface import load_checkpoint

RADIUS, BLOCK = 5, 4
# No block, one, one and what is behind it, several; the radius and its own blocks; beyond all buckets of both tables.
LENGTHS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 19, 65, 300, 700)
SIZES = {"d_model": 48, "d_kv": 16, "num_heads": 2, "num_layers": 2, "d_ff": 70, "layer_norm_epsilon": 1e-2}


def build(folder: Path, seed: int = 1, **sizes: int | str) -> torch.nn.Module:
    config = transformers.LongT5Config(
        vocab_size=VOCAB,
        feed_forward_proj="gated-gelu",
        encoder_attention_type="transient-global",
        **{"local_radius": RADIUS, "global_block_size": BLOCK, **SIZES, **sizes},
    )
    model = transformers.LongT5EncoderModel(config).eval()
    make_adversarial(model, seed)
    model.save_pretrained(folder)
    return model


def test_parity(tmp_path: Path) -> None:
    model = build(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    assert (checkpoint.model["family"], checkpoint.model["task"]) == ("longt5", "embed")
    inputs = Inputs.random(LENGTHS, 0)
    expected = torch_outputs(model, inputs, "embed")
    for engine in ENGINES.values():
        assert deviation(engine(checkpoint.graph, inputs.ids, inputs.lengths), expected) <= 1


@pytest.mark.slow
def test_parity_at_the_sizes_of_the_published_models(tmp_path: Path) -> None:
    model = build(tmp_path, local_radius=127, global_block_size=16, num_layers=1)
    graph = load_checkpoint(tmp_path).graph
    for lengths in ((15, 16, 17, 127, 128, 129, 255, 256, 257, 511, 512, 513), (4096,)):
        inputs = Inputs.random(lengths, 0)
        assert deviation(native(graph, inputs.ids, inputs.lengths), torch_outputs(model, inputs, "embed")) <= 1


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("domains", {"prepended": 1}, "'summarized' is 4; only a ragged domain made from another has such rows"),
        ("attention", {"causal": True}, "'state' is 'state0' over 'keys', which summarizes blocks: beside 'causal'"),
        ("attention", {"bias": None}, "'summary_bias' is 'encoder.global_relative_bias' without a 'bias'"),
        ("attention", {"globals": 1}, "'globals' is given, but 'embed0' is of another domain|'globals' is given"),
        ("summarize", {"domain": "tokens"}, "names \"tokens\", which is not made from|'domain' names"),
    ],
)
def test_refused_by_name(tmp_path: Path, kind: str, change: dict[str, object], words: str) -> None:
    build(tmp_path, num_layers=1)
    graph = load_checkpoint(tmp_path).graph
    entries = graph.domains[1:] if kind == "domains" else [op for op in graph.ops if op["op"] == kind]
    entries[0].update(change)
    for field in [field for field, value in change.items() if value is None]:
        del entries[0][field]
    packed = pack_graph(graph)
    with pytest.raises(ValueError, match=words):
        Program(packed.description(), {name: aligned(array) for name, array in packed.params.items()})


def _attention(field: str, change: Callable[[int], int]) -> Callable[[Graph], None]:
    def mutate(graph: Graph) -> None:
        for op in graph.ops:
            if op["op"] == "attention":
                op[field] = change(op[field])

    return mutate


def _table(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Graph], None]:
    def mutate(graph: Graph) -> None:
        graph.params[name] = np.ascontiguousarray(change(graph.params[name]))

    return mutate


def _larger_blocks(graph: Graph) -> None:
    keys = next(domain for domain in graph.domains if domain["name"] == "keys")
    rows = graph.max_rows("keys")
    keys["summarized"] += 1
    cut = rows - graph.max_rows("keys")
    for name in ("encoder.relative_bias", "encoder.global_relative_bias"):
        graph.params[name] = np.ascontiguousarray(graph.params[name][:, cut:-cut])


def _without_norm(graph: Graph) -> None:
    for name in graph.params:
        if name.endswith("summary_norm.weight"):
            graph.params[name] = np.ones_like(graph.params[name])


MUTATIONS: dict[str, Callable[[Graph], None]] = {
    "one more key before": _attention("left", lambda n: n + 1),
    "one fewer after": _attention("right", lambda n: n - 1),
    "bias of the tokens mirrored": _table("encoder.relative_bias", lambda bias: bias[:, ::-1]),
    "bias of the blocks mirrored": _table("encoder.global_relative_bias", lambda bias: bias[:, ::-1]),
    "bias of the blocks shifted": _table("encoder.global_relative_bias", lambda bias: np.roll(bias, 1, axis=1)),
    "blocks of one row more": _larger_blocks,
    "sums that are not scaled": _without_norm,
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutations_break_parity(tmp_path: Path, mutation: str) -> None:
    assert_breaks_parity(tmp_path, build(tmp_path), MUTATIONS[mutation])


def test_int8_is_near_fp32(tmp_path: Path) -> None:
    assert_int8_is_near(tmp_path, build(tmp_path, d_model=128, d_kv=32, num_heads=4, d_ff=192), (1, 40, 203))
