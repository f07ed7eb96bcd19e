"""What holds of every encoder from a folder: changes of its graph show, and int8 keeps near transformers' fp32."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from helpers.engines import native, native_packed
from helpers.kernels import aligned
from helpers.torch_models import Inputs, deviation, torch_outputs
from pocketformer.compression import compress_graph
from pocketformer.graph import Graph
from pocketformer.sources.huggingface import load_checkpoint


def assert_breaks_parity(folder: Path, model: torch.nn.Module, change: Callable[[Graph], None]) -> None:
    graph = copy.deepcopy(load_checkpoint(folder).graph)
    change(graph)
    inputs = Inputs.random((7, 65), 0)
    assert deviation(native(graph, inputs.ids, inputs.lengths), torch_outputs(model, inputs, "embed")) > 1


def assert_int8_is_near(folder: Path, model: torch.nn.Module, lengths: Sequence[int]) -> None:
    inputs = Inputs.random(tuple(lengths), 0)
    packed, _ = compress_graph(load_checkpoint(folder).graph)
    packed.params = {name: aligned(array) for name, array in packed.params.items()}
    actual, expected = native_packed(packed, inputs.ids, inputs.lengths), torch_outputs(model, inputs, "embed")
    cosine = torch.nn.functional.cosine_similarity(torch.tensor(actual), torch.tensor(expected))
    assert float(cosine.min()) > 0.999
