"""The modules that sentence-transformers runs after the encoder, read from ``modules.json``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import CheckpointError, UnsupportedModelError
from ..graph import GraphBuilder
from .config import Config, read_json, read_json_list
from .sentence_settings import FILES
from .weights import open_weights

# In the order in which older configs, which have a flag for each, put several behind one another.
_POOLINGS = {
    "cls": ("pooling_mode_cls_token", "cls"),
    "max": ("pooling_mode_max_tokens", "max"),
    "mean": ("pooling_mode_mean_tokens", "mean"),
    "mean_sqrt_len_tokens": ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt"),
    "weightedmean": ("pooling_mode_weightedmean_tokens", "weighted_mean"),
    "lasttoken": ("pooling_mode_lasttoken", "last"),
}
_RUNTIME_POOLS = ("mean", "cls", "max")
_ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": "none",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.SiLU": "silu",
}
_AFTER_POOLING = ("Dense", "Normalize", "LayerNorm", "Dropout")
_ORDER = f"Transformer, then Pooling, then any of {', '.join(_AFTER_POOLING)}"
_PACKAGE = "sentence_transformers."


@dataclass(frozen=True)
class Modules:
    """Where the encoder lies and what follows it, in order: (kind, folder).

    Without steps the folder is a cross-encoder: the head of its checkpoint is the model.
    """

    encoder: Path
    steps: list[tuple[str, Path]] = field(default_factory=list)

    @property
    def include_prompt(self) -> bool:
        """Whether the tokens of a prompt are pooled with those of the text."""
        pooling = [folder for kind, folder in self.steps if kind == "Pooling"]
        return all(Config.read(folder / "config.json").values.get("include_prompt", True) for folder in pooling)

    def append_to(self, b: GraphBuilder, x: str, hidden: int) -> str:
        """Appends the steps to the graph; returns the embedding, one row a sequence."""
        width = hidden
        for i, (kind, folder) in enumerate(self.steps):
            if kind == "Pooling":
                x, width = _pool(b, x, Config.read(folder / "config.json"), width)
            elif kind == "Dense":
                x, width = _dense(b, x, folder, width, f"dense{i}")
            elif kind == "LayerNorm":
                x = _layer_norm(b, x, folder, width, f"layer_norm{i}")
            elif kind == "Normalize":
                _plain_features(folder)
                x = b.normalize(x)
        return x


def read_modules(folder: Path) -> Modules | None:
    """The modules of ``folder``, or None if it is a plain transformers checkpoint.

    Raises:
        CheckpointError: a module lies outside of the folder.
        UnsupportedModelError: another module than those of an embedder or a cross-encoder, or another order.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return None
    modules = []
    for entry in read_json_list(path):
        kind, where = str(entry.get("type", "")), _inside(folder, str(entry.get("path", "")), path)
        if not kind.startswith(_PACKAGE):
            raise UnsupportedModelError(
                f"{path} has a module of type {kind!r}, which is code that comes with the model and is never run; "
                f"supported: {_ORDER}"
            )
        kind = kind.rsplit(".", 1)[-1]
        if kind not in ("Transformer", "Pooling", *_AFTER_POOLING):
            raise UnsupportedModelError(f"{path} has a module {kind!r}; supported: {_ORDER}")
        modules.append((kind, where))
    kinds = [kind for kind, _ in modules]
    saved_by = _saved_by(folder)
    if kinds == ["Transformer"] and saved_by == "CrossEncoder":
        return _cross_encoder(modules[0][1])
    if saved_by != "SentenceTransformer":
        raise UnsupportedModelError(
            f"{folder / 'config_sentence_transformers.json'}: 'model_type' is {saved_by!r} with {' → '.join(kinds)}; "
            f"supported: SentenceTransformer with {_ORDER}, and CrossEncoder with a Transformer alone"
        )
    if kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:]) & {"Transformer", "Pooling"}:
        raise UnsupportedModelError(f"{path} lists {' → '.join(kinds)}; supported: {_ORDER}")
    return Modules(modules[0][1], modules[1:])


def _saved_by(folder: Path) -> str:
    path = folder / "config_sentence_transformers.json"
    named = read_json(path).get("model_type") if path.is_file() else None
    if named is not None:
        return str(named)
    settings = next((found for name in FILES if (found := folder / name).is_file()), None)
    task = read_json(settings).get("transformer_task") if settings else None
    return "CrossEncoder" if task == "sequence-classification" else "SentenceTransformer"


