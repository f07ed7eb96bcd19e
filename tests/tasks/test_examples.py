"""The examples with cameras and photographs do what their first lines say."""

from __future__ import annotations

import importlib.util
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import pocketformer
from helpers.tokenizers import clip_pairs

TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
SIZE: dict[str, Any] = {**TOWER, "image_size": 16, "patch_size": 8}


def example(name: str) -> Any:
    path = Path(__file__).parents[2] / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def picture(seed: int, height: int = 40, width: int = 61) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("clip"), clip_pairs()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer", "model_max_length": 20}')
    size, end = tokenizer.get_vocab_size(), tokenizer.token_to_id("<|endoftext|>")
    words = {**TOWER, "vocab_size": size, "max_position_embeddings": 20, "eos_token_id": end, "bos_token_id": end - 1}
    config = transformers.CLIPConfig(text_config=words, vision_config=SIZE, projection_dim=12)
    transformers.CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    for tower in ("vision", "text"):
        pocketformer.compress(folder, folder / f"{tower}.pocket", weights="fp32", tower=tower)
    return str(folder / "vision.pocket"), str(folder / "text.pocket")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vit")
    transformers.ViTForImageClassification(transformers.ViTConfig(**SIZE, num_labels=3)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    pocketformer.compress(folder, folder / "model.pocket", weights="fp32")
    return str(folder / "model.pocket")


def test_photo_search(
    towers: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, module = tmp_path / "photos", example("photo_search")
    (photos / "more").mkdir(parents=True)
    names = [photos / "a.png", photos / "b.jpg", photos / "more" / "c.png"]
    for seed, path in enumerate(names):
        Image.fromarray(picture(seed)).save(path)
    (photos / "broken.png").write_bytes(names[0].read_bytes()[:200])
    (photos / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    module.main([*towers, str(photos), "an owl", str(names[2]), "--top-k", "2"])
    output = capsys.readouterr()
    assert re.findall("left out: .*", output.err) == [
        next(line for line in output.err.splitlines() if part in line) for part in ("broken.png", "is HEIC")
    ]
    vision, text = pocketformer.ImageEmbedder.load(towers[0]), pocketformer.Embedder.load(towers[1])
    rows = vision.encode(names, normalize=True)
    lines = iter(output.out.splitlines())
    for query, row in (("an owl", text.encode("a photo of an owl.", normalize=True)), (str(names[2]), rows[2])):
        scores = rows @ row
        assert next(lines) == f"{query}:"
        for i in np.argsort(-scores)[:2]:
            assert next(lines) == f"  {scores[i]:.3f}  {names[i]}"
    embedded: list[Path] = []
    encode = pocketformer.ImageEmbedder.encode

    def counting(self: Any, image: Any, **options: Any) -> Any:
        embedded.append(image)
        return encode(self, image, **options)

    monkeypatch.setattr(pocketformer.ImageEmbedder, "encode", counting)
    names[0].unlink()
    Image.fromarray(picture(7)).save(names[1])
    (photos / "broken.png").unlink()
    (photos / "phone.jpg").unlink()
    module.main([*towers, str(photos), "an owl"])
    assert embedded == [names[1]]  # what is known is not embedded again
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]] != []
    assert len(module.Index.read(photos / ".photo-search.npz", 12).keys) == 2
    assert module.Index.read(photos / ".photo-search.npz", 13).keys == []  # of another model
    empty = tmp_path / "empty"
    empty.mkdir()
    module.main([*towers, str(empty), "an owl"])
    assert capsys.readouterr().out == "an owl:\n"


def test_a_camera(
    classifier: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A still scene with the noise of a camera is looked at once, and again where something small comes into it."""
    module, rng = example("camera"), np.random.default_rng(0)
    still = np.clip(picture(3, 6, 8).repeat(20, 0).repeat(20, 1).astype(int), 20, 200)
    frames = (still + rng.normal(0, 5, (6, *still.shape))).clip(0, 255).astype(np.uint8)
    frames[4:, 48:64, 32:48] += 40
    model = pocketformer.ImageClassifier.load(classifier)
    expected = []
    for number in (0, 4):
        label, score = model.classify(frames[number], top_k=1)[0]  # type: ignore[misc]
        expected.append(f"frame {number}: {label} {score:.2f} (")  # type: ignore[str-bytes-safe]

    def check() -> None:
        *lines, last = capsys.readouterr().out.splitlines()
        assert [line[: len(start)] for line, start in zip(lines, expected, strict=True)] == expected
        assert re.fullmatch(r"6 frames, 4 of them unchanged, \d+\.\d frames a second", last)

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(frames.tobytes())))
    module.main([classifier, "--frame", "160x120"])
    check()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    module.main([classifier, "--folder", str(tmp_path)])
    check()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(frames.tobytes())))
    module.main([classifier, "--frame", "160x120", "--change", "0"])
    assert "6 frames, 0 of them unchanged" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    module.main([classifier, "--frame", "160x120"])
    assert "0 frames, 0 of them unchanged" in capsys.readouterr().out
    assert module.cells(picture(0, 5, 7)).shape == (1, 1, 3)
