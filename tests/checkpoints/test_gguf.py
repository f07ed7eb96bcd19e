"""GGUF files give the tensors and the config of the Hugging Face models that they were made of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

import pocketformer
from helpers.gguf_files import convert, plain, write_gguf
from helpers.torch_decoders import fill
from pocketformer import cli
from pocketformer.compression import compress
from pocketformer.errors import CheckpointError, UnsupportedModelError
from pocketformer.pocketfile import read_pocket
from pocketformer.sources.gguf import GgufSource
from pocketformer.sources.huggingface import load_checkpoint

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 200,
    "rms_norm_eps": 1e-5,
    "head_dim": 16,
}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
THETA = {"rope_theta": 5e5, "rope_type": "default"}
GEMMA_ROPE = {
    "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
    "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
}
PHI = {**{key: value for key, value in SIZES.items() if key != "head_dim"}, **TOKENS}
LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.25, 1.5, 2.0, 3.0, 4.5], "rope_theta": 1e4}
LONG |= {"long_factor": [1.0, 2.5, 4.0, 8.0, 16.0, 20.0], "partial_rotary_factor": 0.75}
YARN = {"rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 50}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**SIZES, "rope_parameters": THETA}),
    "llama tied": ("Llama", {**SIZES, "rope_parameters": THETA, "tie_word_embeddings": True}),
    "llama biases": ("Llama", {**SIZES, "rope_parameters": THETA, "attention_bias": True, "mlp_bias": True}),
    "qwen2": ("Qwen2", {key: value for key, value in {**SIZES, "rope_parameters": THETA}.items() if key != "head_dim"}),
    "qwen3": ("Qwen3", {**SIZES, "head_dim": 32, "rope_parameters": YARN, "tie_word_embeddings": True}),
    "gemma2": (
        "Gemma2",
        {
            **{**SIZES, "num_hidden_layers": 3, "query_pre_attn_scalar": 16, "rope_parameters": {**THETA}},
            **{"sliding_window": 9, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.5},
        },
    ),
    "phi3": ("Phi3", {**PHI, "sliding_window": 9, "rope_parameters": {**THETA, "partial_rotary_factor": 1.0}}),
    "phi3 long": (
        "Phi3",
        {**PHI, "original_max_position_embeddings": 50, "rope_parameters": LONG, "tie_word_embeddings": True},
    ),
    "gpt2": (
        "GPT2",
        {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 200, "n_inner": 96, **TOKENS},
    ),
    "gemma3": (
        "Gemma3",
        {
            **{**SIZES, "num_hidden_layers": 7, "hidden_size": 32, "head_dim": 32, "query_pre_attn_scalar": 32},
            **{"sliding_window": 9, "rope_parameters": GEMMA_ROPE},
        },
    ),
}


def build(kind: str) -> torch.nn.Module:
    classes, options = MODELS[kind]
    suffix = "TextConfig" if classes == "Gemma3" else "Config"
    config = getattr(transformers, classes + suffix)(**options)
    model = getattr(transformers, classes + ("LMHeadModel" if classes == "GPT2" else "ForCausalLM"))(config).eval()
    fill(model, 3)
    return model


@pytest.mark.parametrize("kind", MODELS)
def test_tensors_and_config_are_those_of_the_model(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    source = GgufSource.open(convert(model, tmp_path / "model.gguf"))
    tied = model.config.tie_word_embeddings
    assert ("lm_head.weight" in source) == (not tied)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue
        assert name in source
        expected = tensor.numpy()
        if kind == "gpt2" and tensor.ndim == 2 and ".h." in name:
            expected = expected.T
        assert source.shape(name) == expected.shape
        if tensor.ndim == 1:
            tolerance = 2e-7 if "gemma" in kind and "norm" in name else 0  # 1 was added and taken away again
            np.testing.assert_allclose(source.vector(name, len(tensor)), expected, rtol=0, atol=tolerance)
        else:
            weight = source.weight(name, *expected.shape)
            np.testing.assert_array_equal(weight, expected)
            np.testing.assert_array_equal(weight[5:11], expected[5:11])
    known = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    assert {key: known.get(key, value) for key, value in source.config.values.items()} == source.config.values
    assert source.config.values["model_type"] == model.config.model_type


def test_a_file_is_what_transformers_reads(tmp_path: Path) -> None:
    """Names, order of rows and norms as the loader of transformers undoes them."""
    for kind in ("llama", "gemma3"):
        model = build(kind)
        path = convert(model, tmp_path / f"{kind}.gguf", general__name=kind)
        source = GgufSource.open(path)
        theirs = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
        assert len(theirs) == len(source.header.tensors)
        for name, tensor in theirs.items():
            read = source.vector if tensor.ndim == 1 else source.weight
            np.testing.assert_array_equal(np.asarray(read(name, *tensor.shape)), tensor.numpy())


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F16", "BF16"])
def test_quantized_rows_are_reordered_too(kind: str, tmp_path: Path) -> None:
    number = GGMLQuantizationType[kind]
    model = build("llama")
    source = GgufSource.open(convert(model, tmp_path / "model.gguf", number))
    for name in ("model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.k_proj.weight"):
        plain_values = model.state_dict()[name].numpy()
        expected = gguf.quants.dequantize(gguf.quants.quantize(plain_values, number), number)
        np.testing.assert_array_equal(source.weight(name, *plain_values.shape), expected)


def test_llama_3_rope_comes_back_from_its_divisors(tmp_path: Path) -> None:
    parameters = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0}
    parameters |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = transformers.LlamaConfig(**{**SIZES, "head_dim": 64, "rope_parameters": parameters})
    scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    divisors = 5e5 ** (-np.arange(0, 64, 2) / 64) / scaled.numpy()
    model = transformers.LlamaForCausalLM(config)
    base = GgufSource.open(convert(model, tmp_path / "base.gguf")).header

    def with_divisors(values: np.ndarray) -> GgufSource:
        tensors = {"rope_freqs.weight": plain(values)}
        for name, info in base.tensors.items():
            raw = base.content[info.begin : info.end].view(np.float32).reshape(info.shape)
            tensors[name] = (raw, GGMLQuantizationType.F32)
        return GgufSource.open(
            write_gguf(tmp_path / "llama3.gguf", dict(list(base.metadata.items())[1:]), tensors, "llama")
        )

    assert with_divisors(divisors).config.values["rope_parameters"] == parameters
    with pytest.raises(UnsupportedModelError, match=r"other divisors than Llama 3.1's rope with a factor of 32"):
        with_divisors(np.where(np.arange(32) == 20, divisors * 1.01, divisors))


def test_provenance(tmp_path: Path) -> None:
    model = build("llama")
    named = {"general__name": "Tiny Llama", "general__license": "mit"}
    url = {"general__source__repo_url": "https://huggingface.co/owner/tiny"}
    source = GgufSource.open(convert(model, tmp_path / "some.gguf", **named, **url))
    assert (source.name, source.license, source.repository) == ("Tiny Llama", "mit", "owner/tiny")
    source = GgufSource.open(convert(model, tmp_path / "some.gguf"))
    assert (source.name, source.license, source.repository) == ("some", None, None)


REFUSED = {
    "llama.expert_count": (8, "llama.expert_count is 8; supported: 0"),
    "llama.rope.dimension_count": (8, "llama.rope.dimension_count is 8; supported: 16"),
    "llama.attention.value_length": (8, "llama.attention.value_length is 8; supported: 16"),
    "llama.attention.causal": (False, "llama.attention.causal is False; supported: True"),
    "llama.rope.scaling.type": ("longrope", "llama.rope.scaling.type is 'longrope'; supported: 'none'"),
    "llama.attention.sliding_window": (64, "llama.attention.sliding_window is 64; that setting is not honoured"),
    "llama.logit_scale": (0.5, "llama.logit_scale is 0.5; that setting is not honoured"),
    "llama.attention.head_count_kv": ([2, 1], "llama.attention.head_count_kv is .*the same for all layers"),
    "llama.attention.layer_norm_rms_epsilon": (
        float("nan"),
        "layer_norm_rms_epsilon is nan; it must be a positive number",
    ),
    "llama.context_length": (0, "llama.context_length is 0; it must be an integer of at least 1"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_settings_that_are_not_honoured_are_refused(key: str, tmp_path: Path) -> None:
    value, message = REFUSED[key]
    path = convert(build("llama"), tmp_path / "model.gguf", **{key.replace(".", "__"): value})
    with pytest.raises((UnsupportedModelError, CheckpointError), match=message):
        GgufSource.open(path)


def test_other_architectures_and_tensors_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "other.gguf", {}, {}, "mamba")
    with pytest.raises(
        UnsupportedModelError,
        match=r"'mamba' is not supported; supported are llama, qwen2, qwen3, gemma3, gemma2, phi3, gpt2",
    ):
        GgufSource.open(path)
    with pytest.raises(CheckpointError, match=r"has no tensor 'token_embd.weight'"):
        GgufSource.open(write_gguf(tmp_path / "none.gguf", {}, {}, "llama"))
    path = convert(build("llama"), tmp_path / "layers.gguf", llama__block_count=1)
    with pytest.raises(UnsupportedModelError, match=r"tensor 'blk.1.*' is no part of a llama model of 1 layers"):
        GgufSource.open(path)


def test_missing_misshapen_and_infinite_tensors_are_named(tmp_path: Path) -> None:
    model = build("llama")
    with torch.no_grad():
        model.model.norm.weight[3] = float("inf")
        model.model.layers[0].mlp.up_proj.weight[2, 5] = float("nan")
    source = GgufSource.open(convert(model, tmp_path / "model.gguf"))
    with pytest.raises(CheckpointError, match=r"'output_norm.weight' in .* holds NaN or infinity"):
        source.vector("model.norm.weight", 64)
    weight = source.weight("model.layers.0.mlp.up_proj.weight", 96, 64)
    assert weight[3:].shape == (93, 64)
    with pytest.raises(CheckpointError, match=r"'blk.0.ffn_up.weight' in .* holds NaN or infinity"):
        np.asarray(weight)
    with pytest.raises(CheckpointError, match=r"'blk.0.ffn_up.weight' in .* has shape \[96, 64\], but .* \[64, 96\]"):
        source.weight("model.layers.0.mlp.up_proj.weight", 64, 96)
    with pytest.raises(CheckpointError, match=r"tensor 'blk.7.attn_q.weight', Hugging Face's .* is missing"):
        source.weight("model.layers.7.self_attn.q_proj.weight", 64, 64)
    with pytest.raises(CheckpointError, match=r"tensor None, Hugging Face's 'model.layers.0.self_attn.q_norm.weight'"):
        source.vector("model.layers.0.self_attn.q_norm.weight", 16)


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "llama tied"])
def test_the_graph_is_that_of_the_folder(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    model.save_pretrained(tmp_path / "folder")
    actual = load_checkpoint(convert(model, tmp_path / "model.gguf", general__license="mit"))
    expected = load_checkpoint(tmp_path / "folder")
    assert actual.graph.description() == expected.graph.description()
    for name, param in expected.graph.params.items():
        tolerance = 3e-7 if "gemma" in kind and "norm" in name else 0
        np.testing.assert_allclose(np.asarray(actual.graph.params[name]), np.asarray(param), rtol=0, atol=tolerance)
    assert actual.model == {**expected.model, "name": "model", "license": "mit"}
    assert actual.text.keys() == expected.text.keys()


def test_a_compressed_file_generates_as_transformers_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the file through the command line to greedy tokens, with the vocabulary that the file brings."""
    model = build("llama")
    alphabet = [chr(code) for code in range(33, 127)]
    words = {
        "tokenizer__ggml__model": "gpt2",
        "tokenizer__ggml__pre": "gpt-2",
        "tokenizer__ggml__tokens": [*alphabet, "Ġ", "<end>"],
        "tokenizer__ggml__token_type": [*[1] * 95, 3],
        "tokenizer__ggml__merges": ["Ġ a"],
        "tokenizer__ggml__eos_token_id": 95,
        "tokenizer__chat_template": "{{ messages[0].content }}",
    }
    words["tokenizer__ggml__tokens"][0] = "Ġa"
    path = convert(model, tmp_path / "tiny.gguf", **words)
    assert cli.main(["compress", str(path), "-o", str(tmp_path / "tiny.pocket"), "--weights", "fp32"]) == 0
    capsys.readouterr()
    pocket = pocketformer.load(tmp_path / "tiny.pocket", threads=1)
    prompt = pocket.tokenize("Tell me a story")
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0].numpy()
    np.testing.assert_allclose(pocket.logits(prompt), logits, rtol=0, atol=1e-4 * np.abs(logits).max())
    assert pocket.end_token_ids == (95,)
    compress(path, tmp_path / "int8.pocket")
    assert pocketformer.load(tmp_path / "int8.pocket", threads=1).tokenize("Tell me a story") == prompt


