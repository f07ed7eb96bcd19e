"""Decoders of every family equal transformers in fp32, whole and token by token, and small mistakes are noticed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from helpers import programs
from helpers.checkpoints import refused
from helpers.engines import feeds, reference
from helpers.torch_decoders import CASES, LONGROPE, VOCAB, build, change_config, torch_logits
from helpers.torch_models import deviation
from pocketformer import _core
from pocketformer.errors import CheckpointError, UnsupportedModelError
from pocketformer.graph import Array, Graph
from pocketformer.sources.huggingface import Checkpoint, load_checkpoint

LENGTH = 90  # beyond every window, and the context that scaled rotations were made for
IDS = np.random.default_rng(3).integers(3, VOCAB, LENGTH)
Case = tuple[Path, Checkpoint, Array]


@pytest.fixture(scope="session")
def make_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """A folder, what it is imported as, and torch's logits for IDS; made once."""
    cases: dict[str, Case] = {}

    def make(name: str) -> Case:
        if name not in cases:
            folder = tmp_path_factory.mktemp(name)
            logits = torch_logits(build(name, folder), IDS)
            cases[name] = folder, load_checkpoint(folder), logits
        return cases[name]

    return make


def native(graph: Graph) -> Array:
    return _core.Session(programs.program(graph)).run(feeds(IDS, [LENGTH], None, np.arange(LENGTH)))


@pytest.mark.parametrize("name", CASES)
def test_parity(make_case: Callable[[str], Case], name: str) -> None:
    _, checkpoint, expected = make_case(name)
    assert checkpoint.model["family"] == name.split("-")[0]
    assert checkpoint.model["task"] == "generate"
    assert checkpoint.text["end_token_ids"] == [2]
    assert deviation(reference(checkpoint.graph, IDS, [LENGTH], rows=np.arange(LENGTH)), expected) <= 1
    assert deviation(native(checkpoint.graph), expected) <= 1


