"""Towers of images and texts from folders: embeddings and zero-shot labels near transformers'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import pocketformer
from helpers import sentencepiece_data
from helpers.checkpoints import refused
from helpers.tokenizers import clip_pairs
from helpers.torch_models import deviation, make_adversarial
from pocketformer.cli import main
from pocketformer.errors import UnsupportedModelError

SIDE = 24
TOWER: dict[str, Any] = {"hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 72}
VISION: dict[str, Any] = {**TOWER, "image_size": SIDE, "patch_size": 8}
TEXTS = ["a photo of an owl.", "The owl's   boat, 7 of them!", "BOATS", "Füße auf dem Boot", "x"]
PICTURES = [
    np.random.default_rng(i).integers(0, 256, (height, width, 3)).astype(np.uint8)
    for i, (height, width) in enumerate(((61, 50), (30, 44)))
]


def clip(folder: Path, **text: Any) -> Any:
    """A whole CLIP with a tokenizer of its own kind."""
    tokenizer = clip_pairs()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 20}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    size, end = tokenizer.get_vocab_size(), tokenizer.token_to_id("<|endoftext|>")
    words = {**TOWER, "vocab_size": size, "max_position_embeddings": 20, "eos_token_id": end, "bos_token_id": end - 1}
    config = transformers.CLIPConfig(text_config={**words, **text}, vision_config=VISION, projection_dim=28)
    CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return saved(transformers.CLIPModel, config, folder)


def siglip(folder: Path, vocabulary: int = 90) -> Any:
    words = {**TOWER, "vocab_size": vocabulary, "max_position_embeddings": 16, "eos_token_id": 1, "bos_token_id": 2}
    config = transformers.SiglipConfig(text_config=words, vision_config=VISION)
    SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return saved(transformers.SiglipModel, config, folder)


def saved(kind: Any, config: Any, folder: Path) -> Any:
    config._attn_implementation = "eager"
    for part in (config.text_config, config.vision_config):
        part._attn_implementation = "eager"
    model = kind(config).eval()
    for seed, part in enumerate(model.children()):
        make_adversarial(part, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("logit"):
                parameter.fill_(1.2)
            elif "q_proj.weight" in name or "k_proj.weight" in name or "in_proj_weight" in name:
                parameter.mul_(2.5)
    model.save_pretrained(folder)
    return model


def towers(folder: Path, weights: str = "fp32") -> tuple[Any, Any]:
    models = []
    for tower in ("vision", "text"):
        pocketformer.compress(folder, folder / f"{tower}.pocket", weights=weights, tower=tower)
        models.append(pocketformer.load(folder / f"{tower}.pocket"))
    return models[0], models[1]


@torch.no_grad()
def reference(model: Any, ids: list[list[int]], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of the pictures and of each text alone, without padding."""
    processor = CLIPImageProcessorPil if isinstance(model, transformers.CLIPModel) else SiglipImageProcessorPil
    pixels = processor.from_pretrained(folder)(PICTURES, return_tensors="pt")
    images = model.get_image_features(**pixels).pooler_output
    rows = [model.get_text_features(input_ids=torch.tensor([row])).pooler_output for row in ids]
    return images.numpy(), torch.cat(rows).numpy()


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip(activation: str, tmp_path: Path) -> None:
    model = clip(tmp_path, hidden_act=activation)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(TEXTS, truncation=True)["input_ids"]
    vision, text = towers(tmp_path)
    assert isinstance(vision, pocketformer.ImageEmbedder)
    assert isinstance(text, pocketformer.Embedder)
    images, rows = reference(model, ids, tmp_path)
    assert vision.poolings == ("pooler",)
    assert deviation(vision.encode(PICTURES), images) < 1
    found = text.encode(TEXTS)
    assert deviation(found, rows) < 1
    assert text.encode(TEXTS[1]).tobytes() == found[1].tobytes()
    ended = "owl <|endoftext|> boat"
    expected = reference(model, tokenizer([ended])["input_ids"], tmp_path)[1]
    assert deviation(text.encode([ended]), expected) < 1
    zero_shot(model, pocketformer.ZeroShotImageClassifier(vision, text), tokenizer, tmp_path)


