"""Two thousand texts that tokenizers disagree on: scripts, marks, emoji, controls, special tokens, endless words."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path

_DATA = Path(__file__).parents[1] / "data"

# First and last character, and how often the range is drawn.
_RANGES = (
    *((0x20, 0x7E, 8), (0xA0, 0x17F, 4), (0x180, 0x24F, 1), (0x300, 0x36F, 2), (0x370, 0x3FF, 2), (0x400, 0x4FF, 2)),
    *((0x531, 0x587, 1), (0x591, 0x5F4, 1), (0x600, 0x6FF, 2), (0x900, 0x97F, 3), (0x980, 0x9FF, 1), (0xB80, 0xBFF, 1)),
    *(
        (0xC00, 0xC7F, 2),
        (0xC80, 0xCFF, 2),
        (0xE01, 0xE5B, 1),
        (0x10A0, 0x10FF, 1),
        (0x1100, 0x11FF, 1),
        (0x1200, 0x137F, 1),
    ),
    *((0x1E00, 0x1FFF, 2), (0x2000, 0x206F, 2), (0x2070, 0x218F, 1), (0x2200, 0x22FF, 1), (0x2600, 0x27BF, 1)),
    *((0x3000, 0x30FF, 2), (0x4E00, 0x4FFF, 3), (0xAC00, 0xADFF, 1), (0xF900, 0xFAFF, 1), (0xFB00, 0xFDFF, 1)),
    *((0xFE00, 0xFE0F, 1), (0xFF00, 0xFFEF, 1), (0x1D400, 0x1D7FF, 1), (0x1F300, 0x1F64F, 2), (0x20000, 0x200FF, 1)),
    *((0x00, 0x1F, 1), (0x7F, 0x9F, 1)),
)
_WORDS = (
    *("the", "The", "house", "HOUSE", "was", "sold", "in", "Berlin", "café", "running", "unbelievable", "12", "3.5"),
    *("नमस्ते", "हिन्दी", "తెలుగు", "ಕನ್ನಡ", "東京", "中国", "한국", "Москва", "Ελλάδα", "👍🏽", "don't", "naïve"),
    *("[MASK]", "<mask>", "[SEP]", "</s>", "<s>", "[CLS]", "<pad>", "[PAD]", "[UNK]", "<unk>"),
)


@cache
def odd_texts(count: int = 2000) -> list[str]:
    """``count`` texts, the same on every machine; none holds a lone surrogate."""
    rng = random.Random(10)
    texts: list[str] = json.loads((_DATA / "odd_texts.json").read_text())
    weights = [weight for _, _, weight in _RANGES]
    while len(texts) < count:
        parts = []
        for _ in range(rng.randint(1, 9)):
            if rng.random() < 0.5:
                parts.append(rng.choice(_WORDS))
                continue
            low, high, _ = rng.choices(_RANGES, weights)[0]
            parts.append("".join(chr(rng.randint(low, high)) for _ in range(rng.choice((1, 1, 2, 3, 5, 8, 20)))))
        texts.append(rng.choice(("", " ", " ", " ", "  ", "\n")).join(parts))
    return texts
