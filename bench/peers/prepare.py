"""Makes every runtime's files of one model: ``python -m bench.peers.prepare MODEL_FOLDER``.

MODEL_FOLDER is a Hugging Face folder of a BERT sentence encoder with mean pooling (all-MiniLM-L6-v2); with
``--bert-base`` only its tokenizer is taken, and the model is a random one of BERT-base's shape. Existing files are kept
(``--force`` makes them anew); what needs an absent package is skipped. Each runtime is given its best: attention as its
fusions expect it, and of several int8 files the one that runs fastest here.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.peers.peer import default_cache
from bench.peers.texts import texts
from bench.random_models import bert_base_folder

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
Feed = dict[str, NDArray[Any]]


def huggingface(model: Path, cache: Path) -> None:
    """The folder itself, for torch and for the tokenizer."""
    shutil.copytree(model, cache / "huggingface", dirs_exist_ok=True)


def pocket(model: Path, cache: Path) -> None:
    import pocketformer

    for weights in ("int8", "fp32"):
        pocketformer.compress(model, cache / f"{weights}.pocket", weights=weights)


def onnx(model: Path, cache: Path) -> None:
    """plain.onnx (embeddings from ids, all axes free); fp32.onnx and int8.onnx, each the fastest of its kind."""
    folder = cache / "onnx"
    folder.mkdir(exist_ok=True)
    plain, fused = folder / "plain.onnx", folder / "fused.onnx"
    heads, width = export_onnx(model, plain)

    from onnxruntime.transformers import optimizer

    optimized = optimizer.optimize_model(str(plain), model_type="bert", num_heads=heads, hidden_size=width, opt_level=0)
    if optimized.get_fused_operator_statistics()["Attention"] == 0:
        raise RuntimeError("ONNX Runtime fused no attention: its optimizer no longer knows the pattern of export_onnx")
    optimized.save_model_to_file(str(fused))
    shutil.copy(fastest([plain, fused], onnx_session), folder / "fp32.onnx")
    quantize_onnx([plain, fused], folder / "int8.onnx")


def sentence_encoder(encoder: Any) -> Any:
    """A torch module around ``encoder`` with mean pooling and normalisation. The mask reaches attention as a sum."""
    import torch

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            excluded = (1.0 - attention_mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
            hidden = self.encoder(input_ids, attention_mask=excluded, token_type_ids=token_type_ids).last_hidden_state
            weight = attention_mask[:, :, None].to(hidden.dtype)
            return torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=1)

    return Encoder().eval()


def export_onnx(model: Path, target: Path) -> tuple[int, int]:
    """Writes the graph with pooling and normalisation; returns (heads, width)."""
    import torch
    from transformers import AutoModel
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def attention(_: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> tuple[Any, None]:
        # The order of operations that ONNX Runtime recognises: scores divided by a constant, then the mask added.
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + mask
        return (torch.softmax(scores, -1) @ value).transpose(1, 2).contiguous(), None

    ALL_ATTENTION_FUNCTIONS.register("fusible", attention)
    encoder = AutoModel.from_pretrained(model, dtype=torch.float32)
    encoder.config._attn_implementation = "fusible"
    ids = torch.randint(1000, 20000, (2, 9))
    torch.onnx.export(
        sentence_encoder(encoder),
        (ids, torch.ones_like(ids), torch.zeros_like(ids)),
        str(target),
        input_names=list(INPUTS),
        output_names=["embedding"],
        dynamic_axes={name: {0: "batch", 1: "tokens"} for name in INPUTS},
        opset_version=17,
        dynamo=False,  # the optimizer's fusions know the graphs of this exporter
    )
    return encoder.config.num_attention_heads, encoder.config.hidden_size


def quantize_onnx(sources: list[Path], target: Path) -> None:
    """The fastest of ``sources`` in int8: dynamic activations, signed weights with one scale per channel.

    One scale per tensor is no faster and several times less accurate; unsigned weights take a slower kernel; the full
    range of the weights is exact where the CPU has VNNI.
    """
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as scratch:
        candidates = []
        for source in sources:
            candidates.append(Path(scratch) / source.name)
            quantize_dynamic(
                source,
                candidates[-1],
                per_channel=True,
                reduce_range=False,
                weight_type=QuantType.QInt8,
                extra_options={"DefaultTensorType": TensorProto.FLOAT},  # fused operators carry no types
            )
        shutil.copy(fastest(candidates, onnx_session), target)


def onnx_session(path: Path, threads: int = 1) -> Callable[[Feed], Any]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, feed)


def openvino(model: Path, cache: Path) -> None:
    """fp32.xml and int8.xml from plain.onnx, fp32-sdpa.xml and int8-sdpa.xml from torch with its fused attention.

    OpenVINO has an operator for fused attention, which wins for some lengths and loses for others: both take part. int8
    is quantized with 300 calibration texts, the faster of the two presets.
    """
    import nncf
    import openvino as ov

    folder = cache / "openvino"
    folder.mkdir(exist_ok=True)
    samples = nncf.Dataset(list(calibration(model)))
    for suffix, plain in (("", ov.convert_model(cache / "onnx" / "plain.onnx")), ("-sdpa", openvino_sdpa(model))):
        ov.save_model(plain, folder / f"fp32{suffix}.xml", compress_to_fp16=False)
        with tempfile.TemporaryDirectory() as scratch:
            candidates = []
            for preset in (nncf.QuantizationPreset.MIXED, nncf.QuantizationPreset.PERFORMANCE):
                quantized = nncf.quantize(
                    plain, samples, model_type=nncf.ModelType.TRANSFORMER, preset=preset, subset_size=300
                )
                candidates.append(Path(scratch) / f"{preset.value}.xml")
                ov.save_model(quantized, candidates[-1])
            chosen = fastest(candidates, openvino_request)
            for ending in (".xml", ".bin"):
                shutil.copy(chosen.with_suffix(ending), folder / f"int8{suffix}{ending}")


def openvino_sdpa(model: Path) -> Any:
    """The encoder read from torch itself, where attention is one ``scaled_dot_product_attention``."""
    import openvino as ov
    import torch
    from transformers import AutoModel

    encoder = AutoModel.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa")
    ids = torch.randint(1000, 20000, (2, 9))
    example = dict(zip(INPUTS, (ids, torch.ones_like(ids), torch.zeros_like(ids)), strict=True))
    converted = ov.convert_model(
        sentence_encoder(encoder), example_input=example, input=[(name, [-1, -1], ov.Type.i64) for name in INPUTS]
    )
    if not any(op.get_type_name() == "ScaledDotProductAttention" for op in converted.get_ops()):
        raise RuntimeError("OpenVINO found no fused attention in the encoder: look at how transformers calls it")
    return converted


def openvino_request(path: Path, threads: int = 1) -> Callable[[Feed], Any]:
    import openvino as ov

    settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}
    request = ov.Core().compile_model(path, "CPU", settings).create_infer_request()
    return lambda feed: request.infer(feed, share_inputs=True, share_outputs=True)


def calibration(model: Path, count: int = 300) -> Iterator[Feed]:
    """One feed of at most 128 tokens for each of ``count`` texts."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(128)
    for text in texts(count, seed=1):
        yield feed(np.array([tokenizer.encode(text).ids], np.int64))


