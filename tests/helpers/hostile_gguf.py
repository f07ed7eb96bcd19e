"""Small GGUF files taken apart, and mutations of them: entries that lie, counts that are absurd, bytes that flip."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from pocketformer.sources.gguf_types import NAMES, TYPES

Entry = tuple[bytes, int, bytes]
"""Key, type, and the value's bytes."""
U32, F32, BOOL, STRING, LIST = 4, 6, 7, 8, 9
ALIGNMENT = 32
NUMBERS = (0, 1, 2, 3, 4, 5, 13, 31, 32, 33, 255, 256, 65_535, 65_536, 2**20, 2**31 - 1, 2**31, 2**32 - 1)
HUGE = (*NUMBERS, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


@dataclass(frozen=True)
class Tensor:
    name: bytes
    shape: tuple[int, ...]
    """The innermost dimension first."""
    type: int
    offset: int


@dataclass(frozen=True)
class File:
    entries: tuple[Entry, ...]
    tensors: tuple[Tensor, ...]
    data: bytes
    counts: tuple[int, int] | None = None
    """Of tensors and entries, where they lie."""
    version: int = 3

    def content(self) -> bytes:
        tensors, entries = self.counts or (len(self.tensors), len(self.entries))
        head = b"GGUF" + struct.pack("<IQQ", self.version, tensors, entries)
        head += b"".join(text(key) + struct.pack("<I", kind) + value for key, kind, value in self.entries)
        for tensor in self.tensors:
            count = len(tensor.shape)
            numbers = struct.pack(f"<I{count}QIQ", count, *tensor.shape, tensor.type, tensor.offset)
            head += text(tensor.name) + numbers
        return head.ljust(-(-len(head) // ALIGNMENT) * ALIGNMENT, b"\0") + self.data


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def listed(kind: int, values: list[bytes]) -> bytes:
    return struct.pack("<IQ", kind, len(values)) + b"".join(values)


def decoder(architecture: str, quantized: int, seed: int = 0) -> File:
    """A decoder of one layer whose matrices are of the type ``quantized``, with a vocabulary of ``architecture``."""
    rng = np.random.default_rng(seed)
    hidden = 256 if TYPES[quantized].size == 256 else 32
    pieces = [b"<unk>", b"<s>", b"</s>", *(f"<0x{byte:02X}>".encode() for byte in range(4)), b"a", b"b", b"ab"]
    kinds = [2, 3, 3, 6, 6, 6, 6, 1, 1, 1]
    if architecture == "qwen3":
        pieces, kinds = [b"<s>", "Ġ".encode(), b"a", b"b", b"ab", "Ġa".encode()], [3, 1, 1, 1, 1, 1]
    settings: dict[str, int | float] = {
        **{"block_count": 1, "context_length": 64, "embedding_length": hidden, "feed_forward_length": hidden},
        **{"attention.head_count": 2, "attention.head_count_kv": 1},
        **{"attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 1e4},
    }
    entries: list[Entry] = [(b"general.architecture", STRING, text(architecture.encode()))]
    for key, value in settings.items():
        whole = isinstance(value, int)
        packed = struct.pack("<I" if whole else "<f", value)
        entries.append((f"{architecture}.{key}".encode(), U32 if whole else F32, packed))
    entries += [
        (b"tokenizer.ggml.model", STRING, text(b"gpt2" if architecture == "qwen3" else b"llama")),
        (b"tokenizer.ggml.pre", STRING, text(b"qwen2")),
        (b"tokenizer.ggml.tokens", LIST, listed(STRING, [text(piece) for piece in pieces])),
        (b"tokenizer.ggml.token_type", LIST, listed(5, [struct.pack("<i", kind) for kind in kinds])),
        (b"tokenizer.ggml.scores", LIST, listed(F32, [struct.pack("<f", -i) for i in range(len(pieces))])),
        (b"tokenizer.ggml.merges", LIST, listed(STRING, [text(b"a b"), text("Ġ a".encode())])),
        (b"tokenizer.ggml.bos_token_id", U32, struct.pack("<I", 0 if architecture == "qwen3" else 1)),
        (b"tokenizer.ggml.add_bos_token", BOOL, b"\1"),
    ]
    half = hidden // 2
    matrices = {
        **{"token_embd": len(pieces), "blk.0.attn_q": hidden, "blk.0.attn_k": half, "blk.0.attn_v": half},
        **{"blk.0.attn_output": hidden, "blk.0.ffn_gate": hidden, "blk.0.ffn_up": hidden, "blk.0.ffn_down": hidden},
    }
    norms = {"output_norm": hidden, "blk.0.attn_norm": hidden, "blk.0.ffn_norm": hidden}
    if architecture == "qwen3":
        norms |= {"blk.0.attn_q_norm": half, "blk.0.attn_k_norm": half}
    tensors, data, block = [], b"", TYPES[quantized]
    for name, rows in matrices.items():
        raw = rng.integers(0, 0x3C, rows * hidden // block.size * block.bytes, dtype=np.uint8)  # finite factors
        tensors.append(Tensor(f"{name}.weight".encode(), (hidden, rows), quantized, len(data)))
        data += raw.tobytes().ljust(-(-raw.size // ALIGNMENT) * ALIGNMENT, b"\0")
    for name, length in norms.items():
        tensors.append(Tensor(f"{name}.weight".encode(), (length,), 0, len(data)))
        data += np.ones(length, "<f4").tobytes()
        data = data.ljust(-(-len(data) // ALIGNMENT) * ALIGNMENT, b"\0")
    return File(tuple(entries), tuple(tensors), data)


def changed_entry(file: File, rng: random.Random) -> File:
    """A value of another type, a number that is far away, a text or list that is shorter than it says."""
    index = rng.randrange(len(file.entries))
    key, kind, value = file.entries[index]
    way = rng.randrange(7)
    if way == 0:
        kind = rng.randrange(14)
    elif way == 1 and kind in (U32, F32, 5):
        value = struct.pack("<I", rng.choice(NUMBERS))
    elif way == 2 and len(value) >= 12:
        at = rng.choice((0, 4)) if kind == LIST else 0
        value = value[:at] + struct.pack("<Q", rng.choice(HUGE)) + value[at + 8 :]
    elif way == 3:
        key = rng.choice([other[0] for other in file.entries])
    elif way == 4:
        value = value[: rng.randrange(len(value) + 1)]
    elif way == 5:
        kind, value = rng.choice(VALUES)
    else:
        return replace(file, entries=file.entries[:index] + file.entries[index + 1 :])
    return replace(file, entries=(*file.entries[:index], (key, kind, value), *file.entries[index + 1 :]))


VALUES: tuple[tuple[int, bytes], ...] = (
    *((U32, struct.pack("<I", number)) for number in NUMBERS),
    *((F32, struct.pack("<f", number)) for number in (0.0, -1.0, 1e-45, 3e38, float("inf"), float("nan"))),
    *((10, struct.pack("<Q", number)) for number in HUGE),
    (BOOL, b"\1"),
    (BOOL, b"\2"),
    *((STRING, text(value)) for value in (b"", b"llama", b"qwen3", b"gpt2", b"\xff", b"yarn", b"linear", b"x" * 999)),
    *((LIST, listed(kind, [])) for kind in (U32, STRING, LIST)),
    (LIST, listed(LIST, [listed(LIST, [listed(U32, [])])])),
    (LIST, listed(U32, [b"\0\0\0\0"] * 9)),
)


def added_entry(file: File, rng: random.Random) -> File:
    """A setting that was not there."""
    architecture = file.entries[0][2][8:]
    key = rng.choice(SETTINGS)
    key = architecture + b"." + key if not key.startswith((b"general", b"tokenizer", b"split")) else key
    return replace(file, entries=(*file.entries, (key, *rng.choice(VALUES))))


SETTINGS = (
    *(b"general.alignment", b"split.count", b"tokenizer.chat_template", b"tokenizer.ggml.eos_token_id"),
    *(b"tokenizer.ggml.unknown_token_id", b"tokenizer.ggml.add_space_prefix", b"rope.dimension_count"),
    *(b"attention.key_length", b"attention.value_length", b"attention.sliding_window", b"rope.scaling.type"),
    *(b"rope.scaling.factor", b"rope.scaling.original_context_length", b"expert_count", b"logit_softcapping"),
)


def changed_tensor(file: File, rng: random.Random) -> File:
    """Another name, shape, type or offset."""
    index = rng.randrange(len(file.tensors))
    tensor = file.tensors[index]
    way = rng.randrange(6)
    if way == 0:
        tensor = replace(tensor, name=rng.choice([other.name for other in file.tensors] + [b"x", b"output.weight"]))
    elif way == 1 and tensor.shape:
        shape = list(tensor.shape)
        shape[rng.randrange(len(shape))] = rng.choice(HUGE)
        tensor = replace(tensor, shape=tuple(shape))
    elif way == 2:
        tensor = replace(tensor, shape=rng.choice(((), tensor.shape[:1], tensor.shape[::-1], (*tensor.shape, 1, 1, 1))))
    elif way == 3:
        tensor = replace(tensor, type=rng.choice((*NAMES, 99, 2**32 - 1)))
    elif way == 4:
        tensor = replace(tensor, offset=rng.choice((*HUGE, *(other.offset for other in file.tensors))))
    else:
        return replace(file, tensors=file.tensors[:index] + file.tensors[index + 1 :])
    return replace(file, tensors=(*file.tensors[:index], tensor, *file.tensors[index + 1 :]))


def lying_counts(file: File, rng: random.Random) -> File:
    counts = [len(file.tensors), len(file.entries)]
    counts[rng.randrange(2)] = rng.choice(HUGE)
    return replace(file, counts=(counts[0], counts[1]), version=rng.choice((3, 3, 3, 2, 1, 3 << 24)))


def other_data(file: File, rng: random.Random) -> File:
    data = bytearray(file.data)
    for _ in range(rng.choice((1, 2, 8, 64))):
        data[rng.randrange(len(data))] = rng.choice((0, 0x7C, 0x7F, 0x80, 0xFC, 0xFF))
    return replace(file, data=bytes(data))


STRUCTURED: tuple[Callable[[File, random.Random], File], ...] = (
    *(changed_entry, changed_entry, added_entry, changed_tensor, changed_tensor, lying_counts, other_data),
)


def flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.choice((37, rng.randrange(64), rng.randrange(len(content))))]


def overwritten(content: bytes, rng: random.Random) -> bytes:
    """Eight bytes of the header are a number that is far away."""
    at = rng.randrange(min(len(content) - 8, 1500))
    return content[:at] + struct.pack("<Q", rng.choice(HUGE)) + content[at + 8 :]


def mutated(file: File, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if file.entries and file.tensors:
            file = rng.choice(STRUCTURED)(file, rng)
    content = file.content()
    return rng.choice((flipped, cut, overwritten))(content, rng) if rng.random() < 0.35 else content
