"""Small GGUF files, written by the gguf package."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType

from pocketformer.sources.gguf_types import TYPES

Tensor = tuple[np.ndarray, GGMLQuantizationType]


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor], architecture: str) -> Path:
    """``metadata`` takes the types that a converter would give it; a quantized tensor is its bytes."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.data_alignment = metadata.get("general.alignment", writer.data_alignment)
    for key, value in metadata.items():
        add(writer, key, value)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, np.int32):
        writer.add_int32(key, int(value))
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def plain(array: np.ndarray, kind: GGMLQuantizationType = GGMLQuantizationType.F32) -> Tensor:
    """``array`` rounded to ``kind``; of a quantized kind the gguf package must know how to round to it."""
    return gguf.quants.quantize(np.ascontiguousarray(array, np.float32), kind), kind


def random_blocks(kind: int, rows: int, blocks: int, seed: int = 0) -> np.ndarray:
    """Rows of ``blocks`` random blocks each, of factors that are small and finite."""
    block = TYPES[kind]
    raw = np.random.default_rng(seed).integers(0, 256, (rows * blocks, block.bytes), dtype=np.uint8)
    for begin in HALVES.get(kind, ()):  # the exponent's upper bits: below 1, and neither infinity nor NaN
        raw[:, begin + 1] &= 0xBB
    return raw.reshape(rows, blocks * block.bytes)


HALVES = {8: (0,), 2: (0,), 3: (0, 2), 6: (0,), 7: (0, 2), 12: (0, 2), 13: (0, 2), 14: (208,)}
"""Where the blocks of a type hold half-precision factors."""


def convert(
    model: torch.nn.Module, path: Path, kind: GGMLQuantizationType = GGMLQuantizationType.F32, **more: Any
) -> Path:
    """A transformers decoder as a GGUF file, as a converter writes it: matrices of ``kind``, vectors as they are.

    Names come from the gguf package; ``more`` is metadata, with ``__`` for each dot.
    """
    config = model.config
    architecture = {"gemma3_text": "gemma3"}.get(config.model_type, config.model_type)
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.numpy().astype(np.float32)
        if architecture == "llama" and "q_proj" in name:
            values = interleave(values, config.num_attention_heads)
        if architecture == "llama" and "k_proj" in name:
            values = interleave(values, config.num_key_value_heads)
        if architecture.startswith("gemma") and "norm" in name:
            values = values + np.float32(1)
        if architecture == "gpt2" and values.ndim == 2 and ".h." in name:
            values = np.ascontiguousarray(values.T)
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None
        tensors[stored] = plain(values, kind if values.ndim == 2 else GGMLQuantizationType.F32)
    for stored, divisors in _divisors(config).items():
        tensors[stored] = plain(np.array(divisors))
    metadata = {f"{architecture}.{key}": value for key, value in _settings(config).items()}
    return write_gguf(
        path, metadata | {key.replace("__", "."): value for key, value in more.items()}, tensors, architecture
    )


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """From a half after the other to neighbours: pair j of a head is rows 2j and 2j + 1."""
    halves = np.split(rows.reshape(heads, -1, *rows.shape[1:]), 2, axis=1)
    return np.stack(halves, axis=2).reshape(rows.shape)


def _divisors(config: Any) -> dict[str, list[float]]:
    """Those of a longrope, by tensor."""
    rope = getattr(config, "rope_parameters", {})
    kinds = ("short", "long") if rope.get("rope_type") == "longrope" else ()
    return {f"rope_factors_{kind}.weight": rope[f"{kind}_factor"] for kind in kinds}


def _settings(config: Any) -> dict[str, Any]:
    if config.model_type == "gpt2":
        return {
            "block_count": config.n_layer,
            "context_length": config.n_positions,
            "embedding_length": config.n_embd,
            "feed_forward_length": config.n_inner or 4 * config.n_embd,
            "attention.head_count": config.n_head,
            "attention.layer_norm_epsilon": config.layer_norm_epsilon,
        }
    rope = config.rope_parameters
    gemma = "full_attention" in rope
    rope = rope["full_attention"] if gemma else rope
    values = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if getattr(config, "head_dim", None):
        values |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    if getattr(config, "sliding_window", None) and config.model_type != "qwen3":
        values["attention.sliding_window"] = config.sliding_window
    if config.model_type == "gemma2":
        caps = ("attn_logit_softcapping", "final_logit_softcapping")
        values |= {cap: float(getattr(config, cap)) for cap in caps}
    if config.model_type == "phi3":
        head_dim = config.hidden_size // config.num_attention_heads
        values["rope.dimension_count"] = int(head_dim * rope["partial_rotary_factor"])
        values["rope.scaling.original_context_length"] = config.original_max_position_embeddings
    if rope["rope_type"] == "longrope":
        trained, longest = config.original_max_position_embeddings, config.max_position_embeddings
        values["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(longest / trained) / math.log(trained))
    if rope["rope_type"] in ("linear", "yarn"):
        values |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
    if rope["rope_type"] == "yarn":
        values["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    return values
