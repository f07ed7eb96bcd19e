"""One small class for each runtime, all with the same interface, each set up for latency as its users would.

A runner takes token ids and returns mean-pooled, L2-normalised embeddings. Pooling is part of the graph where the
runtime executes graphs, and numpy otherwise. Heavy packages are imported in ``load``: naming a runner costs nothing.
"""

from __future__ import annotations

import importlib.util
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bench.peers.machine import describe

Embeddings = NDArray[np.float32]


class Runner:
    """A runtime with one file (or folder) of the model; ``file`` is relative to the folder that prepare.py fills."""

    name: ClassVar[str]
    package: ClassVar[str]
    file: ClassVar[str]

    @property
    def version(self) -> str:
        return version(self.package)

    def missing(self, cache: Path) -> str | None:
        """Why this runner cannot run here, or None when it can."""
        if importlib.util.find_spec(self.package) is None:
            return f"the package {self.package} is not installed"
        if not (cache / self.file).exists():
            return f"{cache / self.file} does not exist: run python -m bench.peers.prepare"
        return None

    def load(self, cache: Path, threads: int) -> None:
        raise NotImplementedError

    def run(self, ids: list[list[int]]) -> Embeddings:
        """Embeddings [sequences, width] of ``ids``, float32, rows of length 1."""
        raise NotImplementedError


def padded(ids: list[list[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids and attention mask, both [sequences, longest]; the padding is 0 in both."""
    tokens = np.zeros((len(ids), max(map(len, ids))), np.int64)
    mask = np.zeros_like(tokens)
    for row, sequence in enumerate(ids):
        tokens[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return tokens, mask


def pooled(hidden: NDArray[np.float32], lengths: list[int]) -> Embeddings:
    """Mean over each sequence's tokens, L2-normalised: [sequences, longest, width] → [sequences, width]."""
    mean = np.stack([rows[:length].mean(axis=0) for rows, length in zip(hidden, lengths, strict=True)])
    return np.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True), np.float32)


class Pocketformer(Runner):
    package = "pocketformer"

    def load(self, cache: Path, threads: int) -> None:
        import pocketformer

        self._model = pocketformer.load(cache / self.file, threads=threads)

    def run(self, ids: list[list[int]]) -> Embeddings:
        return np.asarray(self._model(ids), np.float32)


class PocketformerInt8(Pocketformer):
    name, file = "pocketformer-int8", "int8.pocket"


class PocketformerFp32(Pocketformer):
    name, file = "pocketformer-fp32", "fp32.pocket"


class OnnxRuntime(Runner):
    package = "onnxruntime"

    def load(self, cache: Path, threads: int) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        self._session = ort.InferenceSession(cache / self.file, options, providers=["CPUExecutionProvider"])

    def run(self, ids: list[list[int]]) -> Embeddings:
        tokens, mask = padded(ids)
        feed = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": np.zeros_like(tokens)}
        return np.asarray(self._session.run(None, feed)[0], np.float32)


class OnnxRuntimeInt8(OnnxRuntime):
    name, file = "onnxruntime-int8", "onnx/int8.onnx"


class OnnxRuntimeFp32(OnnxRuntime):
    name, file = "onnxruntime-fp32", "onnx/fp32.onnx"


class OpenVino(Runner):
    package = "openvino"
    config: ClassVar[dict[str, Any]] = {}

    def load(self, cache: Path, threads: int) -> None:
        import openvino as ov

        settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads, **self.config}
        self._request = ov.Core().compile_model(cache / self.file, "CPU", settings).create_infer_request()

    def run(self, ids: list[list[int]]) -> Embeddings:
        tokens, mask = padded(ids)
        feed = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": np.zeros_like(tokens)}
        # share_outputs returns a view of the request's own buffer, which the next call overwrites.
        return np.array(self._request.infer(feed, share_inputs=True, share_outputs=True)[0], np.float32)


class OpenVinoInt8(OpenVino):
    """As OpenVINO runs it unasked: what is not int8 is computed in bf16 where the CPU has it."""

    name, file = "openvino-int8", "openvino/int8.xml"


class OpenVinoInt8Fp32(OpenVinoInt8):
    """The same file with the rest held to fp32, which is faster for short inputs."""

    name = "openvino-int8-f32"
    config: ClassVar[dict[str, Any]] = {"INFERENCE_PRECISION_HINT": "f32"}


class OpenVinoInt8Sdpa(OpenVinoInt8):
    """Exported with fused attention."""

    name, file = "openvino-int8-sdpa", "openvino/int8-sdpa.xml"


class OpenVinoInt8SdpaFp32(OpenVinoInt8Fp32):
    name, file = "openvino-int8-sdpa-f32", "openvino/int8-sdpa.xml"


class OpenVinoFp32(OpenVino):
    """Held to fp32: where the CPU has bf16 instructions OpenVINO would otherwise compute in bf16."""

    name, file = "openvino-fp32", "openvino/fp32.xml"
    config: ClassVar[dict[str, Any]] = {"INFERENCE_PRECISION_HINT": "f32"}


class CTranslate2(Runner):
    package = "ctranslate2"
    compute_type: ClassVar[str]

    def load(self, cache: Path, threads: int) -> None:
        # Of itself CTranslate2 takes its AVX-512 kernels on Intel's CPUs only.
        if "avx512_vnni" in describe()["features"].split():
            os.environ["CT2_FORCE_CPU_ISA"] = "AVX512"

        import ctranslate2

        self._encoder = ctranslate2.Encoder(
            str(cache / self.file), compute_type=self.compute_type, inter_threads=1, intra_threads=threads
        )

    def run(self, ids: list[list[int]]) -> Embeddings:
        hidden = np.asarray(self._encoder.forward_batch(ids).last_hidden_state)
        return pooled(hidden, [len(sequence) for sequence in ids])


class CTranslate2Int8(CTranslate2):
    name, file, compute_type = "ctranslate2-int8", "ctranslate2/int8", "int8"


class CTranslate2Fp32(CTranslate2):
    name, file, compute_type = "ctranslate2-fp32", "ctranslate2/fp32", "float32"


class TorchFp32(Runner):
    name, package, file = "torch-fp32", "torch", "huggingface"

    def load(self, cache: Path, threads: int) -> None:
        import torch
        from transformers import AutoModel

        torch.set_num_threads(threads)
        self._model = AutoModel.from_pretrained(cache / self.file, dtype=torch.float32).eval()

    def run(self, ids: list[list[int]]) -> Embeddings:
        import torch

        tokens, mask = padded(ids)
        lengths = [len(sequence) for sequence in ids]
        # Without padding no mask is needed, and attention takes its faster path.
        attention_mask = None if mask.all() else torch.from_numpy(mask)
        with torch.inference_mode():
            hidden = self._model(input_ids=torch.from_numpy(tokens), attention_mask=attention_mask).last_hidden_state
        return pooled(hidden.numpy(), lengths)


RUNNERS: dict[str, type[Runner]] = {
    runner.name: runner
    for runner in (
        PocketformerInt8,
        PocketformerFp32,
        OnnxRuntimeInt8,
        OnnxRuntimeFp32,
        OpenVinoInt8,
        OpenVinoInt8Fp32,
        OpenVinoInt8Sdpa,
        OpenVinoInt8SdpaFp32,
        OpenVinoFp32,
        CTranslate2Int8,
        CTranslate2Fp32,
        TorchFp32,
    )
}
