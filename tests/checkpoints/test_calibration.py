"""Samples become token ids before any work starts, or are refused; a profile that was kept is as good as its run."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.graphs import MODEL, TEXT, tiny_graph
from helpers.tokenizers import WORDS, word_pieces
from pocketformer import reference
from pocketformer.compression import (
    QuantizeOptions,
    calibration,
    compress,
    compress_checkpoint,
    gptq,
    operators,
    profile,
)
from pocketformer.compression.calibration import (
    Calibration,
    calibrate,
    default_calibration,
    default_texts,
    parted,
    random_tokens,
)
from pocketformer.compression.pipeline import make_profiler
from pocketformer.compression.quantize import quantize_graph
from pocketformer.graph import TOKENS, GraphBuilder
from pocketformer.sources.huggingface import Checkpoint

VOCABULARY = word_pieces().get_vocab_size()
SENTENCES = [" ".join(np.random.default_rng(i).choice(WORDS, 1 + i % 9)) for i in range(120)]


def checkpoint(**changes: Any) -> Checkpoint:
    graph = tiny_graph(hidden=32, ffn=48, vocab=VOCABULARY)
    loaded = Checkpoint(graph, MODEL, TEXT, word_pieces().to_str().encode())
    return replace(loaded, **changes)


def test_texts_become_the_ids_of_the_models_tokenizer() -> None:
    seen = calibrate(checkpoint(), SENTENCES)
    expected = [word_pieces().encode(text).ids for text in SENTENCES]
    assert seen.lengths.tolist() == [len(ids) for ids in expected]
    np.testing.assert_array_equal(seen.inputs["ids"], np.concatenate(expected))
    assert "types" not in seen.inputs


def test_pairs_have_types_and_ids_are_taken_as_they_are() -> None:
    pairs = [(text, "who wrote the letter") for text in SENTENCES[:60]]
    seen = calibrate(checkpoint(), pairs)
    encoding = word_pieces().encode(*pairs[0])
    np.testing.assert_array_equal(seen.inputs["types"][: len(encoding.ids)], encoding.type_ids)
    ids = [np.arange(40, dtype=np.uint8) % VOCABULARY, *([5] * 30 for _ in range(9))]
    seen = calibrate(checkpoint(tokenizer_json=None), ids)
    np.testing.assert_array_equal(seen.inputs["ids"], np.concatenate(ids))


def test_long_samples_are_cut_and_many_are_chosen_from() -> None:
    seen = calibrate(checkpoint(), ["ada " * 100] * 50, tokens=400)
    assert seen.lengths.max() == TEXT["max_length"]
    assert 400 <= seen.rows <= 400 + TEXT["max_length"]
    some = calibrate(checkpoint(), [[i % VOCABULARY] * 10 for i in range(1000)], tokens=1000)
    assert some.rows == 1000
    firsts = some.inputs["ids"][::10]
    assert len(set(firsts.tolist())) > 20, "from all of them, not the first"


def test_what_is_judged_by_is_not_fitted_to() -> None:
    held, rest = default_texts(True), default_texts(False)
    assert sum(map(len, held)) > 4000
    assert not any(sentence in text for sentence in held[:40] for text in rest if len(sentence) > 40)
    lengths = np.array([3, 5] * 50)
    ids = np.arange(400, dtype=np.int32)
    fitted, judged = parted(Calibration({"ids": ids}, lengths), 50)
    assert fitted.rows + judged.rows == 400
    assert 25 <= judged.rows <= 75
    assert np.array_equal(np.sort(np.concatenate([fitted.inputs["ids"], judged.inputs["ids"]])), ids)
    assert np.array_equal(judged.inputs["ids"][:3], ids[:3])
    few = Calibration({"ids": ids}, lengths)
    assert parted(few, 150) == (few, few), "too few to part with any"


def test_memory_does_not_grow_with_the_samples() -> None:
    def samples(count: int) -> Iterator[list[int]]:
        return ([7] * 40 for _ in range(count))

    peaks = []
    for count in (300, 6000):
        tracemalloc.start()
        calibrate(checkpoint(), samples(count), tokens=2000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_rows_of_values_wait_in_a_file_where_they_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = tiny_graph()
    names = ["layer0.qkv", "layer1.down"]
    expected = list(profile.profile(graph, names, random_tokens(graph, 400)))
    monkeypatch.setattr(operators, "IN_MEMORY", 10_000)
    monkeypatch.setattr(profile, "CHUNK", 50)
    monkeypatch.setattr(operators, "CHUNK", 50)
    for seen, wanted in zip(profile.profile(graph, names, random_tokens(graph, 400)), expected, strict=True):
        assert (seen.weights, seen.rows) == (wanted.weights, wanted.rows)
        np.testing.assert_allclose(seen.squares, wanted.squares, rtol=1e-6)
        np.testing.assert_allclose(seen.moments, wanted.moments, rtol=1e-5, atol=0.01)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "calibration has 0 tokens in 0 samples; it needs at least 256"),
        (["ada lives in london"], r"calibration has \d+ tokens in 1 samples"),
        ([*SENTENCES, None], r"calibration\[120\] is None; it must be a text, a pair of texts, or the token ids"),
        ([3.5], r"calibration\[0\] is 3.5"),
        ([[1.5, 2]], r"calibration\[0\] is \[1.5, 2\]"),
        ([("a", "b", "c")], r"calibration\[0\] is \('a', 'b', 'c'\)"),
        ([[1, [2]]], r"calibration\[0\] is \[1, \[2\]\]"),
        ([[0, 99_999]], r"calibration\[0\] holds ids 0…99999; the model knows 0…\d+"),
        ([[-1]], r"calibration\[0\] holds ids -1…-1"),
        (["fine", "bad \ud800"], r"calibration\[1\] holds '\\ud800', half of a surrogate pair, at character 4"),
        (["Ωμέγα και άλλα"] * 200, r"mostly unknown to the model: 100% of its tokens .* in a language of the model"),
    ],
)
def test_bad_samples_are_refused_before_work_starts(samples: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        compress_checkpoint(checkpoint(), tmp_path / "file", calibration=samples)
    assert list(tmp_path.iterdir()) == []


def test_what_a_model_cannot_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the checkpoint has no tokenizer: add its tokenizer\.json"):
        calibrate(checkpoint(tokenizer_json=None), SENTENCES)
    with pytest.raises(ValueError, match="tokenizer cannot be used"):
        calibrate(checkpoint(tokenizer_json=b"{}"), SENTENCES)
    with pytest.raises(ValueError, match="the tokenizer gives the id"):
        calibrate(checkpoint(graph=tiny_graph(vocab=20)), SENTENCES)
    with pytest.raises(ValueError, match="weights is 'fp32' and rounded without calibration; leave calibration out"):
        compress_checkpoint(checkpoint(), tmp_path / "file", "fp32", calibration=SENTENCES)


def test_files_hold_a_text_a_line(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(b"\xef\xbb\xbfada lives\r\n\n  \nwho\twhere\nlast")
    assert list(calibration.read_lines(path)) == ["ada lives", ("who", "where"), "last"]
    path.write_bytes(b"ada\ncaf\xe9")
    with pytest.raises(ValueError, match=r"texts.txt, line 2 is not UTF-8 \(byte 0xe9\)"):
        calibrate(checkpoint(), path)


def test_our_own_texts_are_the_default() -> None:
    seen = default_calibration(checkpoint())
    assert seen is not None
    assert seen.rows > 3000
    assert calibration.DEFAULT_TEXT.stat().st_size <= 200_000
    assert len(default_texts()) == len(set(default_texts()))
    assert default_calibration(checkpoint(tokenizer_json=None)) is None
    assert default_calibration(checkpoint(tokenizer_json=b"{}")) is None, "random tokens will do"


def test_the_calibration_shows_in_the_weights(tmp_path: Path) -> None:
    """And no calibration at all is asked for by random_tokens=0."""
    files = []
    for name, options, samples in (("default", None, None), ("given", None, SENTENCES), ("nearest", 0, None)):
        chosen = QuantizeOptions(random_tokens=0) if options == 0 else None
        compress_checkpoint(checkpoint(), tmp_path / name, options=chosen, calibration=samples)
        files.append((tmp_path / name).read_bytes())
    assert len(set(files)) == 3


def test_a_kept_profile_gives_the_same_file(tmp_path: Path) -> None:
    kept = tmp_path / "seen.npz"
    compress_checkpoint(checkpoint(), tmp_path / "first", calibration=SENTENCES, save_profile=kept)
    compress_checkpoint(checkpoint(), tmp_path / "again", calibration=kept)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "again").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"seen.npz", "first", "again"}


def test_profiles_of_other_models_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    kept = tmp_path / "seen.npz"
    compress_checkpoint(checkpoint(), tmp_path / "first", calibration=SENTENCES, save_profile=kept)
    for graph, message in (
        (tiny_graph(vocab=VOCABULARY), "has seen 32 inputs of 'layer0.qkv', which has 36"),
        (tiny_graph(hidden=32, ffn=48, layers=3, vocab=VOCABULARY), "knows nothing of 'layer2.qkv'"),
    ):
        with pytest.raises(ValueError, match=message):
            compress_checkpoint(checkpoint(graph=graph), tmp_path / "other", calibration=kept)
    content = bytearray(kept.read_bytes())
    for damage in (b"", b"not a file at all", bytes(content[:2000]), bytes(len(content))):
        kept.write_bytes(damage)
        with pytest.raises(ValueError, match=r"seen.npz' cannot be read \(.*; make it anew"):
            compress_checkpoint(checkpoint(), tmp_path / "other", calibration=kept)
    assert not (tmp_path / "other").exists()


def test_linears_of_one_input_may_be_rotated_differently() -> None:
    rng = np.random.default_rng(8)
    build = GraphBuilder.text(70, 0, 8)
    x = build.embed([calibrated_table(rng)])
    gate = build.linear(x, rng.standard_normal((16, 16)).astype(np.float32), name="gate")
    graph = build.build(build.linear(gate, rng.standard_normal((4, 16)).astype(np.float32), name="down"))
    (observer,) = profile.profile(graph, ["gate"], random_tokens(graph, 64))
    plain, rotated = observer.rotated(0), observer.rotated(16)
    assert np.trace(rotated) == pytest.approx(16 * np.trace(plain))
    np.testing.assert_array_equal(plain, observer.moments)


def calibrated_table(rng: np.random.Generator) -> Any:
    from pocketformer.graph import Table

    return Table("words", rng.standard_normal((70, 16)).astype(np.float32), "ids")


def test_images_are_rows_of_numbers() -> None:
    """A grid, its windows and rows before them: every domain's rows are those of the interpreter."""
    rng = np.random.default_rng(3)
    build = GraphBuilder()
    build.domain("pixels", "grid", height=4, width=4)
    build.inputs.append({"name": "image", "domain": "pixels", "dtype": "f32", "width": 3})
    build.domain("patches", "grid", of="pixels", height=2, width=2)
    build.domain("tokens", "ragged", of="patches", prepended=1)
    build.ops.append(
        {"op": "unfold", "in": "image", "out": "w", "domain": "patches", "height": 2, "width": 2, "stride": 2}
    )
    x = build.linear("w", rng.standard_normal((16, 12)).astype(np.float32), name="patch")
    build.ops.append({"op": "prepend", "in": x, "out": "t", "domain": "tokens", "rows": "first"})
    build.params["first"] = rng.standard_normal((1, 16)).astype(np.float32)
    graph = build.build(build.linear("t", rng.standard_normal((16, 16)).astype(np.float32), name="head"))
    images = rng.standard_normal((3 * 16, 3)).astype(np.float32)
    seen = {
        o.weights: o for o in profile.profile(graph, ["patch", "head"], Calibration({"image": images}, np.full(3, 16)))
    }
    rows: dict[str, Any] = {}

    def hook(op: Any, inputs: Any, output: Any) -> None:
        if op["op"] == "linear":
            rows[op["weight"]] = inputs[0]

    reference.run(graph, {"image": images}, hook)
    for name in ("patch", "head"):
        assert seen[(name,)].rows == len(rows[name])
        np.testing.assert_allclose(seen[(name,)].squares, np.square(rows[name]).sum(axis=0), rtol=1e-4)


