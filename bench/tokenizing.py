"""Short texts to ids in an Embedder and with plain ``tokenizers``: ``python -m bench.tokenizing FILE.pocket``.

One thread, in turn; the ids are the same.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence

from bench.peers.texts import texts
from bench.statistics import quartiles, ratio_text


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a pocket file with a tokenizer")
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)

    from tokenizers import Tokenizer

    import pocketformer

    model = pocketformer.load(arguments.model, threads=1)
    reader, draw = model._reader, random.Random(0)
    words = " ".join(texts(300, seed=3)).split()
    short = [" ".join(draw.choices(words, k=draw.randint(4, 16))) for _ in range(arguments.texts)]
    plain: Tokenizer = Tokenizer.from_str(reader.tokenizer().to_str())
    assert [ids.tolist() for ids in reader.sequences(short[:50])] == [plain.encode(text).ids for text in short[:50]]
    ways = {
        "plain tokenizers": lambda: [plain.encode(text).ids for text in short],
        "pocketformer": lambda: reader.sequences(short),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            begin = time.process_time()
            way()
            times[name].append(time.process_time() - begin)
    for name, taken in times.items():
        middle = quartiles(taken)[1]
        print(f"{name}: {middle * 1e6 / len(short):.1f} µs a text, ratio {ratio_text(taken, times['pocketformer'])}")


if __name__ == "__main__":
    main()
