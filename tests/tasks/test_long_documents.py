"""Documents: texts cut where the caller says, chunks that have seen the whole, answers in one pass."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pocketformer
from helpers import torch_models
from helpers.task_models import TaskModel, make

WORDS = "ada wrote the first program in london and mr babbage lives in paris where is a letter of the program "
DOCUMENT = " ".join(f"Chapter {i}. {WORDS[i % 17 :]}." for i in range(12))
SENTENCES = [match.span() for match in re.finditer(r"[^.]+\.\s*", DOCUMENT)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TaskModel:
    return make("embed", tmp_path_factory.mktemp("embed"), 128)


@pytest.fixture(scope="module")
def model(made: TaskModel) -> Any:
    return made.load()


def states(made: TaskModel, text: str) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """torch's states of all tokens but the special ones, and the characters of each."""
    encoding = made.tokenizer.encode(text)
    hidden = made.logits(text).last_hidden_state[0].numpy()
    kept = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
    return hidden[kept], [encoding.offsets[i] for i in kept]


def pooled(hidden: np.ndarray, offsets: list[tuple[int, int]], span: tuple[int, int]) -> np.ndarray:
    return hidden[[span[0] <= start < span[1] for start, _ in offsets]].mean(axis=0)


def test_max_length_cuts_texts(made: TaskModel) -> None:
    model = made.load()
    with pytest.warns(UserWarning, match=r"1 of 2 texts are longer than the 20 of max_length; \d+ tokens were cut"):
        cut = model.encode([DOCUMENT, "a letter"], max_length=20)
    ids = made.tokenizer.encode(DOCUMENT).ids
    np.testing.assert_array_equal(cut[0], model.run([[*ids[:19], ids[-1]]])[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        np.testing.assert_array_equal(model.encode([DOCUMENT], max_length=20)[0], cut[0])
        whole = model.encode(DOCUMENT, max_length=512)  # beyond what texts are cut at, within what the model reads
        np.testing.assert_array_equal(model.encode_document("a letter", max_length=64), cut[1])
    np.testing.assert_array_equal(whole, model.run([ids])[0])
    for bad in (0, 3, 513):
        with pytest.raises(ValueError, match=f"max_length is {bad}; it must be between 4 and the model's 512"):
            model.encode("a", max_length=bad)


def test_chunks_have_seen_the_whole_document(made: TaskModel, model: Any) -> None:
    hidden, offsets = states(made, DOCUMENT)
    found = model.encode_chunks(DOCUMENT, SENTENCES, max_length=512)
    assert (found.dtype, found.shape) == (np.float32, (len(SENTENCES), 78))
    np.testing.assert_allclose(found, [pooled(hidden, offsets, span) for span in SENTENCES], atol=1e-3)
    alone = model.encode([DOCUMENT[slice(*span)] for span in SENTENCES])
    assert np.abs(found - alone).max() > 0.1
    assert model.encode_chunks(DOCUMENT, []).shape == (0, 78)


def test_chunks_in_any_order_that_overlap(made: TaskModel, model: Any) -> None:
    hidden, offsets = states(made, DOCUMENT)
    spans = [(40, 90), (0, len(DOCUMENT)), (DOCUMENT.index("mr"), DOCUMENT.index("mr") + 1), (41, 91)]
    found = model.encode_chunks(DOCUMENT, spans, max_length=512, normalize=True, truncate_dim=40)
    expected = np.stack([pooled(hidden, offsets, span)[:40] for span in spans])
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-3)


def test_late_chunking_of_consecutive_chunks(model: Any) -> None:
    chunks = [DOCUMENT[slice(*span)] for span in SENTENCES]
    assert "".join(chunks) == DOCUMENT
    expected = model.encode_chunks(DOCUMENT, SENTENCES, max_length=512)
    np.testing.assert_array_equal(model.encode(chunks, late_chunking=True, max_length=512), expected)
    one = model.encode("ada wrote", late_chunking=True)
    np.testing.assert_array_equal(one, model.encode(["ada wrote"], late_chunking=True)[0])
    assert one.shape == (78,)


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "modernbert"])
def test_blanks_that_are_part_of_tokens(tmp_path: Path, family: str) -> None:
    """The blank before a word lies in the chunk before it; the word's token does not, nor a blank of its own."""
    made = make("embed", tmp_path, family=family)
    text = "ada wrote the program. we live in london."
    encoding = made.tokenizer.encode(text)
    hidden = made.logits(text).last_hidden_state[0].numpy()
    ends = enumerate(end for _, end in encoding.offsets)
    second = [i for i, end in ends if end >= 23 and encoding.offsets[i] != (22, 23) and i < len(encoding.ids) - 1]
    found = made.load().encode(["ada wrote the program. ", "we live in london."], late_chunking=True)
    np.testing.assert_allclose(found[1], hidden[second].mean(axis=0), atol=1e-3)


