"""Sparse embeddings and embeddings of tokens: those of torch, from the folders that other packages write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

import pocketformer
from helpers.checkpoints import refused
from helpers.task_models import TaskModel, make
from pocketformer import cli
from pocketformer.errors import CheckpointError, TaskError, UnsupportedModelError
from pocketformer.sources.huggingface import load_checkpoint
from pocketformer.tasks.embed_sparse import SparseEmbedding

pytestmark = pytest.mark.filterwarnings("ignore:.* texts are longer than")

TEXTS = ["a cat sat.", "ada (lives) in paris!", "paris", "the old house was sold, by ada; in paris " * 3]
WIDTH, PUNCTUATION = 78, ["!", ".", ",", ";", "(", ")", "nowhere"]
ST = "sentence_transformers."
TRANSFORMER, DENSE = f"{ST}base.modules.transformer.Transformer", f"{ST}base.modules.dense.Dense"
PROJECTION = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(3)) / 4


def save(
    folder: Path, modules: list[tuple[str, dict[str, Any]]], model: dict[str, Any], encoder: dict[str, Any]
) -> None:
    """``modules``: (type, config) after the Transformer; each Dense has the weights ``PROJECTION``."""
    entries = [{"idx": 0, "name": "0", "path": "", "type": modules[0][0]}]
    for i, (kind, config) in enumerate(modules[1:], 1):
        home = folder / f"{i}_{kind.rsplit('.', 1)[-1]}"
        home.mkdir(exist_ok=True)
        (home / "config.json").write_text(json.dumps(config))
        if "Dense" in kind:
            weight = PROJECTION[:, : config["in_features"]].contiguous()
            save_file({"linear.weight": weight}, home / "model.safetensors")
        entries.append({"idx": i, "name": str(i), "path": home.name, "type": kind})
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(model))
    (folder / "sentence_bert_config.json").write_text(json.dumps(encoder))


def open_model(folder: Path) -> Any:
    pocketformer.compress(folder, folder / "model.pocket", weights="fp32")
    return pocketformer.load(folder / "model.pocket")


def near(actual: np.ndarray, expected: torch.Tensor) -> bool:
    return actual.shape == tuple(expected.shape) and bool(np.abs(actual - expected.numpy()).max(initial=0) < 1e-4)


# --- sparse -----------------------------------------------------------------------------------------------------------


def sparse(folder: Path, family: str = "bert", activation: str = "relu", **model: Any) -> TaskModel:
    made = make("fill_mask", folder, family=family)
    pooling = {"pooling_strategy": "max", "activation_function": activation, "embedding_dimension": 0}
    modules = [(TRANSFORMER, {}), (f"{ST}sparse_encoder.modules.splade_pooling.SpladePooling", pooling)]
    text = {"text": {"method": "forward", "method_output_name": "logits"}}
    encoder = {"transformer_task": "fill-mask", "modality_config": text, "module_output_name": "token_embeddings"}
    save(folder, modules, {"model_type": "SparseEncoder", "prompts": {"query": "ada "}, **model}, encoder)
    return made


@pytest.mark.parametrize(
    ("family", "activation"), [("bert", "relu"), ("roberta", "log1p_relu"), ("distilbert", "relu")]
)
def test_sparse_embeddings_equal_torch(tmp_path: Path, family: str, activation: str) -> None:
    made = sparse(tmp_path, family, activation)
    model = open_model(tmp_path)
    assert (type(model).__name__, model.task, model.similarity_fn_name) == ("SparseEmbedder", "embed_sparse", "dot")
    expected = torch.stack([made.logits(text).logits[0].max(0).values for text in TEXTS]).relu().log1p()
    if activation == "log1p_relu":
        expected = expected.log1p()
    embeddings = model.encode(TEXTS)
    rows = np.zeros(expected.shape, np.float32)
    for row, (indices, values) in zip(rows, embeddings, strict=True):
        assert (indices.dtype, values.dtype) == (np.int32, np.float32)
        assert (np.diff(indices) > 0).all()
        assert (values > 0).all()
        row[indices] = values
    assert near(rows, expected)
    np.testing.assert_allclose(model.similarity(TEXTS, embeddings[1]), rows @ rows[1:2].T, rtol=1e-5)
    few = model.encode(TEXTS[0], max_active_dims=3)
    assert few.indices.tolist() == sorted(np.argsort(-rows[0])[:3].tolist())
    (token, weight), *rest = model.decode(few)
    assert weight == pytest.approx(rows[0].max())
    assert made.tokenizer.token_to_id(token) in (int(rows[0].argmax()), None)
    assert len(rest) == 2
    assert all((a == b).all() for a, b in zip(model.encode_query("cat"), model.encode("ada cat"), strict=True))


def test_settings_of_sparse_embeddings(tmp_path: Path) -> None:
    sparse(tmp_path, similarity_fn_name="cosine", max_active_dims=2)
    model = open_model(tmp_path)
    assert [len(row.indices) for row in model(TEXTS)] == [2] * len(TEXTS)
    np.testing.assert_allclose(np.diag(model.similarity(TEXTS, TEXTS)), 1, atol=1e-6)
    empty = SparseEmbedding(np.zeros(0, np.int32), np.zeros(0, np.float32))
    assert model.similarity(empty, TEXTS[:2]).tolist() == [[0, 0]]
    for bad in ({"max_active_dims": 0}, {"batch_tokens": 0}):
        with pytest.raises(ValueError, match="it must be at least 1"):
            model.encode(TEXTS, **bad)
    with pytest.raises(TaskError, match="embed_sparse"):
        model.classify(TEXTS)


def test_folders_of_sparse_encoders_before_version_6(tmp_path: Path) -> None:
    made = make("fill_mask", tmp_path)
    modules = [(f"{ST}sparse_encoder.models.MLMTransformer", {}), (f"{ST}sparse_encoder.models.SpladePooling", {})]
    save(tmp_path, modules, {}, {"max_seq_length": 100})
    model = open_model(tmp_path)
    assert (model.task, model.max_length) == ("embed_sparse", 100)
    top = model.decode(model.encode(TEXTS[0]), 1)[0][1]
    assert top == pytest.approx(float(made.logits(TEXTS[0]).logits.max().log1p()), rel=1e-4)


def test_sparse_encoders_that_are_refused(tmp_path: Path) -> None:
    sparse(tmp_path, activation="softplus")
    refused(tmp_path, UnsupportedModelError, "'activation_function' is 'softplus'", "log1p_relu")
    pooling = tmp_path / "1_SpladePooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_strategy": "sum"}))
    refused(tmp_path, UnsupportedModelError, "'pooling_strategy' is 'sum'", "supported: max")
    pooling.write_text("{}")
    (tmp_path / "sentence_bert_config.json").write_text('{"transformer_task": "feature-extraction"}')
    refused(tmp_path, UnsupportedModelError, "'transformer_task' is 'feature-extraction'", "fill-mask")


# --- a vector for each token ------------------------------------------------------------------------------------------


def late(folder: Path, family: str, encoder: dict[str, Any], **model: Any) -> TaskModel:
    """A folder as sentence-transformers 6 saves a MultiVectorEncoder."""
    made = make("embed", folder, family=family)
    tokens = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
    dense = {"in_features": made.torch.config.hidden_size, "out_features": 16, "bias": False, **tokens}
    modules = [
        (TRANSFORMER, {}),
        (DENSE, {**dense, "activation_function": "torch.nn.modules.linear.Identity"}),
        (
            f"{ST}multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask",
            {"skiplist_words": PUNCTUATION, "skiplist_tasks": ["document"], "keep_only_token_ids": None},
        ),
        (f"{ST}base.modules.normalize.Normalize", {"module_input_name": "token_embeddings"}),
    ]
    prompts = {"prompts": {"query": "ada ", "document": "the "}}
    save(folder, modules, {"model_type": "MultiVectorEncoder", **prompts, **model}, encoder)
    return made


@torch.no_grad()
def vectors(
    made: TaskModel, text: str, limit: int, fill: int = 0, attend: bool = False
) -> tuple[list[int], torch.Tensor]:
    """The ids of ``text``, filled up to ``fill`` with mask tokens, and their vectors."""
    made.tokenizer.enable_truncation(limit)
    ids = made.tokenizer.encode(text).ids
    made.tokenizer.no_truncation()
    mask = made.tokenizer.token_to_id("[MASK]")
    added = max(0, fill - len(ids))
    seen = torch.tensor([[1] * len(ids) + [int(attend)] * added])
    ids += [mask if mask is not None else made.tokenizer.token_to_id("<mask>")] * added
    hidden = made.torch(input_ids=torch.tensor([ids]), attention_mask=seen).last_hidden_state[0]
    return ids, normalize(hidden @ PROJECTION[:, : hidden.shape[1]].T, dim=-1)


EXPANSIONS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "fixed": {"strategy": "fixed", "attend": False, "length": 20},
    "attended": {"strategy": "fixed", "attend": True, "length": 20},
    "min": {"strategy": "min", "attend": False, "length": 8},
}


@pytest.mark.parametrize(("family", "kind"), [*(("bert", kind) for kind in EXPANSIONS), ("roberta", "fixed")])
def test_vectors_of_tokens_equal_torch(tmp_path: Path, family: str, kind: str) -> None:
    expansion = EXPANSIONS[kind]
    made = late(tmp_path, family, {"query_length": 24, "document_length": 30, "query_expansion": expansion})
    model = open_model(tmp_path)
    assert (type(model).__name__, model.similarity_fn_name) == ("MultiVectorEmbedder", "maxsim")
    fixed = bool(expansion) and expansion["strategy"] == "fixed"
    fill, attend = (expansion["length"], expansion["attend"]) if expansion else (0, False)
    queries = [vectors(made, f"ada {text}", 20 if fixed else 24, fill, attend)[1] for text in TEXTS]
    skipped = {made.tokenizer.token_to_id(word) for word in PUNCTUATION} - {None}
    documents = []
    for text in TEXTS:
        ids, rows = vectors(made, f"the {text}", 30)
        documents.append(rows[[i for i, token in enumerate(ids) if token not in skipped]])
    assert len(skipped) > 2
    assert all(near(a, b) for a, b in zip(model.encode_query(TEXTS), queries, strict=True))
    assert all(near(a, b) for a, b in zip(model.encode_document(TEXTS), documents, strict=True))
    assert near(model.encode_query(TEXTS[0]), queries[0])  # alone as in a batch
    scores = torch.tensor([[float((a @ b.T).max(1).values.sum()) for b in documents] for a in queries])
    np.testing.assert_allclose(model.similarity(TEXTS, TEXTS), scores, atol=1e-3)
    best = model.rank(TEXTS[1], TEXTS, 2)
    assert [i for i, _ in best] == scores[1].argsort(descending=True)[:2].tolist()


def test_mean_similarity_and_plain_texts(tmp_path: Path) -> None:
    made = late(tmp_path, "bert", {}, similarity_fn_name="meanmaxsim", default_prompt_name=None)
    model = open_model(tmp_path)
    rows = model.encode_query(TEXTS[0])
    np.testing.assert_allclose(model.similarity(rows, [rows, rows]), [[1, 1]], atol=1e-5)
    ids, plain = vectors(made, TEXTS[0], 512)
    kept = [i for i, token in enumerate(ids) if token != made.tokenizer.token_to_id(".")]
    assert near(model.encode(TEXTS[0]), plain[kept])
    assert model.similarity(rows, np.zeros((0, 16), np.float32)).tolist() == [[0]]


def pylate(folder: Path, **settings: Any) -> TaskModel:
    made = make("embed", folder)
    dense = {"in_features": WIDTH, "out_features": 16, "bias": False}
    identity = {"activation_function": "torch.nn.modules.linear.Identity"}
    modules = [(f"{ST}models.Transformer", {}), ("pylate.models.Dense.Dense", {**dense, **identity})]
    lengths = {"query_length": 12, "document_length": 30, "attend_to_expansion_tokens": False}
    values = {"query_prefix": "[Q] ", "document_prefix": "[D] ", **lengths, "similarity_fn_name": "MaxSim"}
    save(folder, modules, {"model_type": "ColBERT", "prompts": {}, **values, **settings}, {"max_seq_length": 40})
    return made


def test_folders_of_pylate(tmp_path: Path) -> None:
    made = pylate(tmp_path, skiplist_words=["."])
    model = open_model(tmp_path)
    assert near(model.encode_query(TEXTS[0]), vectors(made, f"[Q] {TEXTS[0]}", 12, 12)[1])
    ids, rows = vectors(made, f"[D] {TEXTS[0]}", 30)
    kept = [i for i, token in enumerate(ids) if token != made.tokenizer.token_to_id(".")]
    assert near(model.encode_document(TEXTS[0]), rows[kept])


def test_queries_of_pylate_that_are_not_filled_up(tmp_path: Path) -> None:
    made = pylate(tmp_path, do_query_expansion=False)
    model = open_model(tmp_path)
    assert near(model.encode_query(TEXTS[3]), vectors(made, f"[Q] {TEXTS[3]}", 12)[1])


def test_checkpoints_of_colbert(tmp_path: Path) -> None:
    """Markers are single tokens, though a tokenizer would take them apart."""
    make("embed", tmp_path)
    path = tmp_path / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    words = tokenizer["model"]["vocab"]
    markers = {f"[unused{i}]": len(words) + i for i in range(2)}
    words.update(markers)
    path.write_text(json.dumps(tokenizer))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["HF_ColBERT"]}))
    tensors = {f"bert.{name}": tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    save_file({**tensors, "linear.weight": PROJECTION}, tmp_path / "model.safetensors")
    metadata = {"query_maxlen": 16, "doc_maxlen": 20, "mask_punctuation": True, "attend_to_mask_tokens": False}
    (tmp_path / "artifact.metadata").write_text(json.dumps(metadata))
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.text["prompts"] == {"query": "[unused0] ", "document": "[unused1] "}
    assert checkpoint.text["expansion"] == {"length": 16, "fixed": True, "attend": False, "token_id": words["[MASK]"]}
    assert (checkpoint.text["document_length"], len(checkpoint.text["skipped_ids"]) > 2) == (20, True)
    model = open_model(tmp_path)
    reader = model._reader
    assert reader.sequences(["[unused0] a cat"])[0][1] == markers["[unused0]"]
    assert model.encode_query(TEXTS[0]).shape == (16, 16)
    np.testing.assert_allclose(np.linalg.norm(model.encode_document(TEXTS[0]), axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("encoder", "error", "words"),
    [
        ({"query_expansion": {"strategy": "fixed"}}, CheckpointError, ["no 'length'"]),
        ({"query_expansion": {"strategy": "all", "length": 3}}, UnsupportedModelError, ["'query_expansion' is", "all"]),
        ({"query_expansion": {"strategy": "min", "length": 600}}, UnsupportedModelError, ["filled up to 600", "512"]),
        ({"query_length": 0}, CheckpointError, ["'query_length' is 0"]),
        ({"transformer_task": "fill-mask"}, UnsupportedModelError, ["'transformer_task'", "feature-extraction"]),
    ],
)
def test_multi_vector_encoders_that_are_refused(
    tmp_path: Path, encoder: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    late(tmp_path, "bert", encoder)
    refused(tmp_path, error, *words)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> str:
        assert cli.main([*arguments, "--threads", "1"]) == 0
        return capsys.readouterr().out

    for kind in ("sparse", "late"):
        (tmp_path / kind).mkdir()
    sparse(tmp_path / "sparse")
    late(tmp_path / "late", "bert", {})
    model = open_model(tmp_path / "sparse")
    path = str(tmp_path / "sparse" / "model.pocket")
    capsys.readouterr()
    (entry,) = json.loads(run("run", path, TEXTS[0], "--top-k", "2", "--json"))["results"]
    assert (entry["indices"], len(entry["tokens"])) == (model.encode(TEXTS[0]).indices.tolist(), 2)
    assert "weight" in run("run", path, TEXTS[0])
    assert cli.main(["encode", path, "a"]) == 1
    assert "use pocketformer run" in capsys.readouterr().err
    model = open_model(tmp_path / "late")
    path = str(tmp_path / "late" / "model.pocket")
    capsys.readouterr()
    (entry,) = json.loads(run("run", path, TEXTS[0], "--json"))["results"]
    np.testing.assert_allclose(entry["embeddings"], model.encode_document(TEXTS[0]), rtol=1e-6)
    assert "× 16" in run("run", path, TEXTS[0])
    ranked = json.loads(run("run", path, *TEXTS, "--query", "paris", "--json"))["results"]
    assert [found["index"] for found in ranked] == [i for i, _ in model.rank("paris", TEXTS, 5)]