@pytest.mark.parametrize("name", CASES)
def test_token_by_token_is_the_same(make_case: Callable[[str], Case], name: str) -> None:
    program = programs.program(make_case(name)[1].graph)
    session, cache = _core.Session(program), _core.StateCache(program, LENGTH, LENGTH)
    whole = session.run(feeds(IDS, [LENGTH], None, np.arange(LENGTH)))
    rows = [session.run(feeds(IDS[i : i + 1], [1], None, np.zeros(1)), caches=[cache]) for i in range(LENGTH)]
    assert np.concatenate(rows).tobytes() == whole.tobytes()


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_attention_is_far_from_uniform(name: str, tmp_path: Path) -> None:
    model = build(name, tmp_path)
    with torch.no_grad():
        attentions = model(torch.tensor(IDS)[None], output_attentions=True).attentions
    spread = [
        float(torch.stack([row[row > 0].log().std() for row in layer[0, :, 8:].flatten(0, 1)]).mean())
        for layer in attentions
    ]
    assert 1 < np.mean(spread) < 4


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"rope_parameters": {"rope_theta": 1020.0, "factor": 8.0, "rope_type": "llama3"}}),
        ("llama", {"rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"}}),
        ("llama", {"rms_norm_eps": 2e-2}),
        ("llama-biased", {"rope_parameters": {"rope_theta": 1000.0, "rope_type": "linear", "factor": 4.2}}),
        ("llama-yarn", {"rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"}}),
        ("mistral", {"sliding_window": 8}),
        ("mistral", {"sliding_window": 10}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {"sliding_window": 8}),
        ("qwen2", {"layer_types": ["sliding_attention", "full_attention", "full_attention"]}),
        ("gemma3_text", {"sliding_window": 10}),
        ("gemma3_text", {"sliding_window": 12}),
        ("gemma3_text", {"query_pre_attn_scalar": 16}),
        ("gpt2-by-depth", {"scale_attn_by_inverse_layer_idx": False}),
        ("gpt2", {"activation_function": "relu"}),
        ("phi3", {"sliding_window": 8}),
        ("phi3", {"sliding_window": 10}),
        ("phi3-partial", {"rope_parameters": {"partial_rotary_factor": 1.0}}),
        ("gemma2", {"attn_logit_softcapping": 3.1}),
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma2", {"final_logit_softcapping": 2.1}),
        ("gemma2", {"sliding_window": 12}),
        ("gemma3_text-capped", {"final_logit_softcapping": None}),
    ],
)
def test_a_wrong_setting_is_noticed(
    make_case: Callable[[str], Case], name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    folder, _, expected = make_case(name)
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    old = config.get("rope_parameters", {})
    if "rope_parameters" in changes:
        changes = {"rope_parameters": {**old, **changes["rope_parameters"]}}
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    assert deviation(native(load_checkpoint(tmp_path).graph), expected) > 10


@pytest.mark.parametrize(
    ("name", "parameter", "shift"),
    [
        ("llama-biased", "layers.1.qkv.bias", 0.05),
        ("qwen2", "layers.0.qkv.bias", 0.05),
        ("qwen3", "layers.2.q_norm.weight", 0.05),
        ("gemma3_text", "layers.1.k_norm.weight", 0.05),
        ("gemma3_text", "layers.0.attention_out_norm.weight", 0.05),
        ("gemma3_text", "norm.weight", 0.05),
        ("gpt2", "layers.1.qkv.bias", 0.05),
        ("gpt2", "layers.0.ffn_norm.bias", 0.05),
        ("gpt2", "norm.bias", 0.05),
        ("gemma2", "layers.0.attention_out_norm.weight", 0.05),
    ],
)
def test_a_wrong_parameter_is_noticed(
    make_case: Callable[[str], Case], name: str, parameter: str, shift: float
) -> None:
    graph, expected = make_case(name)[1].graph, make_case(name)[2]
    kept = graph.params[parameter]
    graph.params[parameter] = kept + np.float32(shift)
    try:
        assert deviation(native(graph), expected) > 10
    finally:
        graph.params[parameter] = kept


def test_older_configs_say_the_same(make_case: Callable[[str], Case], tmp_path: Path) -> None:
    """transformers 4 wrote θ and scaling apart, and counted Gemma's layers."""
    for name, old in {
        "llama": {"rope_theta": 1000.0, "rope_scaling": {**_parameters(make_case("llama")[0]), "rope_type": "llama3"}},
        "llama-biased": {"rope_theta": 1000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
        "mistral": {"rope_theta": 1000.0, "rope_scaling": None},
        "gemma3_text": {
            "rope_theta": 5000.0,
            "rope_local_base_freq": 100.0,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        },
    }.items():
        folder, new, _ = make_case(name)
        config = json.loads((folder / "config.json").read_text())
        config.pop("rope_parameters")
        target = tmp_path / name
        target.mkdir()
        (target / "model.safetensors").symlink_to(folder / "model.safetensors")
        (target / "config.json").write_text(json.dumps({**config, **old}))
        graph = load_checkpoint(target).graph
        assert graph.ops == new.graph.ops
        for key in new.graph.params:
            if "rope" in key:
                assert np.array_equal(graph.params[key], new.graph.params[key])


def _parameters(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())["rope_parameters"]
    return {key: value for key, value in found.items() if key != "rope_theta"}


@pytest.mark.parametrize(
    ("name", "values", "error", "words"),
    [
        ("llama", {"rope_parameters": {"rope_type": "longrope"}}, CheckpointError, ("short_factor", "4 numbers")),
        ("llama", {"rope_parameters": {"rope_type": "proportional"}}, UnsupportedModelError, ("proportional", "yarn")),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, CheckpointError, ("factor", "0.0")),
        ("llama", {"partial_rotary_factor": 0.5}, UnsupportedModelError, ("partial_rotary_factor",)),
        (
            "llama",
            {"architectures": ["LlamaForQuestionAnswering"]},
            UnsupportedModelError,
            ("LlamaForQuestionAnswering",),
        ),
        ("llama", {"eos_token_id": VOCAB}, CheckpointError, ("eos_token_id", str(VOCAB))),
        ("mistral", {"sliding_window": 0}, CheckpointError, ("sliding_window",)),
        ("qwen2", {"layer_types": ["full_attention"]}, CheckpointError, ("layer_types", "3 layers")),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, UnsupportedModelError, ("attn_logit_softcapping", "50")),
        ("gemma2", {"final_logit_softcapping": 0}, CheckpointError, ("final_logit_softcapping", "0")),
        ("gemma2", {"use_bidirectional_attention": True}, UnsupportedModelError, ("use_bidirectional_attention",)),
        ("gpt2", {"add_cross_attention": True}, UnsupportedModelError, ("add_cross_attention",)),
        ("gpt2", {"n_head": 7}, CheckpointError, ("48", "7 heads")),
        (
            "phi3",
            {"rope_parameters": {"partial_rotary_factor": 0.1}},
            CheckpointError,
            ("partial_rotary_factor", "1 ch"),
        ),
        ("gemma3_text", {"use_bidirectional_attention": True}, UnsupportedModelError, ("use_bidirectional_attention",)),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(
    make_case: Callable[[str], Case],
    name: str,
    values: dict[str, Any],
    error: type[Exception],
    words: tuple[str, ...],
    tmp_path: Path,
) -> None:
    folder = make_case(name)[0]
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    change_config(tmp_path, **values)
    refused(tmp_path, error, *words)


def test_texts_end_where_longrope_turns_otherwise(tmp_path: Path) -> None:
    """64 tokens, those of training, equal transformers; with one more all of its tokens turn by the long factors."""
    model = build("phi3", tmp_path, **LONGROPE)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.graph.max_length == checkpoint.text["max_length"] == 64
    rows = np.arange(64)
    expected = torch_logits(model, IDS[:64])
    assert deviation(reference(checkpoint.graph, IDS[:64], [64], rows=rows), expected) <= 1
    session = _core.Session(programs.program(checkpoint.graph))
    assert deviation(session.run(feeds(IDS[:64], [64], None, rows)), expected) <= 1
    assert deviation(torch_logits(model, IDS[:65])[:64], expected) > 10
    checkpoint.graph.params["rope"] = checkpoint.graph.params["rope"] * np.float32(1.01)
    assert deviation(reference(checkpoint.graph, IDS[:64], [64], rows=rows), expected) > 10


def test_adapters_of_gpt2_are_refused(tmp_path: Path) -> None:
    build("gpt2", tmp_path)
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 1, "target_modules": ["c_attn"]})
    )
    down, up = np.zeros((1, 48), np.float32), np.zeros((144, 1), np.float32)
    part = "base_model.model.transformer.h.0.attn.c_attn.lora_"
    save_file({f"{part}A.weight": down, f"{part}B.weight": up}, tmp_path / "adapter_model.safetensors")
    refused(tmp_path, UnsupportedModelError, "merge_and_unload")


def test_an_untied_head_must_be_there(tmp_path: Path) -> None:
    build("qwen3", tmp_path)
    change_config(tmp_path, tie_word_embeddings=False)
    refused(tmp_path, CheckpointError, "lm_head.weight", "tie_word_embeddings")
