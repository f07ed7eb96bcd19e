"""What sentence-transformers does around an embedding: prompts, fewer dimensions, fewer bits, similarity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pocketformer
from helpers.task_models import make
from helpers.torch_models import write_modules

TEXTS = ["Ada lives in London.", "Who wrote the first program?", "a letter", ""]
PROMPTS = {"query": "who is ", "passage": "the program ", "document": "letter "}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make("embed", tmp_path_factory.mktemp("embed")).load()


def prompted(folder: Path, prompts: dict[str, str] = PROMPTS, model: Any = None, **text: Any) -> Any:
    return make("embed", folder, text={"prompts": prompts, **text}, model=model).load()


def same(a: Any, b: Any) -> bool:
    return bool(a.tobytes() == b.tobytes())


def test_prompts(plain: Any, tmp_path: Path) -> None:
    model = prompted(tmp_path, default_prompt_name="query", include_prompt=True)
    queries, passages = (plain.encode([PROMPTS[name] + text for text in TEXTS]) for name in ("query", "passage"))
    assert same(model.encode(TEXTS), queries)
    assert same(model.encode(TEXTS, prompt="query"), queries)
    assert same(model.encode(TEXTS, prompt="passage"), passages)
    assert same(model.encode(TEXTS, prompt=""), plain.encode(TEXTS))
    assert same(model.encode_query(TEXTS), queries)
    assert same(model.encode_document(TEXTS), plain.encode([PROMPTS["document"] + text for text in TEXTS]))
    assert same(model.encode_document(TEXTS[0], prompt="passage"), passages[0])
    assert same(model([("a", "b")]), plain.encode([(PROMPTS["query"] + "a", "b")]))
    assert model.prompts == PROMPTS
    with pytest.raises(ValueError, match="prompt is 'clustering'; the model has 'query', 'passage', 'document'"):
        model.encode("a", prompt="clustering")


def test_without_prompts(plain: Any) -> None:
    assert plain.prompts == {}
    assert same(plain.encode_query(TEXTS), plain.encode(TEXTS))
    assert same(plain.encode_document(TEXTS), plain.encode(TEXTS))
    with pytest.raises(ValueError, match="prompt is 'query'; the model has none"):
        plain.encode("a", prompt="query")


def test_names_of_document_prompts(plain: Any, tmp_path: Path) -> None:
    model = prompted(tmp_path, {"corpus": "of ", "passage": "the "})
    assert same(model.encode_document("ada"), plain.encode("the ada"))
    assert same(model.encode_query("ada"), plain.encode("ada"))


def test_prompts_that_pooling_leaves_out_are_refused(plain: Any, tmp_path: Path) -> None:
    model = prompted(tmp_path, {"query": "who ", "none": ""}, include_prompt=False)
    with pytest.raises(ValueError, match="prompt is 'query', whose tokens this model leaves out"):
        model.encode_query("a")  # a file from before the runtime could
    assert same(model.encode("a", prompt="none"), plain.encode("a"))


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("mode", ["mean", "cls", "weightedmean"])
def test_prompts_that_are_not_pooled(tmp_path: Path, family: str, mode: str) -> None:
    """The prompt is read and its tokens, with the special one before them, are left out."""
    made = make("embed", tmp_path, family=family)
    write_modules(tmp_path, {})
    pooling = {"pooling_mode": mode, "include_prompt": False}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    settings = {"prompts": {"query": "who is ada "}, "default_prompt_name": "query"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(settings))
    pocketformer.compress(tmp_path, tmp_path / "model.pocket", weights="fp32")
    model: Any = pocketformer.load(tmp_path / "model.pocket")
    skip = len(made.tokenizer.encode("who is ada ").ids) - 1
    expected = []
    for text in TEXTS:
        rows = made.logits(f"who is ada {text}").last_hidden_state[0].numpy()
        number = np.arange(len(rows))
        weights = {"mean": number * 0 + 1, "cls": number == skip, "weightedmean": number + 1}[mode]
        chosen = weights[skip:].astype(np.float64)
        expected.append(chosen @ rows[skip:] / chosen.sum())
    np.testing.assert_allclose(model.encode(TEXTS), expected, atol=2e-5)
    np.testing.assert_allclose(model.encode_query(TEXTS[0]), expected[0], atol=2e-5)
    if (mode, family) == ("mean", "bert"):  # all of a text but the special token at its end
        rows = made.logits(f"who is ada {TEXTS[0]}").last_hidden_state[0].numpy()[skip:-1]
        chunk = model.encode_chunks(TEXTS[0], [(0, len(TEXTS[0]))])[0]
        np.testing.assert_allclose(chunk, rows.mean(0), atol=2e-5)
    assert not np.allclose(model.encode(TEXTS, prompt=""), expected, atol=1e-2)


def test_dimensions(plain: Any, tmp_path: Path) -> None:
    whole = plain.encode(TEXTS)
    model = prompted(tmp_path, {}, {"truncate_dim": 8})
    assert (model.width, plain.width) == (8, 78)
    assert same(model.encode(TEXTS), whole[:, :8])
    assert same(model.encode(TEXTS[0], truncate_dim=78), whole[0])
    normal = model.encode(TEXTS, truncate_dim=5, normalize=True)
    np.testing.assert_allclose(normal, whole[:, :5] / np.linalg.norm(whole[:, :5], axis=1, keepdims=True), rtol=1e-5)
    for bad in (0, 79):
        with pytest.raises(ValueError, match=f"truncate_dim is {bad}; the model's embeddings have 78 dimensions"):
            model.encode(TEXTS, truncate_dim=bad)


def test_precisions(plain: Any) -> None:
    """The values of sentence-transformers' ``quantize_embeddings``."""
    rows = plain.encode(TEXTS)
    half = plain.encode(TEXTS, precision="float16")
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, rows.astype(np.float16))
    low, high = rows.min(0), rows.max(0)
    steps = np.clip(np.floor((rows - low) / ((high - low) / 255)), 0, 255)
    unsigned, signed = (plain.encode(TEXTS, precision=name) for name in ("uint8", "int8"))
    assert (unsigned.dtype, signed.dtype) == (np.uint8, np.int8)
    np.testing.assert_array_equal(unsigned, steps)
    np.testing.assert_array_equal(signed, steps - 128)
    ranges = np.stack([np.full(78, -1.0), np.full(78, 1.0)])
    one = plain.encode(TEXTS[0], precision="int8", ranges=ranges)
    np.testing.assert_array_equal(one, np.clip(np.floor((rows[0] + 1) / np.float32(2 / 255)), 0, 255) - 128)
    bits, signs = (plain.encode(TEXTS, precision=name) for name in ("ubinary", "binary"))
    assert bits.shape == signs.shape == (4, 10)
    np.testing.assert_array_equal(np.unpackbits(bits, axis=1)[:, :78], rows > 0)
    assert signs.dtype == np.int8
    np.testing.assert_array_equal(signs.astype(int) + 128, bits)
    assert plain.encode([], precision="int8").shape == (0, 78)
    with pytest.raises(ValueError, match="precision is 'int4'; it must be one of float32, float16"):
        plain.encode("a", precision="int4")
    with pytest.raises(ValueError, match="one text, which has no range; pass ranges"):
        plain.encode("a", precision="int8")
    with pytest.raises(ValueError, match=r"ranges has shape \[78\]; it must be \[2, 78\]"):
        plain.encode("a", precision="int8", ranges=ranges[0])


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarity(plain: Any, tmp_path: Path, name: str) -> None:
    import torch

    model = prompted(tmp_path, {}, {"similarity": name})
    a, b = (torch.from_numpy(rows) for rows in (plain.encode(TEXTS), plain.encode(TEXTS[:2])))
    expected = {
        "cosine": lambda: torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=2),
        "dot": lambda: a @ b.T,
        "euclidean": lambda: -torch.cdist(a, b),
        "manhattan": lambda: -torch.cdist(a, b, p=1.0),
    }[name]()
    assert model.similarity_fn_name == name
    found = model.similarity(a.numpy(), b.numpy())
    assert (found.dtype, found.shape) == (np.float32, (4, 2))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert same(model.similarity(TEXTS, TEXTS[:2]), found)
    assert model.similarity(TEXTS[0], b.numpy()[1]).shape == (1, 1)
    assert plain.similarity_fn_name == "cosine"
    with pytest.raises(ValueError, match="a has 78 columns and b 5"):
        model.similarity(a.numpy(), b.numpy()[:, :5])


def test_pairs(tmp_path: Path) -> None:
    made = make("embed", tmp_path)
    pair = ("who wrote the letter", "ada")
    expected = made.logits(*pair).last_hidden_state[0].mean(0).numpy()
    np.testing.assert_allclose(made.load().encode([pair])[0], expected, atol=1e-3)
    assert isinstance(made.load(), pocketformer.Embedder)
