"""Raw frames from a pipe or a file: in Python and on the command line, one at a time in memory."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import pocketformer
from pocketformer.cli import main
from pocketformer.tasks.frames import raw_frames

SIZE: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 16,
    "patch_size": 8,
}
FRAMES = np.random.default_rng(0).integers(0, 256, (5, 20, 24, 3)).astype(np.uint8)


def compressed(folder: Path, kind: str) -> str:
    torch.manual_seed(0)
    prefix = kind.partition("For")[0].removesuffix("Model")
    getattr(transformers, kind)(getattr(transformers, f"{prefix}Config")(**SIZE)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    pocketformer.compress(folder, folder / "model.pocket", weights="fp32")
    return str(folder / "model.pocket")


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> str:
    return compressed(tmp_path_factory.mktemp("dinov2"), "Dinov2Model")


def give(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


class Dribble(io.RawIOBase):
    """A pipe that gives a few bytes at a time."""

    def __init__(self, content: bytes) -> None:
        self._rest = content

    def readinto(self, to: Any) -> int:
        part, self._rest = self._rest[: min(len(to), 97)], self._rest[min(len(to), 97) :]
        to[: len(part)] = part
        return len(part)


def test_frames() -> None:
    for file in (io.BytesIO(FRAMES.tobytes()), Dribble(FRAMES.tobytes())):
        found = list(raw_frames(file, 24, 20))  # type: ignore[arg-type]
        assert [frame.shape for frame in found] == [(20, 24, 3)] * 5
        np.testing.assert_array_equal(found, FRAMES)
    assert list(raw_frames(io.BytesIO(), 24, 20)) == []
    with pytest.raises(ValueError, match=r"frame 1 has 10 of 1440 bytes; are they RGB of 24 × 20 pixels"):
        list(raw_frames(io.BytesIO(FRAMES.tobytes()[:1450]), 24, 20))
    for size in ((0, 20), (24, 1 << 20), (True, 20), (24, 2.0)):
        with pytest.raises(ValueError, match="it must be an integer in 1…16384"):
            raw_frames(io.BytesIO(), *size)  # type: ignore[arg-type]


def test_a_long_video_takes_the_memory_of_a_few_frames(dinov2: str, tmp_path: Path) -> None:
    """Of its frames, and of its features where these go into a file."""
    path, count, model = tmp_path / "film.rgb", 600, pocketformer.ImageEmbedder.load(dinov2, threads=1)
    with path.open("wb") as file:
        for i in range(count):
            file.write(bytes([i % 256]) * (64 * 48 * 3))
    model.encode(FRAMES[0])
    tracemalloc.start()
    try:
        assert main(["encode", dinov2, "--input", str(path), "--frame", "64x48", "-o", str(tmp_path / "a.npy")]) == 0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.load(tmp_path / "a.npy").shape == (count, 16)
    assert peak < path.stat().st_size / 4


def test_the_command_line_encodes_frames(
    dinov2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = pocketformer.ImageEmbedder.load(dinov2)
    path = tmp_path / "features.npy"
    for options, expected in (
        ([], model.encode(FRAMES)),
        (["--pooling", "mean"], model.encode(FRAMES, pooling="mean")),
        (["--patches"], model.encode(FRAMES, patches=True)),
    ):
        give(monkeypatch, FRAMES.tobytes())
        arguments = ["encode", dinov2, "--input", "-", "--frame", "24x20", *options]
        assert main([*arguments, "-o", str(path)]) == 0
        assert f"float32 {list(expected.shape)}" in capsys.readouterr().out
        written = np.load(path)
        assert (written.dtype, written.shape) == (np.float32, expected.shape)
        assert written.tobytes() == expected.tobytes()
        give(monkeypatch, FRAMES[:1].tobytes())
        assert main([*arguments, "--json"]) == 0
        (entry,) = json.loads(capsys.readouterr().out)["results"]
        assert entry["image"] == "frame 0"
        np.testing.assert_array_equal(np.float32(entry.get("features", entry.get("embedding"))), expected[0])
        give(monkeypatch, FRAMES[:1].tobytes())
        assert main(arguments) == 0
        assert "frame 0" in capsys.readouterr().out
    batches = list(model.encode_batches(iter(FRAMES), normalize=True))
    assert np.concatenate(batches).tobytes() == model.encode(FRAMES, normalize=True).tobytes()
    give(monkeypatch, b"")
    assert main([*arguments, "-o", str(path)]) == 0
    assert np.load(path).shape == (0, 2, 2, 16)


@pytest.mark.parametrize("kind", ["Dinov2Model", "ViTForImageClassification"])
def test_the_command_line_runs_frames_as_they_come(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pocket = compressed(tmp_path, kind)
    model: Any = pocketformer.load(pocket)
    given = ["run", pocket, "--input", "-", "--frame", "24x20", "--top-k", "2"]
    give(monkeypatch, FRAMES.tobytes())
    assert main([*given, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["frame"] for line in lines] == list(range(5))
    if kind == "Dinov2Model":
        assert np.float32([line["embedding"] for line in lines]).tobytes() == model.encode(FRAMES).tobytes()
    else:
        found = [[tuple(label.values()) for label in line["labels"]] for line in lines]
        assert found == model.classify(FRAMES, top_k=2)
    give(monkeypatch, FRAMES.tobytes() + b"x")  # what came before is printed before the end is refused
    assert main(given) == 1
    output = capsys.readouterr()
    assert [line.partition(":")[0] for line in output.out.splitlines()] == [f"frame {i}" for i in range(5)]
    assert "frame 5 has 1 of 1440 bytes" in output.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--frame", "24x20"], "give them with --input FILE, or --input - for stdin"),
        (["encode", "a.jpg", "--frame", "24x20"], "give them with --input FILE"),
        (["run", "--frame", "24x20", "--input", "nowhere.rgb"], "nowhere.rgb: No such file"),
        (["run", "--frame", "24x99999", "--input", "-"], "height is 99999; it must be an integer in 1…16384"),
        (["encode", "--pooling", "max", "a.jpg"], "pooling is 'max'; this model gives cls, mean"),
        (["run", "a.jpg", "--labels", "owl"], "need both --labels and --text-model"),
        (["run", "a.jpg", "--template", "a {}"], "--template was given without --labels"),
        (["run", "--labels", "a", "--text-model", "b", "--frame", "24x20", "--input", "-"], "made in Python"),
    ],
)
def test_mistakes(arguments: list[str], message: str, dinov2: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([arguments[0], dinov2, *arguments[1:]]) == 1
    assert message in capsys.readouterr().err


def test_options_of_images_for_a_model_of_texts(minilm_int8: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in (["--frame", "2x2", "--input", "-"], ["--patches"], ["--pooling", "cls"]):
        texts = [] if "--input" in option else ["text"]
        assert main(["encode", str(minilm_int8), *texts, *option]) == 1
        assert f"{option[0]} was given, but the model's task is 'embed'" in capsys.readouterr().err
    for size in ("2", "2x", "0x4", "2x3x4", "ax3"):
        with pytest.raises(SystemExit):
            main(["encode", "x", "--frame", size, "--input", "-"])


def test_a_damaged_file_is_named(dinov2: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    Image.fromarray(FRAMES[0]).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:-600])
    (tmp_path / "c.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    for bad, message in (("b.png", "is damaged"), ("c.jpg", "is HEIC, which is not read; convert it to JPEG or PNG")):
        assert main(["encode", dinov2, str(tmp_path / "a.png"), str(tmp_path / bad)]) == 1
        assert f"images[1] ({tmp_path / bad}) {message}" in capsys.readouterr().err