def test_convolutions_are_run_by_themselves() -> None:
    """Windows on the grid that they are of, grids made from others than an operator reads, and two values side by
    side."""
    rng = np.random.default_rng(3)
    build = GraphBuilder([{"name": "pixels", "kind": "grid", "height": 4, "width": 4}])
    build.inputs.append({"name": "image", "domain": "pixels", "dtype": "f32", "width": 16})
    half, odd = (build.domain(f"{n}x{n}", "grid", "pixels", height=n, width=n) for n in (2, 3))
    window = {"height": 3, "width": 3, "padding": 1}
    taps = rng.standard_normal((9, 16)).astype(np.float32)
    x = build.depthwise("image", taps, taps[0], "pixels", name="taps", activation="silu", **window)
    x = build.depthwise(x, taps, None, half, name="taps", stride=2, **window)
    x = build.fold(build.unfold(x, half, height=2, width=2, padding=1, stride=2), "pixels", height=2, width=2)
    x = build.concat([x, build.resize(build.resize(x, odd), "pixels")])
    graph = build.build(build.linear(x, rng.standard_normal((8, 32)).astype(np.float32), name="head"))
    images = rng.standard_normal((3 * 16, 16)).astype(np.float32)
    (seen,) = profile.profile(graph, ["head"], Calibration({"image": images}, np.full(3, 16)))
    rows: list[Any] = []
    reference.run(graph, {"image": images}, lambda op, inputs, _: rows.append(inputs[0]))
    np.testing.assert_allclose(seen.squares, np.square(rows[-1]).sum(axis=0), rtol=1e-4)


