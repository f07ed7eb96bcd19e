"""The child process of ``bench.peers.shapes``, driven by JSON lines: ``… RUNTIME FOLDER THREADS``; and its shapes."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.peer import ROOT
from bench.peers.prepare import Feed, onnx_session, openvino_request
from pocketformer.perf.measure import peak_rss

Call = Callable[[Feed], Any]
VIT = {"model_type": "vit", "num_labels": 1000}


@dataclass(frozen=True)
class Shape:
    """One model: the keys of its config, and the class of transformers that has these weights: none of EfficientFormer,
    whose definition is that of the tests."""

    config: dict[str, Any]
    auto: str
    side: int = 0
    """Pixels of a side of the image; 0: a model of texts."""

    @property
    def convolves(self) -> bool:
        return self.config["model_type"] in ("mobilevit", "efficientformer")

    def feed(self, batch: int, tokens: int) -> Feed:
        """What the other runtimes are given: pixels [batch, 3, side, side] or ids [batch, tokens]."""
        rng = np.random.default_rng(0)
        if self.side:
            return {"pixel_values": rng.standard_normal((batch, 3, self.side, self.side), np.float32)}
        return {"input_ids": rng.integers(5, self.config["vocab_size"], (batch, tokens))}


def vit(width: int, layers: int, heads: int, patch: int = 16, ffn: int = 0) -> Shape:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    more = {"patch_size": patch, "image_size": 224, "intermediate_size": ffn or 4 * width}
    return Shape(VIT | sizes | more, "AutoModelForImageClassification", 224)


def mobilevit(hidden: list[int], neck: list[int]) -> Shape:
    config = {"model_type": "mobilevit", "hidden_sizes": hidden, "neck_hidden_sizes": neck, "num_labels": 1000}
    return Shape(config | {"image_size": 256}, "AutoModelForImageClassification", 256)


DINO = {"model_type": "dinov2", "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}
EFFICIENT = {"model_type": "efficientformer", "depths": [3, 2, 6, 4], "hidden_sizes": [48, 96, 224, 448], "dim": 448}
EFFICIENT |= {"key_dim": 32, "attention_ratio": 4, "resolution": 7, "num_attention_heads": 8, "num_meta3d_blocks": 1}
MODERN = {"model_type": "modernbert", "vocab_size": 50368, "max_position_embeddings": 8192, "num_hidden_layers": 22}
SHAPES = {
    "deit-tiny": vit(192, 12, 3),
    "deit-small": vit(384, 12, 6),
    "vit-base": vit(768, 12, 12),
    "vit-huge": vit(1280, 32, 16, patch=14, ffn=5120),
    "dinov2-small": Shape(DINO | {"patch_size": 14, "image_size": 224}, "AutoModel", 224),
    "mobilevit-small": mobilevit([144, 192, 240], [16, 32, 64, 96, 128, 160, 640]),
    "mobilevit-xsmall": mobilevit([96, 120, 144], [16, 32, 48, 64, 80, 96, 384]),
    "efficientformer-l1": Shape(EFFICIENT, "", 224),
    "modernbert-base": Shape(MODERN, "AutoModel"),
}


def new_model(shape: Shape) -> Any:
    """With random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    settings = dict(shape.config)
    if not shape.auto:
        return efficientformer(settings)
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    return getattr(transformers, shape.auto).from_config(config)


def efficientformer(settings: dict[str, Any]) -> Any:
    """The model that the tests define, called as those of transformers are."""
    sys.path.insert(0, str(ROOT / "tests"))
    twin: Any = importlib.import_module("helpers.efficientformer")

    class Named(twin.EfficientFormer):  # type: ignore[misc]
        def forward(self, pixel_values: Any) -> tuple[Any]:
            return (super().forward(pixel_values).logits,)

        def save_pretrained(self, folder: Path) -> None:
            self.save(folder)

    return Named(1, **settings)


def torch_model(shape: Shape, folder: Path) -> Any:
    import torch
    import transformers
    from safetensors.torch import load_file

    if not shape.auto:
        model = efficientformer(dict(shape.config))
        model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)  # but for counts of batches
        return model.eval()
    auto = getattr(transformers, shape.auto)
    return auto.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention(shape, "sdpa")).eval()


def attention(shape: Shape, wanted: str) -> str:
    return "eager" if shape.convolves else wanted


def ours(path: Path, threads: int) -> Call:
    from pocketformer.engine import Engine

    engine = Engine(path, threads)

    def call(feed: Feed) -> Any:
        if "pixel_values" in feed:
            return engine.run_inputs(
                {"pixels": np.ascontiguousarray(feed["pixel_values"].transpose(0, 2, 3, 1).reshape(-1, 3))}
            )
        return engine.run([ids.astype(np.int32) for ids in feed["input_ids"]])

    return call


def torch_fp32(path: Path, threads: int) -> Call:
    import torch

    torch.set_num_threads(threads)
    model = torch_model(SHAPES[path.parent.name], path.parent)

    def call(feed: Feed) -> Any:
        with torch.inference_mode():
            return model(**{key: torch.from_numpy(value) for key, value in feed.items()})

    return call


RUNTIMES: dict[str, tuple[Callable[[Path, int], Call], str]] = {
    "pocketformer int8, bounded pairs": (ours, "bounded.pocket"),
    "pocketformer int8": (ours, "int8.pocket"),
    "pocketformer fp32": (ours, "fp32.pocket"),
    "OpenVINO int8": (openvino_request, "int8.xml"),
    "ONNX Runtime int8": (onnx_session, "int8.onnx"),
    "ONNX Runtime fp32": (onnx_session, "fp32.onnx"),
    "torch fp32": (torch_fp32, "config.json"),
}


def measure(call: Call, feed: Feed, seconds: float, warm: bool = True) -> list[float]:
    """Seconds of each call, after one that is not counted unless not to ``warm``, for so many ``seconds``."""
    if warm:
        call(feed)
    times: list[float] = []
    while not times or sum(times) < seconds:
        begin = time.perf_counter()
        call(feed)
        times.append(time.perf_counter() - begin)
    return times


def main() -> None:
    runtime, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    # Libraries print to standard output: the replies get a descriptor of their own.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    load, file = RUNTIMES[runtime]
    call = load(folder / file, threads)
    print(json.dumps("loaded"), file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        batch, tokens, seconds = request["measure"]
        times = measure(call, SHAPES[folder.name].feed(batch, tokens), seconds, request["warm"])
        print(json.dumps({"times": times, "peak_rss_bytes": peak_rss()}), file=replies, flush=True)


if __name__ == "__main__":
    main()