def _cross_encoder(encoder: Path) -> Modules:
    config = Config.read(encoder / "config.json")
    names = config.values.get("architectures")
    if not isinstance(names, list) or not any(str(name).endswith("ForSequenceClassification") for name in names):
        raise UnsupportedModelError(
            f"{config.path}: 'architectures' is {names!r}, but a cross-encoder needs one that ends in "
            "ForSequenceClassification: its head was never trained"
        )
    return Modules(encoder)


def _inside(folder: Path, where: str, source: Path) -> Path:
    if Path(where).is_absolute() or ".." in Path(where).parts:
        raise CheckpointError(f"{source} names the path {where!r}, which is outside of its folder")
    return folder / where


def _pool(b: GraphBuilder, x: str, config: Config, width: int) -> tuple[str, int]:
    """One pooling, or several side by side."""
    modes = _modes(config)
    kinds = [_POOLINGS[mode][1] for mode in modes]
    supported = [mode for mode, (_, kind) in _POOLINGS.items() if kind in _RUNTIME_POOLS]
    for mode in modes:
        if mode not in supported:
            raise UnsupportedModelError(f"{config.path} pools by {mode!r}; supported: {', '.join(supported)}")
    pooled = [b.pool(x, kind) for kind in kinds]
    if len(pooled) == 1:
        return pooled[0], width
    concat = getattr(b, "concat", None)
    if concat is None:
        raise UnsupportedModelError(f"{config.path} pools by {' + '.join(modes)}; supported: one of them")
    return concat(pooled), width * len(pooled)


def _modes(config: Config) -> list[str]:
    """The names of the poolings in the order of their columns; a config that names none means the mean."""
    named = config.values.get("pooling_mode")
    if named is None:
        return [mode for mode, (flag, _) in _POOLINGS.items() if config.values.get(flag)] or ["mean"]
    modes = [named] if isinstance(named, str) else named
    if not isinstance(modes, list) or not modes or not all(mode in _POOLINGS for mode in modes):
        raise UnsupportedModelError(f"{config.path}: 'pooling_mode' is {named!r}; known: {', '.join(_POOLINGS)}")
    return modes


def _dense(b: GraphBuilder, x: str, folder: Path, width: int, name: str) -> tuple[str, int]:
    config = _plain_features(folder)
    activation = config.text("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in _ACTIVATIONS:
        raise UnsupportedModelError(
            f"{config.path}: 'activation_function' is {activation!r}; supported: {', '.join(_ACTIVATIONS)}"
        )
    n, k = config.integer("out_features"), config.integer("in_features")
    _check_width(config, "in_features", k, width)
    weights = open_weights(folder)
    residual = None
    if config.flag("use_residual"):
        residual = x if n == k else b.linear(x, weights.tensor("residual.weight", n, k), name=f"{name}.residual")
    bias = weights.tensor("linear.bias", n) if "linear.bias" in weights else None
    weight = weights.tensor("linear.weight", n, k)
    x = b.linear(x, weight, bias, name=name, activation=_ACTIVATIONS[activation], residual=residual)
    return x, n


def _layer_norm(b: GraphBuilder, x: str, folder: Path, width: int, name: str) -> str:
    config = Config.read(folder / "config.json")
    _check_width(config, "dimension", config.integer("dimension"), width)
    weights = open_weights(folder)
    weight, bias = weights.tensor("norm.weight", width), weights.tensor("norm.bias", width)
    return b.norm(x, weight, bias, name=name, eps=1e-5)  # torch's default


def _plain_features(folder: Path) -> Config:
    """The config of a module that may say which features it reads and writes: none but the embedding will do."""
    path = folder / "config.json"
    config = Config.read(path) if path.is_file() else Config({}, path)
    for key in ("module_input_name", "module_output_name"):
        value = config.values.get(key)
        config.refuse(key, value is not None and value != "sentence_embedding", "supported: 'sentence_embedding'")
    return config


def _check_width(config: Config, key: str, given: int, width: int) -> None:
    if given != width:
        raise CheckpointError(f"{config.path}: {key!r} is {given}, but the rows before it have {width} columns")