def feed(ids: NDArray[np.int64]) -> Feed:
    return dict(zip(INPUTS, (ids, np.ones_like(ids), np.zeros_like(ids)), strict=True))


def fastest(candidates: list[Path], load: Callable[[Path], Callable[[Feed], Any]]) -> Path:
    """The fastest candidate at 16 and 128 tokens; within 3% of it, the earliest.

    The measure is the mean of the medians at both lengths, each relative to the best at that length. List the most
    accurate candidates first.
    """
    calls = [load(path) for path in candidates]
    scores = np.zeros(len(calls))
    for tokens, repeats in ((16, 60), (128, 15)):
        inputs = feed(np.random.default_rng(0).integers(1996, 30522, (1, tokens)))
        times: list[list[float]] = [[] for _ in calls]
        for _ in range(repeats):
            for call, taken in zip(calls, times, strict=True):
                call(inputs)  # brings this candidate's weights back into the cache
                start = time.perf_counter()
                call(inputs)
                taken.append(time.perf_counter() - start)
        medians = np.array([median(taken) for taken in times])
        scores += medians / medians.min() / 2
    for path, score in zip(candidates, scores, strict=True):
        print(f"  {path.stem}: {score:.3f} of the best time at 16 and 128 tokens", file=sys.stderr)
    return candidates[int(np.argmax(scores <= 1.03 * scores.min()))]


def ctranslate2(model: Path, cache: Path) -> None:
    from ctranslate2.converters import TransformersConverter

    for name, quantization in (("int8", "int8"), ("fp32", None)):
        TransformersConverter(str(model)).convert(
            str(cache / "ctranslate2" / name), quantization=quantization, force=True
        )


# Each step with the file that proves it done; None: always made anew, for it is quick and its maker changes.
STEPS: tuple[tuple[Callable[[Path, Path], None], str | None], ...] = (
    (huggingface, "huggingface/config.json"),
    (pocket, None),
    (onnx, "onnx/int8.onnx"),
    (openvino, "openvino/int8-sdpa.bin"),
    (ctranslate2, "ctranslate2/fp32/model.bin"),
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="local Hugging Face folder of all-MiniLM-L6-v2")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where the files go")
    parser.add_argument(
        "--bert-base", action="store_true", help="random weights of BERT-base's shape instead of its own"
    )
    parser.add_argument("--force", action="store_true", help="make existing files anew")
    arguments = parser.parse_args(argv)
    if not (arguments.model / "config.json").is_file():
        parser.error(f"model {arguments.model} has no config.json: name a local Hugging Face folder")

    arguments.cache.mkdir(parents=True, exist_ok=True)
    if arguments.bert_base:
        arguments.model = bert_base_folder(arguments.model, arguments.cache / "source")
    warnings.simplefilter("ignore")  # the converters' deprecations are not ours to mend
    for step, proof in STEPS:
        if proof and (arguments.cache / proof).exists() and not arguments.force:
            print(f"{step.__name__}: kept", file=sys.stderr)
            continue
        try:
            step(arguments.model, arguments.cache)
            print(f"{step.__name__}: made", file=sys.stderr)
        except ModuleNotFoundError as error:
            print(f"{step.__name__}: skipped, the package {error.name} is not installed", file=sys.stderr)


if __name__ == "__main__":
    main()
