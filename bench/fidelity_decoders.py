"""How far a decoder's predictions are from fp32: ``python -m bench.fidelity_decoders MODEL.gguf --text TEXT``.

The reference is fp32 of the dequantized weights. Over the first tokens of the text: the Kullback-Leibler divergence of
the next token's distribution (mean, median), how often the likeliest token is the same, and the perplexity's change.
``--pieces`` measures parts of the compressed model alone; ``--llama PYTHON`` also llama.cpp on the same file and
tokens, by an interpreter that has llama-cpp-python.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pocketformer import load
from pocketformer.compression import compress
from pocketformer.compression.target import as_quantized
from pocketformer.graph import Array, Graph
from pocketformer.pocketfile import PocketFile, read_pocket, write_pocket

CHUNK = 64  # rows whose distributions are in memory in float64
LLAMA = """
import sys
import numpy as np
from llama_cpp import Llama

model, ids, out = sys.argv[1:]
ids = np.load(ids).tolist()
llama = Llama(model, n_ctx=len(ids) + 8, n_threads=2, logits_all=True, verbose=False)
llama.eval(ids)
np.save(out, np.asarray(llama.scores[: len(ids)], np.float32))
"""


@dataclass(frozen=True)
class Distance:
    """Of each position the divergence and whether the likeliest token is the reference's; and the perplexities."""

    divergence: Array
    same: Array
    perplexity: float
    reference: float

    def row(self, name: str) -> str:
        change = self.perplexity / self.reference - 1
        mean, median = self.divergence.mean(), np.median(self.divergence)
        return f"| {name} | {mean:.5f} | {median:.5f} | {self.same.mean():.1%} | {change:+.2%} |"


def log_probabilities(logits: Array) -> Array:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def distance(reference: Array, logits: Array, ids: Array) -> Distance:
    """``reference`` and ``logits`` [tokens, vocabulary]."""
    divergence, same, surprise = [], [], np.zeros(2)
    for begin in range(0, len(ids), CHUNK):
        chosen = slice(begin, begin + CHUNK)
        exact, other = log_probabilities(reference[chosen]), log_probabilities(logits[chosen])
        divergence.append((np.exp(exact) * (exact - other)).sum(axis=1))
        same.append(exact.argmax(axis=1) == other.argmax(axis=1))
        following = ids[begin + 1 : begin + 1 + CHUNK]
        rows = np.arange(len(following))
        surprise -= exact[rows, following].sum(), other[rows, following].sum()
    exact_perplexity, perplexity = np.exp(surprise / (len(ids) - 1))
    return Distance(np.concatenate(divergence), np.concatenate(same), perplexity, exact_perplexity)


def with_weights(plain: Graph, kept: Graph, takes: Callable[[str], bool]) -> Graph:
    """``plain``, a packed fp32 graph, with those weights of ``kept`` whose names it ``takes``."""
    taken = [name for name in kept.weights if takes(name)]
    params = {
        name: array for name, array in plain.params.items() if not any(name == f"{weight}.weight" for weight in taken)
    }
    params |= {name: array for name, array in kept.params.items() if name.rpartition(".")[0] in taken}
    return replace(plain, weights=plain.weights | {name: kept.weights[name] for name in taken}, params=params)


def pieces(plain: Graph, kept: Graph) -> Iterator[tuple[str, Graph]]:
    """Graphs of which only a part is in integers; both are packed."""
    int8 = as_quantized(plain, {})
    yield "attention alone", replace(plain, states=int8.states, ops=int8.ops)
    yield "linears alone", replace(kept, states=plain.states, ops=plain.ops)
    for kind in dict.fromkeys(name.rpartition(".")[2] for name in kept.weights if name.startswith("layers.")):
        yield f"{kind} alone", with_weights(plain, kept, lambda name, kind=kind: name.endswith(f".{kind}"))  # type: ignore[misc]
    yield "table and head alone", with_weights(plain, kept, lambda name: not name.startswith("layers."))


def logits_of(path: Path, ids: Array, kv: str | None = None) -> Array:
    return load(path, threads=2, kv=kv).logits(ids.tolist())  # type: ignore[attr-defined, no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--pieces", action="store_true", help="parts of the model alone, too")
    parser.add_argument("--llama", metavar="PYTHON", help="an interpreter with llama-cpp-python")
    parser.add_argument("--folder", type=Path, help="where the files stay; by default they are deleted")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        files = {weights: folder / f"{arguments.model.stem}-{weights}.pocket" for weights in ("fp32", "gguf")}
        for weights, path in files.items():
            if not path.exists():
                compress(arguments.model, path, weights=weights)
        tokens = load(files["fp32"]).tokenize(arguments.text.read_text("utf-8"))[: arguments.tokens]  # type: ignore[attr-defined]
        ids = np.array(tokens, np.int64)
        reference = logits_of(files["fp32"], ids)
        print(f"{arguments.model.name}, {len(ids)} tokens of {arguments.text.name}\n")
        print("| in integers | KL, mean | median | same token | perplexity |\n|---|---|---|---|---|")
        for name, kv in (("all, as compressed", None), ("weights alone, keys and values in fp16", "fp16")):
            print(distance(reference, logits_of(files["gguf"], ids, kv), ids).row(name), flush=True)
        if arguments.llama:
            np.save(folder / "ids.npy", ids)
            command = [arguments.llama, "-c", LLAMA, str(arguments.model), str(folder / "ids.npy")]
            subprocess.run([*command, str(folder / "llama.npy")], check=True)
            print(distance(reference, np.load(folder / "llama.npy"), ids).row("llama.cpp"), flush=True)
        if arguments.pieces:
            plain, kept = (read_pocket(path) for path in files.values())
            for name, graph in pieces(plain.graph, kept.graph):
                print(distance(reference, _logits(kept, graph, folder, ids), ids).row(name), flush=True)


def _logits(of: PocketFile, graph: Graph, folder: Path, ids: Array) -> Array:
    write_pocket(folder / "piece.pocket", graph, of.model, of.text, of.tokenizer())
    return logits_of(folder / "piece.pocket", ids)


if __name__ == "__main__":
    main()