def test_documents_beyond_one_pass(made: TaskModel) -> None:
    """Every token is taken from the window that has more around it; a chunk may span several windows."""
    model, length = made.load(), 128
    ids = made.tokenizer.encode(DOCUMENT).ids[1:-1]
    offsets = states(made, DOCUMENT)[1]
    room, shared = length - 2, length // 4
    hidden = np.empty((len(ids), 78), np.float32)
    for first in range(0, len(ids), room - shared):
        part = ids[first : first + room]
        with torch.no_grad():
            rows = made.torch(torch.tensor([[2, *part, 3]])).last_hidden_state[0, 1:-1].numpy()
        skipped = shared // 2 if first else 0
        hidden[first + skipped : first + len(part)] = rows[skipped:]
        if first + room >= len(ids):
            break
    spans = [*SENTENCES, (0, len(DOCUMENT))]
    done: list[tuple[int, int]] = []
    with pytest.warns(UserWarning, match=r"longer than the 128 tokens of one pass: it is read in \d windows"):
        found = model.encode_chunks(DOCUMENT, spans, progress=lambda *args: done.append(args))
    assert done == [(i + 1, len(done)) for i in range(len(done))]
    assert len(done) > 3
    np.testing.assert_allclose(found, [pooled(hidden, offsets, span) for span in spans], atol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        model.encode_chunks(DOCUMENT, spans)


def test_prompts_are_in_no_chunk(tmp_path: Path) -> None:
    made = make("embed", tmp_path, text={"prompts": {"document": "the letter "}})
    hidden, offsets = states(made, "the letter ada wrote")
    found = made.load().encode_document(["ada ", "wrote"], late_chunking=True)
    np.testing.assert_allclose(found, [pooled(hidden, offsets, span) for span in ((11, 15), (15, 20))], atol=1e-3)


@pytest.mark.parametrize(
    ("chunks", "words"),
    [
        ([(0, 4), (5, 5)], r"chunks\[1\] is \(5, 5\); a chunk is \(start, end\)"),
        ([(0, 10**6)], r"chunks\[0\] is \(0, 1000000\); .* of the document's \d+"),
        ([(7, 8)], r"chunks\[0\] is ' ', which has no token; leave it out"),
    ],
)
def test_chunks_that_are_refused(model: Any, chunks: list[tuple[int, int]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        model.encode_chunks(DOCUMENT, chunks, max_length=512)


def test_models_and_texts_without_chunks(tmp_path: Path, model: Any) -> None:
    made = make("embed", tmp_path)
    torch_models.write_modules(made.folder, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    pocketformer.compress(made.folder, tmp_path / "cls.pocket", weights="fp32")
    with pytest.raises(ValueError, match="pools by cls, a token that chunks do not have; late chunking needs a model"):
        pocketformer.Embedder.load(tmp_path / "cls.pocket").encode(["a", "b"], late_chunking=True)
    with pytest.raises(TypeError, match=r"texts\[0\]: a text is tuple"):
        model.encode([("a", "b")], late_chunking=True)
    with pytest.raises(TypeError, match="document is a list"):
        model.encode_chunks(["a"], [(0, 1)])


def test_int8_files_and_modules_after_pooling(tmp_path: Path, made: TaskModel) -> None:
    """What follows the pooling works on chunks as on texts."""
    torch_models.write_modules(made.folder, {"pooling_mode_mean_tokens": True}, "Normalize")
    pocketformer.compress(made.folder, tmp_path / "int8.pocket")
    model = pocketformer.Embedder.load(tmp_path / "int8.pocket")
    first, second = model.encode(["ada wrote ", "the program"], late_chunking=True)
    np.testing.assert_allclose(np.linalg.norm([first, second], axis=1), 1, rtol=1e-5)
    fp32 = made.load().encode(["ada wrote ", "the program"], late_chunking=True, normalize=True)
    assert (np.stack([first, second]) * fp32).sum(axis=1).min() > 0.99


def test_an_answer_in_one_pass(tmp_path: Path) -> None:
    """A model that reads long texts sees its context once; ``max_length`` makes it windows."""
    made = make("answer", tmp_path, 2048, family="modernbert", max_position_embeddings=2048)
    context = DOCUMENT
    reader = made.load()
    assert reader.max_length == 2048
    passes: list[int] = []
    run = reader._engine.run
    reader._engine.run = lambda ids, *rest, **more: passes.extend(map(len, ids)) or run(ids, *rest, **more)
    best = reader.answer("who wrote the letter", context, top_k=3)
    tokens = len(made.tokenizer.encode("who wrote the letter", context).ids)
    assert passes == [tokens]
    assert tokens > 1024
    out = made.logits("who wrote the letter", context)
    encoding = made.tokenizer.encode("who wrote the letter", context)
    inside = [i for i, part in enumerate(encoding.sequence_ids) if part == 1]
    edges = [*inside, 0, tokens - 1]
    starts, ends = (torch.softmax(logits[0, edges], 0).numpy() for logits in (out.start_logits, out.end_logits))
    square = np.tril(np.triu(np.outer(starts[: len(inside)], ends[: len(inside)])), 14)
    assert best[0].score == pytest.approx(square.max(), rel=1e-3)
    passes.clear()
    done: list[tuple[int, int]] = []
    with pytest.warns(UserWarning, match=r"the context is longer than the 300 tokens of one pass: .* in \d+ windows"):
        reader.answer("who wrote the letter", context, max_length=300, progress=lambda *counts: done.append(counts))
    assert len(passes) > 3
    assert done == [(i + 1, len(passes)) for i in range(len(passes))]
    assert max(passes) == 300
    with pytest.raises(ValueError, match="max_length is 2049; it must be between 4 and the model's 2048"):
        reader.answer("who", context, max_length=2049)


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "albert", "modernbert"])
def test_windows_of_a_context_that_is_tokenized_piece_by_piece(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are those of the whole, with every word told apart."""
    reader = make("answer", tmp_path, 100, family=family).load()
    question, context = (
        "who wrote the letter",
        DOCUMENT + "\u00e9t\u00e9 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35  " + DOCUMENT,
    )
    with pytest.warns(UserWarning, match="the context is longer than the 100 tokens"):
        whole = reader._reader.windows(question, context)
    answers = reader.answer(question, context, top_k=5, allow_empty=True)
    monkeypatch.setattr("pocketformer.tasks.text.PIECE", 100)
    assert reader._reader._long(context, reader._reader.any_tokenizer())
    pieces = reader._reader.windows(question, context)
    assert len(pieces) == len(whole) > 5
    for a, b in zip(whole, pieces, strict=True):
        # Where a model has no types, windows behind the first keep what the tokenizer's template does not say.
        for field in ("ids", "offsets", *(["types"] if reader._reader.types(whole) else [])):
            np.testing.assert_array_equal(getattr(a, field), getattr(b, field))
        assert (a.asked, a.begin, a.end) == (b.asked, b.begin, b.end)
        assert (a.first, a.last) == (b.first, b.last)
        assert (a.words < 0).tolist() == (b.words < 0).tolist()
        assert (np.diff(a.words) == 0).tolist() == (np.diff(b.words) == 0).tolist()
    assert reader.answer(question, context, top_k=5, allow_empty=True) == answers
    with pytest.raises(ValueError, match="leaves no room for its context in 100 tokens"):
        reader.answer("who wrote " * 45, context)


@pytest.mark.slow
def test_a_document_of_a_million_tokens(tmp_path: Path) -> None:
    """To a model of 8,192: it is cut, or read in windows, and either is said once with the numbers."""
    sizes = {
        "max_position_embeddings": 8192,
        "layer_types": ["sliding_attention"] * 3,
        "global_attn_every_n_layers": None,
    }
    model = make("embed", tmp_path, 8192, family="modernbert", **sizes).load()
    assert model.max_length == 8192
    piece = WORDS * 8
    tokens = len(model._reader.any_tokenizer().encode(piece, add_special_tokens=False).ids)
    copies = -(-1_000_000 // tokens)
    document = piece * copies
    with pytest.warns(UserWarning, match="1 of 1 texts are longer than the 8192 tokens this model reads") as said:
        cut = model.encode(document)
    assert len(said) == 1
    words = str(said[0].message)
    assert int(re.search(r"(\d+) tokens were cut from the longest", words)[1]) > 990_000  # type: ignore[index]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # later cuts are not said
        np.testing.assert_array_equal(cut, model.encode(document[: len(piece) * 9000 // tokens]))

    done: list[tuple[int, int]] = []
    middle = len(document) // 2
    spans = [(0, 4000), (middle, middle + 4000), (len(document) - 4000, len(document)), (0, len(document))]
    with pytest.warns(
        UserWarning, match=r"8192 tokens of one pass: it is read in 1\d\d windows that share 256"
    ) as said:
        found = model.encode_chunks(document, spans, progress=lambda *at: done.append(at))
    assert len(said) == 1
    assert [at for at, _ in done] == list(range(1, done[-1][1] + 1))
    assert len(done) >= 1_000_000 // (8190 - 256)
    assert np.isfinite(found).all()
    with pytest.raises(ValueError, match="the model takes at most 8192, truncate it"):
        model.run([np.full(1_000_000, 5)])