def test_images_are_not_calibrated_on_texts() -> None:
    assert make_profiler(checkpoint(), QuantizeOptions(random_tokens=0), None) is None


def test_a_rounded_model_runs_beside_the_exact_one() -> None:
    """Its observers see both: the same rows where nothing was changed, others behind what was."""
    graph = tiny_graph()
    names = ["layer0.qkv", "layer0.up", "layer1.qkv"]
    rounded: dict[str, Any] = {}
    plain = list(profile.profile(graph, names, random_tokens(graph, 200)))
    for index, seen in enumerate(profile.profile(graph, names, random_tokens(graph, 200), rounded=rounded)):
        assert seen.cross is not None
        if index == 0:
            np.testing.assert_array_equal(seen.moments, plain[0].moments)
            np.testing.assert_allclose(seen.cross, seen.moments, rtol=1e-5, atol=0.01)
            rounded["layer0.qkv.weight"] = graph.params["layer0.qkv.weight"] * np.float32(0.9)
            continue
        assert "layer0.qkv.weight" not in rounded, "it was multiplied by for the last time"
        assert np.abs(seen.moments - plain[index].moments).max() > 1
        change = gptq.refit(seen.moments, seen.cross, 0.01)
        # ‖Z − X·(1 + change)ᵀ‖² less ‖Z‖², Z being the exact rows and X the rounded ones.
        fitted = np.eye(len(change)) + change

        def loss(matrix: Any, seen: Any = seen) -> float:
            return float(np.trace(matrix @ seen.moments @ matrix.T) - 2 * np.trace(matrix @ seen.cross.T))

        assert loss(fitted) < loss(np.eye(len(change)))


