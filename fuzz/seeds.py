"""Small valid files to begin with.

    python fuzz/seeds.py FOLDER

writes those of each Python fuzzer to FOLDER/TARGET.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from helpers import hostile_gguf
from helpers.graphs import MODEL, TEXT, tiny_graph
from pocketformer import attentions
from pocketformer.compression import compress
from pocketformer.compression.halting import halt_tokens
from pocketformer.compression.merging import merge_tokens
from pocketformer.compression.quantize import quantize_graph
from pocketformer.graph import Array, BlockSparse, Graph, GraphBuilder, Table
from pocketformer.packing import pack_graph
from pocketformer.pocketfile import write_pocket

WORDS = ("[UNK]", "[CLS]", "[SEP]", "a", "cat", "sat", "##s", "A")
SMALL = {"heads": 2, "kv_heads": 1, "head_dim": 5, "hidden": 12, "ffn": 9, "layers": 1, "vocab": 20, "max_length": 8}


def tokenizers() -> list[bytes]:
    """One tokenizer.json for each kind of model."""
    vocab = {word: index for index, word in enumerate(WORDS)}
    models = (
        {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "vocab": vocab},
        {"type": "WordLevel", "unk_token": "[UNK]", "vocab": vocab},
        {"type": "BPE", "vocab": vocab | {"ca": 8, "t": 9, "c": 10}, "merges": ["c a", "ca t"], "unk_token": "[UNK]"},
        {"type": "Unigram", "unk_id": 0, "vocab": [[word, -float(index)] for index, word in enumerate(WORDS)]},
    )
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    pieces = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    rest = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 0, "content": "[UNK]", **special}, {"id": 1, "content": "[CLS]", **special}],
        "normalizer": {
            "type": "BertNormalizer",
            **{"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
        },
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "BertPreTokenizer"}, {"type": "Whitespace"}]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": pieces,
            "pair": [*pieces, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [1], "tokens": ["[CLS]"]}},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    }
    return [json.dumps(rest | {"model": model}).encode() for model in models]


def pocket_files() -> list[bytes]:
    contents = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seed.pocket"
        for weights, bits in (("int8", 8), ("int4", 4), ("fp16", 16), ("fp32", 32)):
            for task in ("embed", "fill_mask"):
                graph = tiny_graph(task=task, relative=task == "fill_mask", **SMALL)
                packed = pack_graph(quantize_graph(graph, linear_bits=bits) if bits < 32 else graph)
                write_pocket(path, packed, MODEL | {"weights": weights, "task": task}, TEXT, tokenizers()[0])
                contents.append(path.read_bytes())
            for graph in (grids(), patterns(), forms(), merge_tokens(images(), 1), halt_tokens(images(), 3.0, -1.0)):
                packed = pack_graph(quantize_graph(graph, linear_bits=bits) if bits < 32 else graph)
                write_pocket(path, packed, MODEL | {"weights": weights, "task": "features"}, TEXT, None)
                contents.append(path.read_bytes())
        for index, file in enumerate(gguf_files()):
            source = Path(folder) / f"{index}.gguf"
            source.write_bytes(file.content())
            compress(source, path, weights="gguf")
            contents.append(path.read_bytes())
    return contents


def normals(seed: int) -> Callable[..., Array]:
    """Random arrays of the shapes that it is called with."""
    rng = np.random.default_rng(seed)
    return lambda *shape: rng.standard_normal(shape).astype(np.float32)


def grids() -> Graph:
    """Every operator over grids, then rows that are prepended."""
    normal = normals(1)
    build = GraphBuilder([{"name": "pixels", "kind": "grid", "height": 4, "width": 6}])
    build.inputs.append({"name": "image", "domain": "pixels", "dtype": "f32", "width": 3})
    x = build.linear(build.unfold("image", "pixels", height=3, width=3, padding=1), normal(16, 27), name="first")
    halves = build.domain("halves", "grid", "pixels", height=2, width=3)
    x = build.depthwise(x, normal(4, 16), normal(16), halves, name="taps", height=2, width=2, stride=2)
    x = build.resize(build.fold(x, "pixels", height=2, width=2), halves)
    x = build.linear(build.softcap(x, 2.0), normal(16, 4), name="second")
    longer = build.domain("longer", "ragged", "halves", prepended=2)
    return build.build(build.pool(build.prepend(x, normal(2, 16), longer, name="token"), "max", longer))


def patterns() -> Graph:
    """Attention with positions that turn, capped scores, and rows that are global."""
    normal = normals(2)
    build = GraphBuilder.text(20, 1, 8)
    x = build.embed([Table("words", normal(20, 32), "ids")], scale=2.0)
    turns = ("rope", np.linspace(1, 0.01, 4, dtype=np.float32), 1.0)
    for name, options in (
        ("a", {"left": 2, "softcap": 3.0, "rope": turns}),
        ("b", {"left": 1, "right": 1, "globals": 2}),
        ("c", {"blocks": BlockSparse(2, window=0, repeats=1, dense=3)}),
    ):
        qkv = build.linear(x, normal(32, 32), name=f"{name}.qkv")
        mixed = build.attention(qkv, heads=2, kv_heads=1, head_dim=8, **options)
        x = build.linear(mixed, normal(32, 16), name=f"{name}.out", residual=x)
    return build.build(x)


def forms() -> Graph:
    """Attention that is not that of queries to all keys, one form after the other."""
    normal = normals(3)
    build = GraphBuilder.text(20, 1, 8)
    x = build.embed([Table("words", normal(20, 32), "ids")])
    x = attentions.linformer(build, x, x, x, normal(3, 8), normal(2, 3, 8), heads=2, name="projected")
    x = attentions.performer(build, x, x, x, normal(16, 16), heads=2, name="features", causal=True)
    x = build.convolve(x, normal(3, 32), name="taps", residual=x)
    x = attentions.nystrom(build, x, x, x, heads=2, landmarks=3)
    padded = build.domain("padded", "grid", "tokens", height=1, width=9)
    x = build.fit(build.fit(x, padded, ("filling", normal(32))), "tokens")
    return build.build(attentions.random_synthesizer(build, x, normal(2, 8, 8), name="learnt"))


def images() -> Graph:
    """Two layers over a row for each pixel, behind one more, in which tokens may merge or leave."""
    normal = normals(4)
    build = GraphBuilder([{"name": "image", "kind": "grid", "height": 2, "width": 3}])
    build.inputs.append({"name": "pixels", "domain": "image", "dtype": "f32", "width": 3})
    x = build.linear(build.unfold("pixels", "image", height=1, width=1), normal(16, 3), name="patches")
    x = build.prepend(x, normal(1, 16), build.domain("tokens", "ragged", "image", prepended=1), name="first")
    for name in ("a", "b"):
        normed = build.norm(x, normal(16), name=f"{name}.norm", eps=1e-5)
        mixed = build.attention(build.linear(normed, normal(48, 16), name=f"{name}.qkv"), heads=2, head_dim=8)
        x = build.linear(mixed, normal(16, 16), name=f"{name}.out", residual=x)
        up = build.linear(x, normal(16, 16), name=f"{name}.up", activation="gelu")
        x = build.linear(up, normal(16, 16), name=f"{name}.down", residual=x)
    return build.build(build.pool(x, "cls"))


def safetensors_files() -> list[bytes]:
    rng = np.random.default_rng(0)
    tensors = {
        f"layer.{i}": rng.standard_normal(shape).astype(dtype)
        for i, (shape, dtype) in enumerate((((3, 4), "f4"), ((7,), "f2"), ((0, 5), "f4")))
    }
    plain = save(tensors)
    return [plain, save(tensors | {"ids": np.arange(4)}, {"format": "np"}), plain.replace(b'"F16"', b'"BF16"', 1)]


def gguf_files() -> list[hostile_gguf.File]:
    """A file of each way to store tokens, and of blocks of 32 and of 256."""
    kinds = (("llama", 8), ("llama", 2), ("llama", 12), ("qwen3", 8), ("qwen3", 14))
    return [hostile_gguf.decoder(architecture, kind) for architecture, kind in kinds]


def graphs() -> list[bytes]:
    """What fuzz/decoder.h makes whole graphs of: random bytes, few of them so high that they stand for a lie."""
    rng = random.Random(0)
    contents = []
    for _ in range(60):
        content = bytearray(rng.randrange(232) for _ in range(rng.choice((200, 400, 800))))
        for _ in range(rng.choice((0, 0, 0, 1, 2))):
            content[rng.randrange(len(content))] = rng.randrange(240, 256)
        contents.append(bytes(content))
    return contents


SEEDS = {"program": graphs, "pocket": pocket_files, "safetensors": safetensors_files, "tokenizer": tokenizers}


def write_seeds(folder: Path) -> None:
    for name, make in SEEDS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index, content in enumerate(make()):
            (folder / name / f"seed{index}").write_bytes(content)


if __name__ == "__main__":
    write_seeds(Path(sys.argv[1]))
