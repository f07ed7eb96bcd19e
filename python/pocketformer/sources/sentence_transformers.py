"""The modules that sentence-transformers runs after the encoder, read from ``modules.json``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import CheckpointError, UnsupportedModelError
from ..graph import GraphBuilder
from .config import Config, read_json_list
from .weights import open_weights

_POOLINGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}
_DENSE_ACTIVATIONS = {
    "Identity": "none",
    "Tanh": "tanh",
    "GELU": "gelu",
    "ReLU": "relu",
    "SiLU": "silu",
}


@dataclass(frozen=True)
class Modules:
    """Where the encoder lies and what follows it, in order: (kind, folder) with kind Pooling, Dense or Normalize."""

    encoder: Path
    steps: list[tuple[str, Path]] = field(default_factory=list)

    def append_to(self, b: GraphBuilder, x: str, hidden: int) -> str:
        """Appends the steps to the graph; returns the embedding, one row a sequence."""
        width = hidden
        for i, (kind, folder) in enumerate(self.steps):
            if kind == "Pooling":
                x = b.pool(x, _pooling(Config.read(folder / "config.json")))
            elif kind == "Dense":
                x, width = _dense(b, x, folder, width, f"dense{i}")
            else:
                x = b.normalize(x)
        return x


def read_modules(folder: Path) -> Modules | None:
    """The modules of ``folder``, or None if it is a plain transformers checkpoint.

    Raises:
        UnsupportedModelError: a module other than Transformer, Pooling, Dense and Normalize, or another order.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return None
    modules = []
    for entry in read_json_list(path):
        kind, where = str(entry.get("type", "")).rsplit(".", 1)[-1], str(entry.get("path", ""))
        if kind not in ("Transformer", "Pooling", "Dense", "Normalize"):
            raise UnsupportedModelError(
                f"{path} has a module {kind!r}; supported: Transformer, then Pooling, then any of Dense and Normalize"
            )
        modules.append((kind, _inside(folder, where, path)))
    kinds = [kind for kind, _ in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:]) & {"Transformer", "Pooling"}:
        raise UnsupportedModelError(
            f"{path} lists {' → '.join(kinds)}; supported: Transformer, then Pooling, then any of Dense and Normalize"
        )
    return Modules(modules[0][1], modules[1:])


def _inside(folder: Path, where: str, source: Path) -> Path:
    if Path(where).is_absolute() or ".." in Path(where).parts:
        raise CheckpointError(f"{source} names the path {where!r}, which is outside of its folder")
    return folder / where


def _pooling(config: Config) -> str:
    modes = [key for key, value in config.values.items() if key.startswith("pooling_mode_") and value is True]
    if "pooling_mode" in config.values:  # the newer spelling: one name or a list of names
        names = config.values["pooling_mode"]
        spellings = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens"}
        modes = [f"pooling_mode_{spellings.get(n, n)}" for n in ([names] if isinstance(names, str) else list(names))]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise UnsupportedModelError(
            f"{config.path} pools by {' + '.join(modes) or 'nothing'}; supported: one of {', '.join(_POOLINGS)}"
        )
    return _POOLINGS[modes[0]]


def _dense(b: GraphBuilder, x: str, folder: Path, width: int, name: str) -> tuple[str, int]:
    config = Config.read(folder / "config.json")
    activation = config.text("activation_function", "torch.nn.modules.activation.Tanh").rsplit(".", 1)[-1]
    if activation not in _DENSE_ACTIVATIONS:
        raise UnsupportedModelError(
            f"{config.path}: 'activation_function' is {activation!r}; supported: {', '.join(_DENSE_ACTIVATIONS)}"
        )
    n, k = config.integer("out_features"), config.integer("in_features")
    if k != width:
        raise CheckpointError(f"{config.path}: 'in_features' is {k}, but the rows before it have {width} columns")
    weights = open_weights(folder)
    bias = weights.tensor("linear.bias", n) if "linear.bias" in weights else None
    x = b.linear(x, weights.tensor("linear.weight", n, k), bias, name=name, activation=_DENSE_ACTIVATIONS[activation])
    return x, n