@pytest.mark.parametrize(("bits", "least"), [(4, 0.9), (8, 0.999)])
def test_linears_are_fitted_to_what_was_rounded_before_them(bits: int, least: float) -> None:
    graph = tiny_graph(hidden=64, ffn=128)
    ids = np.random.default_rng(3).integers(0, 101, 90)
    inputs = {"ids": ids, TOKENS: np.cumsum([0, 1, 2, 7, 40, 40])}
    exact = reference.run(graph, inputs)
    cosines = []
    for damping in (0.0, 0.3):
        options = QuantizeOptions(refit=damping, refit_int8=bits == 8, group=32)
        result = reference.run(quantize_graph(graph, options, linear_bits=bits), inputs)
        cosines.append(float((exact * result).sum(axis=1).mean()))
    assert cosines[0] > least
    assert cosines[1] != cosines[0]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"weights": "fp16"}, "refit_int8 is of int8, and with weights 'fp16' there is none"),
        ({"calibration": "seen.npz"}, "a profile that is kept says nothing"),
        ({"save_profile": "seen.npz"}, "a profile that is kept says nothing"),
        ({"random_tokens": 0}, "refit_int8 needs what the model is run on"),
    ],
)
def test_a_fit_that_cannot_be_is_refused(how: dict[str, Any], message: str, loaded: Checkpoint, tmp_path: Path) -> None:
    options = QuantizeOptions(refit_int8=True, random_tokens=how.pop("random_tokens", 2048))
    with pytest.raises(ValueError, match=message):
        compress("model", tmp_path / "model.pocket", options=options, **how)
    assert not list(tmp_path.iterdir())
