"""How much of the memory's bandwidth a decoder beyond every cache uses: ``python -m bench.large_decoder``.

A Llama of 1.1 billion parameters (TinyLlama's shape) whose weights are random integers of 4 bits in groups of 32. Every
token reads all of them but the table's, once: the bytes of that in the time of a token, beside ``probe_bandwidth`` in
the same minute. ``--layers`` makes a smaller one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np

from pocketformer import _core
from pocketformer.compression import compress
from pocketformer.engine import Engine
from pocketformer.fetch import cache_folder
from pocketformer.graph import Array
from pocketformer.perf.decoding import decode, prompt

HIDDEN, HEADS, KV_HEADS, FFN, VOCABULARY, LAYERS = 2048, 32, 4, 5632, 32000, 22
GROUP = 32
BLOCK_BYTES = 2 + GROUP // 2  # of Q4_0: an fp16 scale, then indices of 4 bits, less 8


def matrices(layers: int) -> Iterator[tuple[str, int, int]]:
    """Name, rows and columns of each in a GGUF file."""
    narrow = HIDDEN // HEADS * KV_HEADS
    shapes = {
        "attn_q": (HIDDEN, HIDDEN),
        "attn_k": (narrow, HIDDEN),
        "attn_v": (narrow, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN),
        "ffn_gate": (FFN, HIDDEN),
        "ffn_up": (FFN, HIDDEN),
        "ffn_down": (HIDDEN, FFN),
    }
    yield "token_embd", VOCABULARY, HIDDEN
    yield "output", VOCABULARY, HIDDEN
    for layer in range(layers):
        for name, (rows, columns) in shapes.items():
            yield f"blk.{layer}.{name}", rows, columns


def random_blocks(count: int) -> Array:
    """[count, BLOCK_BYTES]; weights have a standard deviation of about 0.02."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (count, BLOCK_BYTES), np.uint8)
    scales = (0.02 / 4.6 * rng.uniform(0.7, 1.3, count)).astype(np.float16)
    blocks[:, :2] = scales.view(np.uint8).reshape(count, 2)
    return blocks


def write_gguf(path: Path, layers: int) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    numbers = {
        "block_count": layers,
        "context_length": 2048,
        "embedding_length": HIDDEN,
        "feed_forward_length": FFN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "vocab_size": VOCABULARY,
    }
    for name, number in numbers.items():
        writer.add_uint32(f"llama.{name}", number)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32("llama.rope.freq_base", 10000.0)
    blocks = random_blocks(max(rows * columns for _, rows, columns in matrices(layers)) // GROUP)
    for name, rows, columns in matrices(layers):
        data = blocks[: rows * columns // GROUP].reshape(rows, -1)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    for name in ("output_norm", *(f"blk.{i}.{kind}" for i in range(layers) for kind in ("attn_norm", "ffn_norm"))):
        writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def pocket_file(layers: int) -> Path:
    """Made once."""
    target = cache_folder() / "bench" / f"llama-{layers}.4bit.pocket"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        source = target.with_suffix(".gguf")
        write_gguf(source, layers)
        compress(source, target, weights="gguf")
        source.unlink()
    return target


def bytes_of_a_token(engine: Engine) -> int:
    """Of all tensors but the table, of which a token looks up one row: groups' scales too, which ``weight_bytes`` of
    ``perf.measure`` leaves out."""
    return sum(array.nbytes for name, array in engine.file.graph.params.items() if not name.startswith("embed."))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--context", type=int, default=16)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3, help="in which the numbers of threads take turns")
    parser.add_argument("--seconds", type=float, default=1.0, help="of decoding in each round")
    arguments = parser.parse_args()
    path = pocket_file(arguments.layers)
    engines = {threads: Engine(path, threads) for threads in arguments.threads}
    read = bytes_of_a_token(engines[arguments.threads[0]])
    print(f"{path.name}: {path.stat().st_size / 1e6:.0f} MB, of which a token reads {read / 1e6:.0f}\n")
    print("| threads | tokens/s, median | best | GB/s at best | probed GB/s | share |\n|---|---|---|---|---|---|")
    ids = prompt(arguments.context, VOCABULARY)
    for _ in range(arguments.rounds):
        for threads, engine in engines.items():
            probed = max(_core.probe_bandwidth(150, bytes=read, threads=threads) for _ in range(3))
            steps = decode(engine, ids, arguments.seconds)[1]
            rate = read / 1e9 / min(steps)
            speeds = f"{1 / median(steps):.2f} | {1 / min(steps):.2f} | {rate:.1f} | {probed:.1f}"
            print(f"| {threads} | {speeds} | {rate / probed:.0%} |", flush=True)


if __name__ == "__main__":
    main()
