"""What every build must compute, byte for byte: digests of kernels, tiny graphs and a real model.

    python -m helpers.golden          (in tests/) prints the digests of this tree as JSON
    scripts/golden.sh                 writes them to tests/golden/bits.json

A change that alters one on purpose says so in its commit and regenerates the file. Inputs are made of integers, so that
no mathematical library has a say in them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from helpers.graphs import tiny_graph
from helpers.kernels import Attention, Heads, aligned, fresh, kernels, padded, panels
from helpers.programs import batch, program
from pocketformer import _core
from pocketformer.compression.options import QuantizeOptions
from pocketformer.compression.quantize import quantize_graph
from pocketformer.graph import Array, Graph

GOLDEN = Path(__file__).parents[1] / "golden" / "bits.json"
NEAREST = QuantizeOptions(random_tokens=0)
"""Rounds to nearest: what GPTQ rounds to depends on the machine's BLAS."""
MINILM_TEXTS, FEW_TEXTS = 40, 4
PRODUCTS = [(1, 16, 4), (3, 17, 5), (7, 33, 31), (11, 48, 64), (16, 100, 127), (29, 39, 384), (64, 80, 200)]
ATTENTION = [(1, 5, -1, -1), (2, 32, -1, 0), (65, 64, 9, 0), (129, 80, -1, -1), (300, 26, 40, 7), (300, 64, 128, 128)]
LONG = [(1100, 32, -1, -1), (2100, 16, 1030, 0), (2100, 64, -1, 0)]
"""Beyond one split of 1,024 keys."""
ACTIVATIONS = ("none", "gelu", "gelu_tanh", "relu", "silu", "tanh")
LENGTHS = (1, 40, 2, 7, 17, 39, 16, 3, 33, 4)


