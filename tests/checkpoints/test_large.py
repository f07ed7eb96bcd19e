"""What compressing a large model takes of memory, the mapped checkpoint aside."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from helpers.large_checkpoint import write_checkpoint

COMPRESS = "import sys, pocketformer; pocketformer.compress(sys.argv[1], sys.argv[2])"


def peak_of_private_memory(command: list[str]) -> int:
    """The most bytes of RssAnon, looked at every few milliseconds, that ``command`` held until it ended well."""
    peak = 0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            if "RssAnon" in status:  # not a process that has ended
                peak = max(peak, int(status.partition("RssAnon:")[2].split()[0]) * 1024)
            time.sleep(0.003)
    assert process.returncode == 0
    return peak


def test_peak_memory(tmp_path: Path) -> None:
    """A table of 250,000 × 256, tied to a decoder; of XLM-R-base's shape (× 768, 12 layers) only its width differs."""
    largest = write_checkpoint(tmp_path, words=250_002, hidden=256, ffn=1024, layers=2)
    path = tmp_path / "large.pocket"
    peak = peak_of_private_memory([sys.executable, "-c", COMPRESS, str(tmp_path), str(path)])
    print(f"\npeak of private memory: {peak / 1e6:.0f} MB, largest tensor {largest / 1e6:.0f} MB")
    assert peak <= 200e6
    assert path.stat().st_size < 0.3 * largest * 1.1
