"""Runs forward passes by the million and watches the memory of the process.

    python scripts/soak.py [FORWARDS]

Three tiny models (int8 and fp32, embeddings and masked words) take turns; lengths, batches and numbers of threads vary,
sessions come and go, and every result is compared with the first one of its input. Prints a JSON object; exits with 1
when a result differs or the resident memory grew. Needs the tests' folder beside it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

import numpy as np

from helpers.programs import batch, encoder, program
from pocketformer import _core

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
    settled = sizes[int(len(sizes) * WARM) :]
    return {
        "forwards": forwards,
        "seconds": round(time.monotonic() - begin, 1),
        "wrong": wrong,
        "rss_after_warm_up": settled[0],
        "rss_most": max(settled),
        "rss_end": settled[-1],
        "flat": max(settled) - settled[0] <= SLACK,
    }


if __name__ == "__main__":
    result = soak(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
    print(json.dumps(result, indent=1))
    sys.exit(not result["flat"] or result["wrong"] != 0)
