"""Runs forward passes by the million, or writes texts by the thousand, and watches the memory of the process.

    python scripts/soak.py [FORWARDS]
    python scripts/soak.py --texts [TEXTS]

Three tiny models (int8 and fp32, embeddings and masked words) take turns; lengths, batches and numbers of threads vary,
sessions come and go, and every result is compared with the first one of its input. With ``--texts`` a tiny decoder
writes on eight threads at once; two texts of three are given up somewhere, closed or just dropped, and the third is
compared with what its seed wrote alone. Prints a JSON object; exits with 1 when a result differs or the resident memory
grew. Needs the tests' folder beside it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

import numpy as np

from helpers.graphs import MODEL, TEXT, tiny_decoder
from helpers.programs import batch, encoder, program
from pocketformer import _core
from pocketformer.packing import pack_graph
from pocketformer.pocketfile import write_pocket
from pocketformer.tasks.generate import Generator

SMALL = {"heads": 2, "kv_heads": 2, "head_dim": 8, "hidden": 16, "ffn": 32, "layers": 2}
SHAPES = ((1,), (3, 1), (16,), (40, 2), (7, 7, 7, 7))
WARM = 0.1
"""Part of the run after which memory may not grow any more."""
SLACK = 1 << 20
"""Bytes that the allocator's own bookkeeping may wander by."""


def resident() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * 4096


def soak(forwards: int, samples: int = 200) -> dict[str, object]:
    """Resident bytes after the warm-up and at the end, the most in between, and how many results were wrong."""
    kinds = [("int8", "embed"), ("fp32", "embed"), ("int8", "fill_mask")]
    programs = [program(encoder(weights, task=task, **SMALL)) for weights, task in kinds]
    inputs = [batch(lengths, seed=seed) for seed, lengths in enumerate(SHAPES)]
    rows = np.array([0], np.int64)
    sessions = [_core.Session(compiled) for compiled in programs]
    expected: dict[tuple[int, int], bytes] = {}
    sizes: list[int] = []
    wrong, begin = 0, time.monotonic()
    for index in range(forwards):
        which, shape = index % len(programs), index // len(programs) % len(SHAPES)
        if index % 10_000 == which:
            sessions[which] = _core.Session(programs[which])
        chosen = rows if programs[which].output_kind == "selected" else None
        result = sessions[which].run({**inputs[shape], "selected": chosen}, 1 + index % 97 // 96).tobytes()
        wrong += expected.setdefault((which, shape), result) != result
        if index % max(1, forwards // samples) == 0:
            sizes.append(resident())
    sizes.append(resident())
    return {"forwards": forwards, **judged(sizes, wrong, begin)}


def soak_texts(texts: int, threads: int = 8, samples: int = 200) -> dict[str, object]:
    """As :func:`soak`, of texts of up to 40 tokens."""
    prompts = [[5, 7, 11], [5, 7, 11, 13, 17], [19, 3]]
    sizes: list[int] = []
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "decoder.pocket"
        graph = tiny_decoder(windows=(-1, 8))
        words = {f"word{at}": at for at in range(graph.vocab_size)}
        words_json = json.dumps({"model": {"type": "WordLevel", "vocab": words, "unk_token": "word0"}}).encode()
        text = {
            **TEXT,
            "max_length": graph.max_length,
            "end_token_ids": [0],
            "sampling": {},
            "chat_template": None,
            "special_tokens": {},
        }
        write_pocket(path, pack_graph(graph), {**MODEL, "task": "generate"}, text, words_json)
        model = Generator.load(path, 1)
        expected = {seed: write(model, prompts, seed, 40) for seed in range(2 * len(prompts))}

        def some(index: int) -> int:
            """1 where a whole text is not the one expected."""
            draw = random.Random(index)
            seed = draw.randrange(len(expected))
            if index % 3 == 0:
                return write(model, prompts, seed, 40) != expected[seed]
            stream = model.generate(prompts[seed % len(prompts)], 40, temperature=1.0, seed=seed, stream=True)
            for _ in zip(range(draw.randrange(40)), stream, strict=False):
                pass
            if index % 3 == 1:
                stream.close()
            return 0

        wrong = 0
        step = max(threads, texts // samples)
        with ThreadPoolExecutor(threads) as pool:
            for first in range(0, texts, step):
                wrong += sum(pool.map(some, range(first, min(first + step, texts))))
                sizes.append(resident())
    return {"texts": texts, **judged(sizes, wrong, begin)}


def write(model: Generator, prompts: list[list[int]], seed: int, tokens: int) -> str:
    return "".join(model.generate(prompts[seed % len(prompts)], tokens, temperature=1.0, seed=seed, stream=True))


def judged(sizes: list[int], wrong: int, begin: float) -> dict[str, object]:
    settled = sizes[int(len(sizes) * WARM) :]
    return {
        "seconds": round(time.monotonic() - begin, 1),
        "wrong": wrong,
        "rss_after_warm_up": settled[0],
        "rss_most": max(settled),
        "rss_end": settled[-1],
        "flat": max(settled) - settled[0] <= SLACK,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, nargs="?", help="default: 1,000,000 forward passes or 10,000 texts")
    parser.add_argument("--texts", action="store_true", help="texts instead of forward passes")
    arguments = parser.parse_args()
    run, count = (soak_texts, 10_000) if arguments.texts else (soak, 1_000_000)
    result = run(arguments.count or count)
    print(json.dumps(result, indent=1))
    sys.exit(not result["flat"] or result["wrong"] != 0)


if __name__ == "__main__":
    main()