class Numbers:
    """Nearly normal numbers that are sums of integers, under the name that numpy's generator has for them."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def standard_normal(self, shape: tuple[int, ...]) -> Array:
        whole = self._rng.integers(-4096, 4097, (4, *shape)).sum(axis=0)
        return (whole / np.float32(4096 * 1.1547)).astype(np.float32)


def digest(*arrays: Array) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()[:24]


def kernel_digests(isa: str) -> dict[str, str]:
    return dict(_products(isa)) | dict(_rows(isa)) | dict(_attention(isa))


def quantize(isa: str, x: Array, rotate: int) -> tuple[Array, Array]:
    """int8 rows with their padding, and their scales."""
    rows, k = x.shape
    table = kernels(isa)
    q, scale = fresh((rows, -(-k // 64) * 64), np.uint8, 0), fresh((rows,))
    table.quantize_rows(padded(x), q, scale, k, rotate)
    return q, scale


def _products(isa: str) -> Iterator[tuple[str, str]]:
    table = kernels(isa)
    for index, (m, n, k) in enumerate(PRODUCTS):
        numbers, columns = Numbers(index), -(-n // 16) * 16
        x = numbers.standard_normal((m, k))
        bias, residual = numbers.standard_normal((1, columns))[0], numbers.standard_normal((m, columns))
        weight = np.random.default_rng(index).integers(-127, 128, (n, k)).astype(np.int8)
        scale = padded(np.abs(numbers.standard_normal((1, n))) / 64)[0]
        colsum = padded(weight.sum(axis=1, dtype=np.int32)[None])[0]
        for rotate in {0, min(k & -k, 128) if k % 2 == 0 else 0}:
            q, q_scale = quantize(isa, x, rotate)
            plain = (q[:, :k] - np.uint8(table.activation_offset)).astype(np.uint8)
            yield f"quantize {m}x{k} rotate {rotate}", digest(plain, q_scale)
        for activation in ACTIVATIONS:
            epilogue: dict[str, Any] = {"bias": aligned(bias), "residual": aligned(residual), "activation": activation}
            out = fresh((m, columns))
            int8 = {"x_scale": q_scale, "scale": scale, "colsum": colsum}
            table.gemm(q, panels(weight), out, k, **int8, **epilogue)
            yield f"int8 {m}x{n}x{k} {activation}", digest(out[:, :n])
            table.gemm(padded(x), panels(weight.astype(np.float32) / 64), out, k, **epilogue)
            yield f"fp32 {m}x{n}x{k} {activation}", digest(out[:, :n])


def _rows(isa: str) -> Iterator[tuple[str, str]]:
    table = kernels(isa)
    for width in (1, 15, 33, 384):
        numbers = Numbers(width)
        x, weight, bias = (padded(numbers.standard_normal((rows, width))) for rows in (9, 1, 1))
        out, pooled = fresh(x.shape), fresh((x.shape[1],))
        for kind in ("layer", "rms"):
            table.norm(x, weight[0], bias[0], out, width, 1e-6, kind)
            yield f"norm {kind} {width}", digest(out)
        table.l2_normalize(x, out, width)
        yield f"normalize {width}", digest(out)
        for kind in ("mean", "cls", "max"):
            table.pool(x, pooled, width, kind)
            yield f"pool {kind} {width}", digest(pooled)


def _attention(isa: str) -> Iterator[tuple[str, str]]:
    for index, (length, head_dim, left, right) in enumerate([*ATTENTION, *LONG]):
        long = length > 1024
        heads, kv_heads = (1, 1) if long else (4, 2)
        numbers = Numbers(index)
        qkv = numbers.standard_normal((length, (heads + 2 * kv_heads) * head_dim)) * np.float32(1.7)
        case = Heads(qkv, head_dim, heads, kv_heads)
        bias = padded(numbers.standard_normal((heads, 2 * length - 1)))
        queries = (length - 70, length) if long and isa == "scalar" else (0, length)
        for int8 in (True, False):
            stored = Attention(isa, case, int8)
            name = f"attention {'int8' if int8 else 'fp32'} {length}x{head_dim} {left} {right}"
            plain = stored.attend(*queries, left=left, right=right)
            yield name, digest(plain[-70:] if long else plain)
            biased = stored.attend(*queries, left=left, right=right, bias=bias, bias_center=length - 1)
            yield f"{name} bias", digest(biased[-70:] if long else biased)
            if int8 and not long:
                fine = [stored.attend(begin, length, left=left, right=right, fine=True) for begin in (0, length - 1)]
                yield f"{name} fine", digest(*fine)


def graphs() -> Iterator[tuple[str, Graph]]:
    shapes: dict[str, dict[str, Any]] = {
        "odd": {},
        "relative": {"relative": True, "hidden": 48, "ffn": 96},
        "grouped": {"heads": 4, "kv_heads": 2, "head_dim": 32, "hidden": 128, "ffn": 200},
        "words": {"task": "fill_mask", "hidden": 64},
    }
    for name, options in shapes.items():
        graph = tiny_graph(**options, rng=Numbers(len(name)))
        yield f"{name} fp32", graph
        yield f"{name} int8", quantize_graph(graph, NEAREST)
    whole = tiny_graph(rng=Numbers(9))
    computing = [op for op in whole.ops if op["op"] not in ("columns", "store")]
    for index, op in enumerate(computing):  # every operator's own result
        yield f"up to op {index} ({op['op']})", replace(whole, output=op["out"])


def grouped_product(bits: int, group: int, minimum: bool, inputs: str) -> Graph:
    """A linear of 53 channels and 96 inputs, in groups, whose inputs are rounded by ``inputs``."""
    n, k, rng = 53, 96, np.random.default_rng((bits, group))
    scale = (rng.integers(-99, 100, (n, k // group)) / 1024).astype(np.float16)
    values = rng.integers(0, 1 << bits, (n, k)).astype(np.uint8)
    params = {"w.weight": values if bits < 8 else values.view(np.int8).clip(-127), "w.scale": scale}
    if bits < 8:
        params["w.codebook"] = np.arange(1 << bits).astype(np.int8) - np.int8(1 << (bits - 1))
    if minimum:
        params["w.minimum"] = scale[::-1].copy()
    facts = {"format": f"i{bits}", "n": n, "k": k, "group": group, "inputs": inputs, "scales": "f16"}
    return Graph(
        domains=[{"name": "rows", "kind": "ragged", "max_rows": 64}],
        inputs=[{"name": "x", "domain": "rows", "dtype": "f32", "width": k}],
        weights={"w": facts},
        states=[],
        ops=[{"op": "linear", "in": "x", "out": "y", "weight": "w"}],
        output="y",
        params=params,
    )


def _grouped(isa: str) -> Iterator[tuple[str, str]]:
    """Products of a repacked file's weights, of many rows and of one."""
    for bits, group in ((4, 32), (5, 32), (6, 16), (8, 32)):
        for inputs in ("group", "half_group") if group > 16 else ("group",):
            session = _core.Session(program(grouped_product(bits, group, bits != 8, inputs), isa))
            x = Numbers(bits).standard_normal((19, 96))
            results = [session.run({"x": x[:rows], "rows": np.array([0, rows])}) for rows in (19, 1)]
            yield f"{bits} bits in groups of {group}, inputs by {inputs}", digest(*results)


def graph_digests(isa: str) -> dict[str, str]:
    result = dict(_grouped(isa))
    for name, graph in graphs():
        chosen = {"selected": np.arange(0, sum(LENGTHS), 7)} if name.startswith("words") else {}
        result[name] = digest(_core.Session(program(graph, isa)).run(batch(LENGTHS) | chosen, threads=2))
    return result


def minilm_digest(path: Path, count: int = MINILM_TEXTS) -> str:
    """Of the embeddings of ``count`` real texts by the pocket file ``path``."""
    import pocketformer
    from helpers.corpus import texts

    short = [" ".join(text.split()[:100]) for text in texts()[:count]]
    return digest(pocketformer.load(path).encode(short))


def compress_minilm(weights: str, path: Path) -> None:
    import pocketformer
    from helpers.models import model_folder

    pocketformer.compress(model_folder("minilm"), path, weights=weights, options=NEAREST)


def main() -> None:
    import tempfile

    isa = _core.isas()[0]
    bits: dict[str, Any] = {"kernels": kernel_digests(isa), "graphs": graph_digests(isa), "minilm": {}}
    with tempfile.TemporaryDirectory() as folder:
        for weights in ("fp32", "int8"):
            path = Path(folder) / "minilm.pocket"
            compress_minilm(weights, path)
            for count in (FEW_TEXTS, MINILM_TEXTS):
                bits["minilm"][f"{weights}, {count} texts"] = minilm_digest(path, count)
    print(json.dumps(bits, indent=1))


if __name__ == "__main__":
    main()