@torch.no_grad()
def zero_shot(model: Any, found: pocketformer.ZeroShotImageClassifier, tokenizer: Any, folder: Path) -> None:
    labels = ["owl", "boat", "seven"]
    texts = [f"a photo of a {label}." for label in labels]
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(PICTURES, return_tensors="pt")
    out = model(**tokenizer(texts, return_tensors="pt", padding=True), **pixels)
    probabilities = out.logits_per_image.softmax(dim=1).numpy()
    results: Any = found.classify(PICTURES, labels)
    for row, expected in zip(results, probabilities, strict=True):
        assert [dict(row)[label] for label in labels] == pytest.approx(list(expected), abs=1e-5)
        assert [score for _, score in row] == sorted((score for _, score in row), reverse=True)
    assert found.classify(PICTURES[0], labels, top_k=1) == results[0][:1]
    assert found.classify(PICTURES[0], labels, templates=("a photo of a {}.",) * 2)[0].score == pytest.approx(  # type: ignore[union-attr]
        results[0][0].score, abs=1e-5
    )
    with pytest.raises(ValueError, match="templates holds 'a photo'"):
        found.classify(PICTURES, labels, templates="a photo")
    with pytest.raises(ValueError, match="give a list of at least one"):
        found.classify(PICTURES, [])
    with pytest.raises(TypeError, match="is no ImageEmbedder; give the vision tower, then the text tower"):
        pocketformer.ZeroShotImageClassifier(found.texts, found.images)  # type: ignore[arg-type]


def test_labels_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip(tmp_path)
    judge = pocketformer.ZeroShotImageClassifier(*towers(tmp_path))
    for i, picture in enumerate(PICTURES):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    labels, templates = ["owl", "boat", "seven"], ["a photo of {}", "the {}!"]
    arguments = ["run", str(tmp_path / "vision.pocket"), str(tmp_path / "0.png"), str(tmp_path / "1.png"), "--labels"]
    arguments += [*labels, "--text-model", str(tmp_path / "text.pocket")]
    for options, expected in (
        ([], judge.classify(PICTURES, labels)),
        (
            ["--template", templates[0], "--template", templates[1]],
            judge.classify(PICTURES, labels, templates=templates),
        ),
    ):
        assert main([*arguments, *options, "--json"]) == 0
        results = json.loads(capsys.readouterr().out)["results"]
        assert [[tuple(label.values()) for label in result["labels"]] for result in results] == expected
    assert main(arguments) == 0
    assert "1.png" in capsys.readouterr().out
    swapped = ["run", str(tmp_path / "vision.pocket"), str(tmp_path / "0.png"), "--labels", "owl", "--text-model"]
    assert main([*swapped, str(tmp_path / "vision.pocket")]) == 1
    assert "is no Embedder; give the vision tower, then the text tower" in capsys.readouterr().err


def test_the_end_that_early_configs_name(tmp_path: Path) -> None:
    """The text's embedding is then at its highest id."""
    model = clip(tmp_path, eos_token_id=2)
    text = towers(tmp_path)[1]
    ids = transformers.CLIPTokenizer.from_pretrained(tmp_path)(TEXTS, truncation=True)["input_ids"]
    assert text.info()["text"]["pooled_token"] == "highest"
    assert deviation(text.encode(TEXTS), reference(model, ids, tmp_path)[1]) < 1


