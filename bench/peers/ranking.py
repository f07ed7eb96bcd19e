"""One query and 100 documents of 128 tokens, ranked here, by ONNX Runtime and by OpenVINO.

    python -m bench.peers.ranking FOLDER

All are int8 and read the same texts, tokenizing included, on one thread, in turn. The cross-encoder has random weights
of MiniLM-L6's shape (time does not depend on them) and the tokenizer of FOLDER, an uncased BERT's. Documents go through
the others in batches of ``--batch``, and one by one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.prepare import INPUTS, Feed, calibration, onnx_session, openvino_request, quantize_onnx
from bench.peers.texts import texts
from bench.statistics import quartiles, ratio_text

TOKENS, LAYERS, WIDTH = 128, 6, 384
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}


def cross_encoder(tokenizer: Path, folder: Path) -> Any:
    """A random cross-encoder, saved to ``folder`` with the tokenizer; returns it as a torch module."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"num_hidden_layers": LAYERS, "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH}
    config = BertConfig(**sizes, num_attention_heads=12, num_labels=1, initializer_range=0.05)
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    shutil.copy(tokenizer / "tokenizer.json", folder / "tokenizer.json")
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": TOKENS}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return model


def export(model: Any, folder: Path) -> None:
    """The logits from ids, with dynamic axes: ``plain.onnx``, and from it in int8 ``int8.onnx`` and ``int8.xml``."""
    import nncf
    import openvino as ov
    import torch

    class Scores(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            excluded = (1.0 - attention_mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
            return self.model(input_ids, attention_mask=excluded, token_type_ids=token_type_ids).logits

    model.config._attn_implementation = "eager"
    ids = torch.randint(1000, 20000, (2, 9))
    plain = folder / "plain.onnx"
    torch.onnx.export(
        Scores().eval(),
        (ids, torch.ones_like(ids), torch.zeros_like(ids)),
        str(plain),
        input_names=list(INPUTS),
        output_names=["logits"],
        dynamic_axes={name: {0: "batch", 1: "tokens"} for name in INPUTS},
        opset_version=17,
        dynamo=False,
    )
    quantize_onnx([plain], folder / "int8.onnx")
    samples = nncf.Dataset(list(calibration(folder, 8)))
    quantized = nncf.quantize(ov.convert_model(plain), samples, model_type=nncf.ModelType.TRANSFORMER, subset_size=8)
    ov.save_model(quantized, folder / "int8.xml")


def ranker(run: Callable[[Feed], Any], folder: Path, batch: int) -> Callable[[str, list[str]], Any]:
    """``run`` gives the logits of a batch, whose pairs are filled up to the longest."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding()

    def rank(query: str, documents: list[str]) -> Any:
        scores = []
        for begin in range(0, len(documents), batch):
            encoded = tokenizer.encode_batch([(query, text) for text in documents[begin : begin + batch]])
            parts = ([e.ids for e in encoded], [e.attention_mask for e in encoded], [e.type_ids for e in encoded])
            feed = {name: np.array(part, np.int64) for name, part in zip(INPUTS, parts, strict=True)}
            scores.append(np.array(run(feed)[0][:, 0]))
        return np.argsort(-np.concatenate(scores), kind="stable")

    return rank


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path, help="folder with the tokenizer.json of an uncased BERT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--batch", type=int, default=32, help="documents of one run of the others (default: 32)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="process: stands while a neighbour computes")
    arguments = parser.parse_args(argv)

    import pocketformer

    joined = " ".join(texts(2000, seed=2)).split()
    words = len(joined) // arguments.documents
    documents = [" ".join(joined[i * words : (i + 1) * words]) for i in range(arguments.documents)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        export(cross_encoder(arguments.tokenizer, folder), folder)
        pocketformer.compress(folder, folder / "int8.pocket")
        ours = pocketformer.load(folder / "int8.pocket", threads=1)
        others = {
            "ONNX Runtime": onnx_session(folder / "int8.onnx"),
            "OpenVINO": openvino_request(folder / "int8.xml"),
        }
        rankers: dict[str, Callable[[str, list[str]], Any]] = {"pocketformer int8": ours.rank}
        for name, run in others.items():
            rankers[f"{name} int8, batches of {arguments.batch}"] = ranker(run, folder, arguments.batch)
            rankers[f"{name} int8, one by one"] = ranker(run, folder, 1)
        times: dict[str, list[float]] = {name: [] for name in rankers}
        now = CLOCKS[arguments.clock]
        for _ in range(arguments.rounds + 1):
            for name, rank in rankers.items():
                begin = now()
                rank("what is the capital of france", documents)
                times[name].append(now() - begin)
    base = times["pocketformer int8"][1:]  # the first round warms up
    for name, taken in times.items():
        _, middle, _ = quartiles(taken[1:])
        print(f"{name}: {middle * 1e3:.0f} ms, ratio {ratio_text(taken[1:], base)}")


if __name__ == "__main__":
    main()
