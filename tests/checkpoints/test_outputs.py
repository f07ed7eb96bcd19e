"""The output of a model of which a few parameters change, of which only what comes after them is run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTModel

from helpers.graphs import tiny_decoder, tiny_graph
from helpers.programs import packed
from helpers.torch_models import make_adversarial
from pocketformer._core import Program, Session
from pocketformer.compression.calibration import Calibration, random_tokens
from pocketformer.compression.channels import Channels
from pocketformer.compression.operators import Segment
from pocketformer.compression.outputs import Outputs, pieces
from pocketformer.compression.pictures import made_up_pictures
from pocketformer.compression.surgery import remove_units
from pocketformer.graph import Array, Graph
from pocketformer.sources.huggingface import load_checkpoint

TEXTS = {
    "post-norm": tiny_graph(layers=3, max_length=64),
    "a head that shares the table": tiny_graph(layers=2, max_length=64, task="fill_mask"),
    "biases of places": tiny_graph(layers=2, max_length=64, relative=True),
    "decoder": tiny_decoder(layers=3),
}


def at_once(graph: Graph, sample: Calibration) -> Array:
    ready = packed(graph)
    ends = np.concatenate([[0], np.cumsum(sample.lengths)]).astype(np.int64)
    feeds = dict(sample.inputs)
    if graph.domains[0]["kind"] == "ragged":
        feeds[graph.domains[0]["name"]] = ends
    if any(domain["kind"] == "selected" for domain in graph.domains):
        feeds["selected"] = ends[1:] - (sample.lengths + 1) // 2
    result: Array = Session(Program(ready.description(), ready.params)).run(feeds, 1)
    return result


def with_another(graph: Graph, name: str) -> Graph:
    return replace(graph, params={**graph.params, name: np.ascontiguousarray(graph.params[name][::-1])})


@pytest.mark.parametrize("name", TEXTS)
def test_every_parameter_may_change(name: str) -> None:
    graph = TEXTS[name]
    sample = random_tokens(graph, 300)
    outputs = Outputs(graph, sample)
    exact = at_once(graph, sample)
    np.testing.assert_array_equal(outputs(graph), exact)
    assert len(list(pieces(graph))) >= 2 * sum(op["op"] == "attention" for op in graph.ops) - 1
    for parameter in graph.params:
        other = with_another(graph, parameter)
        expected = at_once(other, sample)
        np.testing.assert_array_equal(outputs(other), expected, err_msg=parameter)
        assert parameter == "positions.weight" or np.abs(expected - exact).max() > 1e-4, parameter
    np.testing.assert_array_equal(outputs(graph), exact)


def test_layers_may_be_narrower() -> None:
    graph = tiny_graph(layers=3, ffn=128, max_length=64)
    sample, channels = random_tokens(graph, 300), Channels(graph)
    outputs = Outputs(graph, sample)
    for layer in range(3):
        narrow = remove_units(graph, channels, channels.space(f"layer{layer}.down").units[:64])
        np.testing.assert_array_equal(outputs(narrow), at_once(narrow, sample))


def test_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes), add_pooling_layer=False).eval()
    make_adversarial(model, 0)
    model.save_pretrained(tmp_path)
    size = '{"image_processor_type": "ViTImageProcessor", "do_resize": true, "size": {"height": 32, "width": 32}}'
    (tmp_path / "preprocessor_config.json").write_text(size)
    loaded = load_checkpoint(str(tmp_path))
    graph, sample = loaded.graph, made_up_pictures(loaded, 50)
    outputs = Outputs(graph, sample)
    for parameter in list(graph.params)[::2]:
        other = with_another(graph, parameter)
        np.testing.assert_array_equal(outputs(other), at_once(other, sample), err_msg=parameter)


def test_nothing_before_a_change_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = TEXTS["post-norm"]
    outputs, ran = Outputs(graph, random_tokens(graph, 64)), []
    plain = Segment.run
    monkeypatch.setattr(Segment, "run", lambda self, *given: (ran.append(self), plain(self, *given))[1])
    counts = []
    for name in ("words.weight", "layer1.qkv.weight", "layer2.down.weight"):
        ran.clear()
        outputs(with_another(graph, name))
        counts.append(len(ran))
    assert counts == [16, 10, 4]
    ran.clear()
    outputs(graph)
    assert not ran
