"""The licence, the repository and the name that go into the file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import pocketformer
from helpers.torch_models import build
from pocketformer.pocketfile import read_pocket
from pocketformer.sources.huggingface import load_checkpoint

COMMIT = "5617a9f61b028005a4858fdac845db406aefb181"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    build("distilbert", "embed", folder)
    return folder


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "my-model"))


def set_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def cached(folder: Path, cache: Path, repository: str) -> Path:
    """``folder`` as the hub's cache keeps it: files under the names of their hashes, and links to them."""
    home = cache / f"models--{repository.replace('/', '--')}"
    snapshot = home / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    for i, file in enumerate(sorted(folder.iterdir())):
        blob = home / "blobs" / f"{i:040x}"
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / blob.name)
    return snapshot


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("---\nlicense: apache-2.0\ntags:\n- x\n---\n# Title", "apache-2.0"),
        ("---\ntags:\n  - license\nlicense: 'mit'  # as is\n---", "mit"),
        ("\ufeff---\r\nlicense:\r\n- cc-by-4.0\r\n- mit\r\n---\r\n", "cc-by-4.0, mit"),
        ("---\nlicense: [gpl-3.0, mit]\n---\n", "gpl-3.0, mit"),
        ("---\nlicense: other\nlicense_name: acme-community\nlicense_link: LICENSE\n---\n", "acme-community"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\ntags: [a]\n---\nlicense: mit\n", None),
        ("# Title\n---\nlicense: mit\n---\n", None),
        ("---\nlicense: mit\nnever closed\n", None),
        ("", None),
    ],
)
def test_license_of_the_readme(folder: Path, readme: str, expected: str | None) -> None:
    (folder / "README.md").write_text(readme, encoding="utf-8", newline="")
    assert load_checkpoint(folder).model.get("license") == expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("LICENSE", "\n   Apache License\n   Version 2.0, January 2004", "apache-2.0"),
        ("LICENSE.txt", "MIT License\n\nCopyright", "mit"),
        ("COPYING", "GNU GENERAL PUBLIC LICENSE\nVersion 3", "gpl"),
        ("LICENCE.md", "Use it for good, not evil.", "LICENCE.md"),
        ("licenses_of_friends.txt", "MIT License", None),
    ],
)
def test_license_of_a_license_file(folder: Path, name: str, text: str, expected: str | None) -> None:
    (folder / name).write_text(text)
    assert load_checkpoint(folder).model.get("license") == expected
    set_config(folder, license="bsd-3-clause")
    assert load_checkpoint(folder).model["license"] == "bsd-3-clause"
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert load_checkpoint(folder).model["license"] == "mit"


@pytest.mark.parametrize("repository", ["acme/tiny-encoder", "acme/tiny--v2", "gpt2-like"])
def test_a_hub_cache_names_the_model(folder: Path, tmp_path: Path, repository: str) -> None:
    snapshot = cached(folder, tmp_path / "hub", repository)
    link = tmp_path / "link"
    link.symlink_to(snapshot)
    copied_links = tmp_path / "local"
    copied_links.mkdir()
    for file in snapshot.iterdir():
        (copied_links / file.name).symlink_to(file)
    for place in (snapshot, link, copied_links):
        model = load_checkpoint(place).model
        assert (model["name"], model["source"]) == (repository.rsplit("/", 1)[-1], repository)


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("acme/my-model", "acme/my-model"),
        ("acme/My-Model", "acme/My-Model"),
        ("acme/what-training-began-with", None),
        ("/home/someone/my-model", None),
        ("./my-model", None),
        ("", None),
        (3, None),
    ],
)
def test_the_config_names_the_repository(folder: Path, named: object, expected: str | None) -> None:
    set_config(folder, _name_or_path=named)
    model = load_checkpoint(folder).model
    assert (model["name"], model.get("source")) == ("my-model", expected)


def test_a_linked_folder_keeps_the_name_that_it_is_called_by(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "friendly"
    link.symlink_to(folder)
    assert load_checkpoint(link).model["name"] == "friendly"
    assert load_checkpoint(tmp_path / "my-model" / ".." / "my-model").model["name"] == "my-model"


def test_it_is_in_the_file(folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    set_config(folder, _name_or_path="acme/my-model")
    pocketformer.compress(folder, tmp_path / "x.pocket", weights="fp32")
    model = read_pocket(tmp_path / "x.pocket").model
    assert (model["name"], model["license"], model["source"]) == ("my-model", "mit", "acme/my-model")
