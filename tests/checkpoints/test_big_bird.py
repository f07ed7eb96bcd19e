"""BigBird with sparse attention, as long as that is full (test_families.py has its heads)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.engines import native
from helpers.torch_models import Inputs, build, deviation, torch_outputs
from pocketformer.errors import UnsupportedModelError
from pocketformer.sources.huggingface import load_checkpoint


def test_a_text_ends_where_attention_becomes_sparse(tmp_path: Path) -> None:
    model = build("big_bird", "tag", tmp_path, attention_type="block_sparse", block_size=8, num_random_blocks=1)
    graph = load_checkpoint(tmp_path).graph
    assert graph.max_length == (5 + 2) * 8
    inputs = Inputs.random((56, 9), 2)
    actual = native(graph, inputs.ids, inputs.lengths, inputs.types)
    assert deviation(actual, torch_outputs(model, inputs, "tag")) <= 1


@pytest.mark.parametrize(
    ("change", "words"),
    [({"rescale_embeddings": True}, "'rescale_embeddings' is True"), ({"attention_type": "local"}, "'attention_type'")],
)
def test_what_is_not_honoured_is_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    build("big_bird", "embed", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UnsupportedModelError, match=words):
        load_checkpoint(tmp_path)
