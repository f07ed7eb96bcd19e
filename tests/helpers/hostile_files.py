"""Mutations of pocket and safetensors files: cut, bits flipped, a header that lies."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

LIES: list[Any] = [
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2,
        3,
        15,
        16,
        17,
        63,
        64,
        65,
        255,
        256,
        257,
        2**31 - 1,
        2**31,
        2**32,
        2**63,
        2**64,
        10**40,
    ),
    *(0.5, -0.5, 1e38, 1e39, 1e308, "", "x", "ids", "int8", "fp32", "F32", "I8", "tokens", [], [0], [[]], {}, {"a": 1}),
]


def header_end(content: bytes) -> int:
    return 8 + int(struct.unpack("<Q", content[:8])[0])


def truncate(content: bytes, rng: random.Random) -> bytes:
    end = rng.choice((len(content), header_end(content), 64))
    return content[: rng.randrange(end)]


def flip_header(content: bytes, rng: random.Random) -> bytes:
    return flip(content, rng, 0, header_end(content))


def flip_data(content: bytes, rng: random.Random) -> bytes:
    return flip(content, rng, header_end(content), len(content))


def flip(content: bytes, rng: random.Random, begin: int, end: int) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(begin, end)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def lie_in_entry(content: bytes, rng: random.Random) -> bytes:
    """One number, name or list in one tensor's entry is another."""
    header = json.loads(content[8 : header_end(content)])
    name = rng.choice([name for name in header if name != "__metadata__"])
    lie(header[name], rng)
    return rebuilt(header, content)


def lie_in_metadata(content: bytes, rng: random.Random) -> bytes:
    """One value of the graph, or of the model's or the text's description, is another."""
    header = json.loads(content[8 : header_end(content)])
    metadata = header["__metadata__"]
    key = rng.choice(("graphs", "graphs", "graphs", "weights", "states", "model", "text"))
    described = json.loads(metadata[key])
    lie(described, rng)
    metadata[key] = json.dumps(described)
    return rebuilt(header, content)


def lie(record: Any, rng: random.Random) -> None:
    """Replaces, removes, doubles or swaps one thing somewhere below ``record``."""
    keys = list(record) if isinstance(record, dict) else list(range(len(record)))
    if not keys:
        return
    key = rng.choice(keys)
    if isinstance(record[key], dict | list) and record[key] and rng.random() < 0.8:
        lie(record[key], rng)
        return
    action = rng.randrange(6)
    if action == 0:
        del record[key]
    elif action == 1:
        record[key], record[other] = record[other := rng.choice(keys)], record[key]
    elif action == 2 and isinstance(record, list):
        record.append(record[key])
    elif action == 3 and isinstance(record[key], int):
        record[key] += rng.choice((-1, 1, 16, 64, 2**31))
    else:
        record[key] = rng.choice(LIES)


def rebuilt(header: dict[str, Any], content: bytes) -> bytes:
    encoded = json.dumps(header).encode()
    encoded = encoded.ljust(-(-(8 + len(encoded)) // 64) * 64 - 8)
    return struct.pack("<Q", len(encoded)) + encoded + content[header_end(content) :]


MUTATIONS = (truncate, flip_header, flip_data, lie_in_entry, lie_in_metadata)
PAST_MUTATING = (ValueError, LookupError, AttributeError, TypeError, OverflowError, struct.error)
"""What a mutation raises when earlier ones left no header to read."""
