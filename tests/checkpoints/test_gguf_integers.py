"""The integers of a GGUF file reach the pocket file as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType

import pocketformer
from helpers.gguf_files import convert, plain, random_blocks, write_gguf
from helpers.torch_decoders import fill
from pocketformer.compression import Precision, compress
from pocketformer.errors import CheckpointError
from pocketformer.graph import Array, Graph
from pocketformer.packing import scales_of, unpack_graph
from pocketformer.pocketfile import read_pocket
from pocketformer.sources.gguf_groups import GROUP_TYPES, grouped
from pocketformer.sources.gguf_reader import TensorInfo, read_gguf
from pocketformer.sources.gguf_types import TYPES
from pocketformer.sources.huggingface import load_checkpoint

KINDS = {kind: block for kind, block in TYPES.items() if block.name in GROUP_TYPES}


def real(graph: Graph, name: str) -> Array:
    """The float32 values that the weight ``name`` of a plain graph stands for."""
    values = graph.params[f"{name}.weight"]
    if f"{name}.codebook" in graph.params:
        values = graph.params[f"{name}.codebook"][values]
    scale, minimum = scales_of(name, graph.params)
    product = values.astype(np.float32).reshape(*scale.shape, -1) * scale[..., None]
    return (product if minimum is None else product + minimum[..., None]).reshape(values.shape)


@pytest.mark.parametrize("kind", KINDS, ids=[block.name for block in KINDS.values()])
def test_values_are_those_that_are_decoded(kind: int) -> None:
    block = TYPES[kind]
    raw = random_blocks(kind, 21, 2)
    if block.name == "Q8_0":
        values = raw.reshape(-1, block.bytes)[:, 2:]
        values[values == 128] = 129
    info = TensorInfo("t", (21, 2 * block.size), block, 0, raw.size)
    found = grouped(info, lambda begin, end: raw[begin:end], "t")
    assert found is not None
    params = {f"w.{part}": array for part, array in found.stored(3, 20).items()}
    codebook = found.codebook()
    if codebook is not None:
        params["w.codebook"] = codebook
    np.testing.assert_array_equal(real(Graph([], [], {}, [], [], "", params), "w"), block.rows(raw[3:20]))


def model(**options: Any) -> torch.nn.Module:
    sizes: dict[str, Any] = {
        **{"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 200, "head_dim": 16},
    }
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(sizes | options))).eval()
    fill(made, 3)
    return made


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_file_keeps_every_value(kind: str, tied: bool, tmp_path: Path) -> None:
    path = convert(model(tie_word_embeddings=tied), tmp_path / "tiny.gguf", GGMLQuantizationType[kind])
    report = compress(path, tmp_path / "tiny.pocket")
    assert report.weights == "gguf"
    bits = 8 * gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1] / 32
    assert report.bits_per_weight < bits * 1.1  # a codebook, and panels, of weights this small
    shown = pocketformer.load(tmp_path / "tiny.pocket", threads=1).info()
    assert shown["bits_per_weight"] == pytest.approx(report.bits_per_weight)
    file = read_pocket(tmp_path / "tiny.pocket")
    assert file.model["weights"] == "gguf"
    kept, plain_graph = unpack_graph(file.graph), load_checkpoint(path).graph
    assert {facts["format"] for facts in kept.weights.values()} == {f"i{kind[1]}"}
    assert {facts["inputs"] for facts in kept.weights.values()} == {"half_group"}
    assert all(op["fine"] for op in kept.ops if op["op"] == "attention")
    for name in plain_graph.weights:
        np.testing.assert_array_equal(real(kept, name), np.asarray(plain_graph.params[f"{name}.weight"]))


def test_logits_are_close_to_those_of_the_floats(tmp_path: Path) -> None:
    path = convert(model(), tmp_path / "tiny.gguf", GGMLQuantizationType.Q4_1)
    ids = np.random.default_rng(5).integers(0, 96, 40).tolist()
    logits = {}
    for weights in ("gguf", "fp32", "int8"):
        compress(path, tmp_path / f"{weights}.pocket", weights=weights)
        logits[weights] = pocketformer.load(tmp_path / f"{weights}.pocket", threads=1).logits(ids)
    error = {weights: np.abs(logits[weights] - logits["fp32"]).mean() for weights in ("gguf", "int8")}
    assert 0 < error["gguf"] < 0.02 * logits["fp32"].std()
    chunked = pocketformer.load(tmp_path / "gguf.pocket", threads=2)
    assert np.array_equal(chunked.logits(ids), logits["gguf"])


def test_mixed_types_share_a_matrix(tmp_path: Path) -> None:
    """Queries, keys and values of different types, and one weight that is said to be rounded."""
    base = model()
    tensors = {}
    for name, tensor in base.state_dict().items():
        kind = GGMLQuantizationType.F32 if tensor.ndim == 1 else GGMLQuantizationType.Q5_0
        kind = GGMLQuantizationType.Q8_0 if "v_proj" in name or "embed" in name else kind
        stored = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2).get_name(name, try_suffixes=(".weight",))
        tensors[str(stored)] = plain(tensor.numpy(), kind)
    whole = convert(base, tmp_path / "base.gguf")
    metadata = {key: value for key, value in read_gguf(whole).metadata.items() if key != "general.architecture"}
    path = write_gguf(tmp_path / "mixed.gguf", metadata, tensors, "llama")
    compress(path, tmp_path / "mixed.pocket", precision={"layers.1.ffn_down": Precision(8)})
    kept, floats = unpack_graph(read_pocket(tmp_path / "mixed.pocket").graph), load_checkpoint(path).graph
    assert kept.weights["layers.0.qkv"]["format"] == "i8"
    assert kept.weights["layers.0.ffn_up"]["format"] == "i5"
    assert "group" not in kept.weights["layers.1.ffn_down"]
    for name in set(floats.weights) - {"layers.1.ffn_down"}:
        np.testing.assert_array_equal(real(kept, name), np.asarray(floats.params[f"{name}.weight"]))


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    made = model()
    made.save_pretrained(tmp_path / "folder")
    with pytest.raises(ValueError, match="weights is 'gguf', which keeps integers, but this checkpoint has none"):
        compress(tmp_path / "folder", tmp_path / "x.pocket", weights="gguf")
    path = convert(made, tmp_path / "tiny.gguf", GGMLQuantizationType.Q8_0)
    with pytest.raises(ValueError, match=r"weights is 'gguf', .* table_bits, group or bounded_pairs asks for others"):
        compress(path, tmp_path / "x.pocket", weights="gguf", group=32)
    content = bytearray(path.read_bytes())
    found = read_gguf(path).tensors["blk.1.ffn_up.weight"]
    content[found.begin + 34 + 5] = 128
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"'blk.1.ffn_up.weight' in .* holds -128, .* pass weights='int8'"):
        compress(path, tmp_path / "x.pocket")
    assert not (tmp_path / "x.pocket").exists()
    content[found.begin + 34 + 5] = 0
    content[found.begin + 1] = 0x7C
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"'blk.1.ffn_up.weight' in .* holds a scale that is NaN or infinity"):
        compress(path, tmp_path / "x.pocket")
