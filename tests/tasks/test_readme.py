"""What the README shows works: its Python blocks and shell lines are run, in order, in one folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import torch_decoders, torch_images
from helpers.models import model_folder

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints under the names that the README uses, two of them tiny, and the command on the path."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "all-MiniLM-L6-v2").symlink_to(model_folder("minilm"))
    torch_decoders.build("llama", folder / "SmolLM2-135M-Instruct", vocab_size=torch_decoders.BYTES)
    torch_decoders.add_tokenizer(folder / "SmolLM2-135M-Instruct")
    torch_images.tiny_vit(folder / "vit-base-patch16-224")
    Image.fromarray(np.full((40, 60, 3), 128, np.uint8)).save(folder / "photo.jpg")
    command = folder / "pocketformer"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -W error -m pocketformer "$@"\n')
    command.chmod(0o755)
    return folder


def run(folder: Path, *command: str) -> str:
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_python(folder: Path) -> None:
    (code,) = blocks("python")
    assert len(code.splitlines()) <= 10
    lines = run(folder, sys.executable, "-W", "error", "-c", code).splitlines()
    assert lines[0] == "The owl left its nest at dusk."
    assert lines[1].split()[0] == str((folder / "minilm.pocket").stat().st_size)


@pytest.mark.slow
def test_shell(folder: Path) -> None:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    commands = [line for line in lines if not line.startswith("make ")]
    assert len(commands) == 12
    for line in commands:
        assert run(folder, "bash", "-o", "pipefail", "-c", line), f"{line} printed nothing"
    assert (folder / "embeddings.npy").is_file()


def test_make_targets() -> None:
    targets = re.findall(r"^make (\w+)$", README, re.MULTILINE)
    assert targets == ["demo", "test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/README.md"])
def test_links_and_paths(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert ((ROOT / page).parent / link).exists(), link
    for path in re.findall(r"`((?:csrc|tests)/[\w/.]+)`", text):
        assert "NAME" in path or (ROOT / path).exists(), path