SAMPLING: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "none": ({}, {}),
    "drawn": (
        {"temp": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.0, "xtc_threshold": 0.1, "xtc_probability": 0.0},
        {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.0},
    ),
    "no temperature": ({"top_p": 0.5}, {"top_p": 0.5, "temperature": 1.0}),
    "penalty": (
        {"penalty_repeat": 1.5, "penalty_last_n": -1, "temp": 0.0},
        {"repetition_penalty": 1.5, "temperature": 0.0},
    ),
}


@pytest.mark.parametrize("kind", SAMPLING)
def test_sampling_settings_come_along(kind: str, tmp_path: Path) -> None:
    given, expected = SAMPLING[kind]
    more = {f"general__sampling__{key}": value for key, value in given.items()}
    if "penalty_last_n" in given:
        more["general__sampling__penalty_last_n"] = np.int32(-1)
    path = convert(build("llama"), tmp_path / "model.gguf", **more)
    assert load_checkpoint(path).text["sampling"] == expected
    if kind == "drawn":
        compress(path, tmp_path / "model.pocket", weights="fp32")
        assert read_pocket(tmp_path / "model.pocket").text["sampling"] == expected


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("xtc_probability", 0.5, "general.sampling.xtc_probability is 0.5; it would change texts and is not honoured"),
        ("mirostat", 2, "general.sampling.mirostat is 2; it would change texts"),
        ("sequence", "temperature;top_k", "general.sampling.sequence is 'temperature;top_k'; it would change texts"),
        ("penalty_last_n", 64, "general.sampling.penalty_last_n is 64; it would change texts"),
        ("dry_multiplier", 0.5, "general.sampling.dry_multiplier is 0.5; it would change texts"),
        ("top_k", 1.5, "general.sampling.top_k is 1.5; it must be an integer"),
        ("temp", float("inf"), "general.sampling.temp is inf; it must be at least 0"),
        ("top_p", 1.5, "general.sampling.top_p is 1.5; it must lie in 0…1"),
        ("penalty_repeat", 0.0, "general.sampling.penalty_repeat is 0; it must be above 0"),
    ],
)
def test_sampling_settings_that_are_not_honoured_are_refused(
    key: str, value: Any, message: str, tmp_path: Path
) -> None:
    path = convert(build("llama"), tmp_path / "model.gguf", **{f"general__sampling__{key}": value})
    with pytest.raises((UnsupportedModelError, CheckpointError), match=re.escape(message)):
        load_checkpoint(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    with pytest.raises(CheckpointError, match=r"model.safetensors is not a folder; .* or a .gguf file"):
        load_checkpoint(tmp_path / "model.safetensors")
    (tmp_path / "model.gguf").write_bytes(bytes(100))
    with pytest.raises(UnsupportedModelError, match=r"tower is 'text', but .*model.gguf holds a single model"):
        load_checkpoint(tmp_path / "model.gguf", "text")
    with pytest.raises(CheckpointError, match="not a valid GGUF file"):
        load_checkpoint(tmp_path / "model.gguf")
