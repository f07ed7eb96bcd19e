"""How far each runtime's embeddings are from torch fp32: ``python -m bench.peers.fidelity``.

Reports the cosine (mean, minimum) over texts and, for a search among the same texts, how often the nearest neighbour
stays the same.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bench.peers.peer import Peer, Peers, available, default_cache
from bench.peers.texts import texts

REFERENCE = "torch-fp32"
MAX_TOKENS = 256


def token_ids(cache: Path, count: int) -> list[list[int]]:
    """Ids of ``count`` texts, drawn with another seed than prepare.py's calibration texts."""
    tokenizer = Tokenizer.from_file(str(cache / "huggingface" / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return [tokenizer.encode(text).ids for text in texts(count, seed=2)]


def embeddings(peer: Peer, ids: list[list[int]]) -> NDArray[np.float64]:
    """One text a call: some runtimes' int8 results depend on the neighbours in a batch."""
    return np.array([peer.embed([sequence])[0] for sequence in ids])


def neighbours(rows: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of each row's most similar other row."""
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -np.inf)
    return np.asarray(similarity.argmax(axis=1), np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder filled by bench.peers.prepare")
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--runners", nargs="+", default=[], help="names; default: all that can run here")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()

    names = [name for name in available(arguments.cache, arguments.runners) if name != REFERENCE]
    if not available(arguments.cache, [REFERENCE]):
        parser.error(f"{REFERENCE} is the reference and cannot run here; see above")
    ids = token_ids(arguments.cache, arguments.texts)
    with Peers([REFERENCE, *names], arguments.cache, threads=1) as (reference, *peers):
        exact = embeddings(reference, ids)
        results = {}
        for peer in peers:
            rows = embeddings(peer, ids)
            cosine = (rows * exact).sum(axis=1) / (np.linalg.norm(rows, axis=1) * np.linalg.norm(exact, axis=1))
            results[peer.name] = {
                "version": peer.version,
                "mean": float(cosine.mean()),
                "min": float(cosine.min()),
                "top1": float((neighbours(rows) == neighbours(exact)).mean()),
            }
    print(f"Cosine to {REFERENCE} over {arguments.texts} texts; share of texts whose nearest neighbour is the same.\n")
    print("| runtime | version | mean | min | same nearest |\n|---|---|---|---|---|")
    for name, row in results.items():
        print(f"| {name} | {row['version']} | {row['mean']:.5f} | {row['min']:.5f} | {row['top1']:.1%} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
