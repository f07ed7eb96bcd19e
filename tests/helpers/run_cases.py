"""Runs every case of a folder with every instruction set of this CPU and prints digests of the outputs as JSON.

    python tests/helpers/run_cases.py FOLDER

A case is a pocket file and its batch (``NAME.pocket``, ``NAME.npz``). Needs the library and numpy alone, so that it
also runs under emulation.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from pocketformer import _core
from pocketformer.pocketfile import read_pocket


def run_cases(folder: Path) -> dict[str, dict[str, str]]:
    """Digest of the output by instruction set and case; each is run with one thread and with two."""
    digests: dict[str, dict[str, str]] = {isa: {} for isa in _core.isas()}
    for path in sorted(folder.glob("*.pocket")):
        graph = read_pocket(path).graph
        with np.load(path.with_suffix(".npz")) as arrays:
            batch = dict(arrays)
        for isa, results in digests.items():
            session = _core.Session(_core.Program(graph.description(), graph.params, isa))
            outputs = [session.run(batch, threads=threads) for threads in (1, 2)]
            assert outputs[0].tobytes() == outputs[1].tobytes(), f"{path.stem}: threads change the result"
            assert np.isfinite(outputs[0]).all()
            results[path.stem] = hashlib.sha256(outputs[0].tobytes()).hexdigest()
    return digests


if __name__ == "__main__":
    default = _core.isas()[0]
    print(json.dumps({"default": default, "digests": run_cases(Path(sys.argv[1]))}))
