"""Packing against plain loops, the Hadamard transform against its definition, and what quantization must keep."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.engines import native
from helpers.graphs import MODEL, TEXT, TOKENIZER_JSON, tiny_graph
from helpers.rounding import dequantize
from pocketformer import reference
from pocketformer.compression import (
    Precision,
    QuantizeOptions,
    _progress_bar,
    compress,
    compress_checkpoint,
    compress_graph,
)
from pocketformer.compression.pipeline import predicted_bytes
from pocketformer.compression.quantize import quantize_graph
from pocketformer.compression.rounding import quantize_rows
from pocketformer.graph import TOKENS, Array, GraphBuilder, Table
from pocketformer.hadamard import hadamard
from pocketformer.layout import MAX_INT8_K, hadamard_block, table_rows
from pocketformer.packing import pack_bits, pack_graph, pack_panels, unpack_bits, unpack_graph, unpack_panels
from pocketformer.pocketfile import read_pocket
from pocketformer.sources.huggingface import Checkpoint

TAILS = [1, 2, 3, 4, 5, 15, 16, 17, 26, 33, 312, 1200]


@pytest.mark.parametrize("n", TAILS)
@pytest.mark.parametrize("k", TAILS[:-1])
def test_panels_against_plain_loops(n: int, k: int) -> None:
    rng = np.random.default_rng(n * 2000 + k)
    int8 = rng.integers(-127, 128, (n, k), np.int8)
    panels = pack_panels(int8)
    assert panels.shape == (-(-n // 16), -(-k // 4), 16, 4)
    fp32 = int8.astype(np.float32)
    wide = pack_panels(fp32)
    assert wide.shape == (-(-n // 16), k, 16)
    for channel in {0, n // 2, n - 1}:
        for i in {0, k // 2, k - 1}:
            assert panels[channel // 16, i // 4, channel % 16, i % 4] == int8[channel, i]
            assert wide[channel // 16, i, channel % 16] == fp32[channel, i]
    assert np.count_nonzero(panels) == np.count_nonzero(int8) == np.count_nonzero(wide)
    np.testing.assert_array_equal(unpack_panels(panels, n, k), int8)
    np.testing.assert_array_equal(unpack_panels(wide, n, k), fp32)
    assert panels.nbytes % 64 == 0 == wide.nbytes % 64


@pytest.mark.parametrize("bits", [3, 4, 5, 6, 7])
@pytest.mark.parametrize("k", [1, 15, 16, 17, 100])
def test_bits_against_plain_loops(bits: int, k: int) -> None:
    codes = np.random.default_rng(bits * k).integers(0, 1 << bits, (3, k)).astype(np.uint8)
    packed = pack_bits(codes, bits)
    assert packed.shape == (3, -(-k // 16) * 2 * bits)
    for row, line in zip(codes, packed, strict=True):
        number = int.from_bytes(line.tobytes(), "little")
        assert [number >> (i * bits) & ((1 << bits) - 1) for i in range(k)] == row.tolist()
        assert number >> (k * bits) == 0
    np.testing.assert_array_equal(unpack_bits(packed, bits, k), codes)


@pytest.mark.parametrize("width", TAILS)
@pytest.mark.parametrize("itemsize", [1, 4])
def test_table_rows_is_the_least_that_aligns(width: int, itemsize: int) -> None:
    for rows in (1, 2, 101, 512):
        stored = table_rows(rows, width, itemsize)
        assert stored >= rows
        assert [r for r in range(rows, stored + 1) if r * width * itemsize % 64 == 0] == [stored]


def test_hadamard_is_sylvesters_matrix() -> None:
    matrix = np.ones((1, 1))
    for block in (2, 4, 8, 16, 32, 64, 128):
        matrix = np.kron([[1, 1], [1, -1]], matrix)
        x = np.random.default_rng(block).standard_normal((3, 3 * block))
        expected = (x.reshape(3, 3, block) @ matrix).reshape(3, 3 * block)
        np.testing.assert_allclose(hadamard(x, block), expected, atol=1e-12)
        np.testing.assert_allclose(hadamard(hadamard(x, block), block), block * x, atol=1e-11)


def test_hadamard_keeps_dtype_and_refuses_blocks_that_do_not_divide() -> None:
    assert hadamard(np.ones((2, 8), np.float32), 4).dtype == np.float32
    for block in (3, 16):
        with pytest.raises(ValueError, match=f"block is {block}; it must be a power of two that divides"):
            hadamard(np.ones((2, 8)), block)


@pytest.mark.parametrize(
    ("k", "block"), [(1, 0), (2, 2), (26, 2), (312, 8), (1200, 16), (384, 128), (768, 128), (99, 0)]
)
def test_largest_block(k: int, block: int) -> None:
    assert hadamard_block(k) == block


def test_rows_round_to_nearest_even_within_127() -> None:
    weight = np.array([[127.0, 0.5, 1.5, -2.5], [0, 0, 0, 0], [-1e-3, 1e-3, 0, 0]])
    values, scale = quantize_rows(weight)
    np.testing.assert_array_equal(values, [[127, 0, 2, -2], [0, 0, 0, 0], [-127, 127, 0, 0]])
    np.testing.assert_allclose(scale, [1, 0, 1e-3 / 127], rtol=1e-6)


def test_clipping_never_increases_the_error() -> None:
    weight = np.random.default_rng(0).uniform(-1, 1, (64, 20_000))
    weight[:, 0] = 1.05  # a single outlier whose range is not worth the steps that it costs all others

    def errors(clip: tuple[float, ...]) -> Array:
        values, scale = quantize_rows(weight, clip)
        assert np.abs(values.astype(int)).max() <= 127
        return np.square(dequantize(values, scale, 0) - weight).sum(axis=1)

    plain, searched = errors((1.0,)), errors((1.0, 0.95, 0.9, 0.8))
    assert (searched <= plain).all()
    assert (searched < plain).any()


@pytest.mark.parametrize("width", [26, 312, 384])
def test_rotated_weights_stand_for_the_same_matrix(width: int) -> None:
    block = hadamard_block(width)
    weight = np.random.default_rng(width).standard_normal((8, width))
    values, scale = quantize_rows(hadamard(weight, block) / block)
    error = np.linalg.norm(dequantize(values, scale, block) - weight) / np.linalg.norm(weight)
    assert error < 0.01
    np.testing.assert_allclose(dequantize(values, scale, block) @ np.eye(width), dequantize(values, scale, block))


def test_what_is_quantized_and_rotated() -> None:
    graph = quantize_graph(tiny_graph(hidden=64, ffn=96, head_dim=32))
    rotate = {op["weight"]: graph.weights[op["weight"]].get("rotate", 0) for op in graph.ops if op["op"] == "linear"}
    assert rotate["layer0.qkv"] == 64
    assert rotate["layer0.up"] == 64
    assert rotate["layer0.down"] == 32
    assert rotate["layer0.out"] == 0
    assert {state["dtype"] for state in graph.states} == {"int8"}
    assert graph.params["words.weight"].dtype == np.int8
    assert graph.params["types.weight"].dtype == np.float32
    assert all(graph.params[f"{name}.weight"].dtype == np.int8 for name in rotate)


def test_options() -> None:
    plain = tiny_graph(hidden=64, ffn=96, head_dim=32)
    graph = quantize_graph(plain, QuantizeOptions(block=16, rotate_attention_output=True, fp32_rows=0))
    assert {graph.weights[op["weight"]]["rotate"] for op in graph.ops if op["op"] == "linear"} == {16}
    assert graph.params["types.weight"].dtype == np.int8
    with pytest.raises(ValueError, match="block is 24; it must be 0 or a power of two"):
        quantize_graph(plain, QuantizeOptions(block=24))
    assert all("rotate" not in facts for facts in plain.weights.values()), "the input must stay as it is"


def head_graph(n: int, k: int = 32) -> Any:
    rng = np.random.default_rng(n)
    build = GraphBuilder.text(70, 0, 8)
    x = build.embed([Table("words", rng.standard_normal((70, k)).astype(np.float32), "ids")])
    return build.build(build.linear(x, rng.standard_normal((n, k)).astype(np.float32), name="head"))


@pytest.mark.parametrize(("n", "dtype"), [(2, np.float32), (64, np.float32), (65, np.int8)])
def test_small_final_heads_stay_fp32(n: int, dtype: type) -> None:
    assert quantize_graph(head_graph(n)).params["head.weight"].dtype == dtype


def test_products_too_long_for_int32_stay_fp32() -> None:
    graph = quantize_graph(head_graph(65, MAX_INT8_K + 1))
    assert graph.params["head.weight"].dtype == np.float32
    assert graph.weights["head"] == {"format": "f32", "n": 65, "k": MAX_INT8_K + 1}


def test_a_tied_table_is_stored_once_as_panels() -> None:
    plain = tiny_graph(task="fill_mask")
    graph = pack_graph(quantize_graph(plain))
    assert graph.params["words.weight"].shape == (7, 9, 16, 4)
    assert graph.weights["words"]["rotate"] == 4
    words = unpack_graph(graph).params
    real = dequantize(words["words.weight"], words["words.scale"], 4)
    np.testing.assert_allclose(real, plain.params["words.weight"], atol=0.03)


@pytest.mark.parametrize("weights", ["int8", "fp32"])
def test_packing_and_back(weights: str) -> None:
    plain = tiny_graph(task="fill_mask", relative=True)
    before = quantize_graph(plain) if weights == "int8" else plain
    after = unpack_graph(pack_graph(before))
    assert after.params.keys() == before.params.keys()
    for name, array in before.params.items():
        np.testing.assert_array_equal(after.params[name], array, err_msg=name)


def test_sums_are_the_sums_of_the_weights() -> None:
    packed = pack_graph(quantize_graph(tiny_graph()))
    for name in [name for name in packed.params if name.endswith(".colsum")]:
        weight = packed.params[name.replace("colsum", "weight")]
        np.testing.assert_array_equal(packed.params[name], weight.astype(np.int32).sum(axis=(1, 3)).reshape(-1))


@pytest.mark.parametrize("options", [{}, {"hidden": 64, "ffn": 128, "head_dim": 32}, {"kv_heads": 1, "relative": True}])
def test_int8_is_close_to_fp32(options: dict[str, Any]) -> None:
    plain = tiny_graph(**options)
    ids = np.random.default_rng(3).integers(0, 101, 90)
    inputs = {"ids": ids, TOKENS: np.cumsum([0, 1, 2, 7, 40, 40])}
    exact = reference.run(plain, inputs)
    rounded = reference.run(quantize_graph(plain), inputs)
    assert (exact * rounded).sum(axis=1).min() > 0.999


def test_report_and_file(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tiny_graph(), MODEL, TEXT, b'{ "model" : {"type": "WordPiece"} }')
    seen: list[tuple[str, float]] = []
    path = tmp_path / "tiny.pocket"
    report = compress_checkpoint(checkpoint, path, progress=lambda what, share: seen.append((what, share)))
    file = read_pocket(path)
    assert file.model["weights"] == "int8"
    assert (file.tokenizer() or b"").rstrip() == TOKENIZER_JSON
    assert report.file_bytes == path.stat().st_size
    assert [stage.name for stage in report.stages] == ["import", "quantize", "pack"]
    assert report.stages[-1].after == sum(array.nbytes for array in file.graph.params.values())
    assert sum(tensor.after for tensor in report.tensors) == report.stages[-1].after
    assert all(0 < tensor.error < 0.02 for tensor in report.tensors if tensor.name.endswith("qkv.weight"))
    assert "quantize" in str(report)
    assert "largest weight error" in str(report)
    assert seen[-1] == ("write", 1.0)


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="weights is 'int3'; it must be one of int8, int4, fp16, fp32"):
        compress_graph(tiny_graph(), "int3")


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_drawn_on_terminals_only(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich", reason="needs the package rich")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    with _progress_bar() as progress:
        assert (progress is not None) == terminal
        if progress:
            progress("layer0.qkv", 0.5)


NEAREST: dict[str, Any] = {"random_tokens": 0}


def test_which_weight_gets_how_many_bits() -> None:
    plain = tiny_graph(hidden=64, ffn=96, head_dim=32, vocab=333)
    options = QuantizeOptions(table_bits=6, precision={"layer1.*": Precision(8), "*.up": Precision(4, 16)}, **NEAREST)
    chosen = options.precisions(plain, 4)
    assert chosen["words"] == Precision(6)
    assert chosen["positions"] == Precision(32), "42 rows"
    assert chosen["layer0.qkv"] == Precision(4, 64)
    assert chosen["layer0.down"] == Precision(4, 32), "64 does not divide its 96 inputs"
    assert chosen["layer1.down"] == Precision(8)
    assert chosen["layer1.up"] == Precision(4, 16), "the last pattern counts"
    graph = quantize_graph(plain, options, linear_bits=4)
    assert graph.weights["words"] == {"format": "i6", "n": 333, "k": 64}
    facts = {"format": "i4", "n": 288, "k": 64, "group": 64, "rotate": 64, "scales": "f16"}
    assert graph.weights["layer0.qkv"] == facts
    assert graph.params["layer0.down.scale"].shape == (64, 3)
    assert quantize_graph(plain, QuantizeOptions(table_bits=5, **NEAREST)).weights["words"]["rotate"] == 64


def test_a_tied_table_stays_int8() -> None:
    chosen = QuantizeOptions(table_bits=3).precisions(tiny_graph(task="fill_mask"), 4)
    assert chosen["words"] == Precision(8)
    assert chosen["layer0.qkv"] == Precision(4), "no group divides 36 inputs: a scale a channel"


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        ({"layer9.*": Precision(8)}, r"precision names 'layer9\.\*', which is no weight; weights are words, positions"),
        ({"layer0.up": Precision(7)}, "precision of 'layer0.up' is 7 bits; a linear has one of 4, 5, 6, 8, 16, 32"),
        ({"layer0.up": Precision(5)}, "precision of 'layer0.up' is 5 bits without groups; use 8 or 4 bits"),
        ({"layer0.down": Precision(6)}, "6 bits without groups; give it groups: one of 16, 32 divides its 96 inputs"),
        ({"words": Precision(9)}, "precision of 'words' is 9 bits; a table has one of 3, 4, 5, 6, 7, 8, 16, 32"),
        ({"layer0.up": Precision(4, 64)}, "'layer0.up' has groups of 64; leave it 0"),
        ({"layer0.down": Precision(4, 64)}, "'layer0.down' has groups of 64; one of 16, 32 divides its 96 inputs"),
        ({"layer0.down": Precision(8, 32)}, "'layer0.down' has groups of 32; leave it 0"),
        ({"words": Precision(4, 16)}, "'words' has groups of 16; leave it 0"),
    ],
)
def test_precisions_that_do_not_fit_are_refused(precision: dict[str, Precision], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compress_graph(tiny_graph(ffn=96), "int8", QuantizeOptions(precision=precision, **NEAREST))


def test_wrong_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="table_bits is 2; it must lie in 3…8, or be 16 or 32"):
        QuantizeOptions(table_bits=2)
    with pytest.raises(ValueError, match="group is 48; it must be 16, 32, 64 or 128"):
        QuantizeOptions(group=48)
    with pytest.raises(ValueError, match="weights is 'fp32', where nothing is rounded; leave table_bits out"):
        compress(tmp_path, tmp_path / "file", weights="fp32", table_bits=4)
    tied = {"words": Precision(4)}
    with pytest.raises(ValueError, match="a table that a product reads too has one of 8, 16, 32"):
        QuantizeOptions(precision=tied).precisions(tiny_graph(task="fill_mask"))


@pytest.mark.parametrize(("bits", "worst"), [(3, 0.9), (4, 0.98), (5, 0.995), (6, 0.9985), (7, 0.9996)])
def test_more_bits_of_a_table_are_better(bits: int, worst: float) -> None:
    plain = tiny_graph(hidden=64, ffn=128, head_dim=32, vocab=333)
    ids = np.random.default_rng(3).integers(0, 333, 90)
    inputs = {"ids": ids, TOKENS: np.cumsum([0, 1, 2, 7, 40, 40])}
    rounded = quantize_graph(plain, QuantizeOptions(table_bits=bits, **NEAREST))
    cosines = (reference.run(plain, inputs) * reference.run(rounded, inputs)).sum(axis=1)
    assert cosines.mean() > worst


@pytest.mark.parametrize(("bits", "worst"), [(4, 0.98), (5, 0.994), (6, 0.998)])
def test_groups_of_few_bits_in_float16_scales(bits: int, worst: float, tmp_path: Path) -> None:
    """Rounded in memory, packed and computed by the runtime, and in a file, whose bytes are foretold."""
    plain = tiny_graph(hidden=64, ffn=128, head_dim=32)
    ids = np.random.default_rng(3).integers(0, 101, 90).astype(np.int32)
    options = QuantizeOptions(precision={"layer*": Precision(bits, 32)}, random_tokens=512)
    rounded = quantize_graph(plain, options)
    weights = [name for name in rounded.weights if name.startswith("layer")]
    for name in weights:
        facts = {"format": f"i{bits}", "group": 32, "scales": "f16"}
        assert rounded.weights[name].items() >= facts.items()
        assert rounded.weights[name]["rotate"] >= 32
        assert rounded.params[f"{name}.scale"].dtype == np.float16
    exact, found = native(plain, ids, [1, 40, 40, 9]), native(rounded, ids, [1, 40, 40, 9])
    assert (exact * found).sum(axis=1).mean() > worst
    inputs = {"ids": ids, TOKENS: np.cumsum([0, 1, 40, 40, 9])}
    assert (found * reference.run(rounded, inputs)).sum(axis=1).min() > 1 - 1e-4
    loaded = Checkpoint(plain, MODEL, TEXT, None)
    report = compress_checkpoint(loaded, tmp_path / "m.pocket", options=options)
    assert predicted_bytes(loaded, "int8", options) == report.file_bytes
    stored = unpack_graph(read_pocket(tmp_path / "m.pocket").graph)
    assert stored.params.keys() == rounded.params.keys()
    for name in weights:
        for part in ("weight", "scale", "codebook"):
            np.testing.assert_array_equal(stored.params[f"{name}.{part}"], rounded.params[f"{name}.{part}"])


def test_weights_too_small_for_float16_scales_have_float32() -> None:
    plain = tiny_graph(hidden=64, ffn=128, head_dim=32)
    params = {name: array * np.float32(1e-4 if ".up." in name else 1) for name, array in plain.params.items()}
    rounded = quantize_graph(replace(plain, params=params), QuantizeOptions(group=32, **NEAREST), linear_bits=4)
    assert {name: rounded.weights[name].get("scales", "f32") for name in ("layer0.up", "layer0.down")} == {
        "layer0.up": "f32",
        "layer0.down": "f16",
    }
    assert rounded.params["layer0.up.scale"].dtype == np.float32
    assert rounded.params["layer0.up.scale"].min() > 0