def test_siglip(tmp_path: Path) -> None:
    model = siglip(tmp_path)
    rng = np.random.default_rng(0)
    ids = [[*rng.integers(2, 90, n).tolist(), *[1] * (16 - n)] for n in (1, 5, 16)]
    vision, text = towers(tmp_path)
    images, rows = reference(model, ids, tmp_path)
    assert deviation(vision.encode(PICTURES), images) < 1
    last = np.arange(1, 4) * 16 - 1
    assert deviation(text.run(ids, rows=last), rows) < 1
    assert (text.info()["text"]["padded_length"], text.info()["text"]["pad_token_id"]) == (16, 1)
    sequences, chosen = text._pooled([np.array(row[:n], np.int32) for row, n in zip(ids, (1, 5, 16), strict=True)])
    assert [row.tolist() for row in sequences] == ids
    assert np.concatenate(chosen).tolist() == [15, 15, 15]
    assert text.info()["logit_bias"] == pytest.approx(1.2)


def test_siglip_reads_texts(tmp_path: Path) -> None:
    """By the pieces of its own kind of tokenizer, which takes punctuation out, filled up to the length it was trained
    with."""
    (tmp_path / "spiece.model").write_bytes((sentencepiece_data.FOLDER / "sentencepiece.bpe.model").read_bytes())
    settings = {"tokenizer_class": "SiglipTokenizer", "model_max_length": 16}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    model = siglip(tmp_path, 1000)
    vision, text = towers(tmp_path)
    texts = ["A photo of the house, it was!", "a photo of the house it was", ""]
    (ids,), _ = text._reader.inputs(texts[:1])
    assert ids[-1] == 2
    rows = reference(model, [[*ids.tolist(), *[1] * (16 - len(ids))]], tmp_path)[1]
    found = text.encode(texts)
    assert deviation(found[:1], rows) < 1
    assert found[0].tobytes() == found[1].tobytes() != found[2].tobytes()
    judged = pocketformer.ZeroShotImageClassifier(vision, text).classify(PICTURES[0], ["house", "owl"])
    assert {label.label for label in judged} == {"house", "owl"}  # type: ignore[union-attr]


def test_a_probe_that_saw_itself_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = siglip(tmp_path)
    monkeypatch.setattr("pocketformer.families.clip._SELF", 0.0)
    images = reference(model, [[1] * 16], tmp_path)[0]
    assert deviation(towers(tmp_path)[0].encode(PICTURES), images) > 100


@pytest.mark.parametrize("make", [clip, siglip])
def test_int8(make: Any, tmp_path: Path) -> None:
    make(tmp_path)
    exact = towers(tmp_path)[0].encode(PICTURES, normalize=True)
    rounded = towers(tmp_path, "int8")[0].encode(PICTURES, normalize=True)
    assert (exact * rounded).sum(axis=1).min() > 0.97


def test_siglip_without_a_head(tmp_path: Path) -> None:
    config = transformers.SiglipVisionConfig(**VISION, vision_use_head=False)
    model = transformers.SiglipVisionModel(config).eval()
    make_adversarial(model, 2)
    model.save_pretrained(tmp_path)
    processor = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    processor.save_pretrained(tmp_path)
    pocketformer.compress(tmp_path, tmp_path / "a.pocket", weights="fp32")
    found: Any = pocketformer.load(tmp_path / "a.pocket")
    with torch.no_grad():
        hidden = model(**processor(PICTURES, return_tensors="pt")).last_hidden_state.numpy()
    assert found.poolings == ("mean",)
    assert deviation(found.encode(PICTURES, patches=True).reshape(2, 9, 40), hidden) < 1


def test_one_tower_a_file(tmp_path: Path) -> None:
    clip(tmp_path)
    refused(tmp_path, UnsupportedModelError, "has two towers", "tower='vision'")
    with pytest.raises(ValueError, match="tower is 'audio'; it must be one of vision, text"):
        pocketformer.compress(tmp_path, tmp_path / "a.pocket", tower="audio")
    path = tmp_path / "config.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"clip"', '"vit"'), encoding="utf-8")
    with pytest.raises(UnsupportedModelError, match="model_type 'vit' has no text tower; leave tower out"):
        pocketformer.compress(tmp_path, tmp_path / "a.pocket", tower="text")
