"""The modules that sentence-transformers runs after the encoder, read from ``modules.json``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import CheckpointError, UnsupportedModelError
from ..graph import SKIPPED, GraphBuilder
from .config import Config, read_json, read_json_list
from .late_interaction import STANFORD
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
# Of torch.nn, by whichever of its modules a class is named.
_ACTIVATIONS = {"Identity": "none", "Tanh": "tanh", "GELU": "gelu", "ReLU": "relu", "SiLU": "silu"}
_AFTER_POOLING = ("Dense", "Normalize", "LayerNorm", "Dropout")
_OF_TOKENS = ("Dense", "Normalize", "Dropout", "MultiVectorMask")
_ORDERS = {
    "SentenceTransformer": f"Transformer, then Pooling, then any of {', '.join(_AFTER_POOLING)}",
    "CrossEncoder": "a Transformer alone",
    "SparseEncoder": "Transformer, then SpladePooling",
    "MultiVectorEncoder": f"Transformer, then any of {', '.join(_OF_TOKENS)}",
}
_SUPPORTED = "; ".join(f"{kind}: {order}" for kind, order in _ORDERS.items())
_KINDS = {"Transformer", "Pooling", "SpladePooling", *_AFTER_POOLING, *_OF_TOKENS}
PROJECTION = "linear"  # of a checkpoint of ColBERT itself, which holds it beside the encoder's tensors
_PACKAGE = "sentence_transformers."
_OTHER_NAMES = {"pylate.models.Dense.Dense": "Dense"}
# What models are called that other packages or versions saved.
_SAVED_BY = {"ColBERT": "MultiVectorEncoder"}
_TASKS = {
    "SentenceTransformer": "embed",
    "CrossEncoder": "classify",
    "SparseEncoder": "embed_sparse",
    "MultiVectorEncoder": "embed_tokens",
}


@dataclass(frozen=True)
class Modules:
    """Where the encoder lies and what follows it, in order: (kind, folder).

    Without steps the folder is a cross-encoder: the head of its checkpoint is the model. ``normalized`` gives every
    row the length 1 in the end, as ColBERT and PyLate do without a module for it.
    """

    encoder: Path
    steps: list[tuple[str, Path]] = field(default_factory=list)
    task: str = "embed"
    normalized: bool = False

    @property
    def mask(self) -> Path | None:
        """The folder of the module that says which tokens get no vector."""
        return next((folder for kind, folder in self.steps if kind == "MultiVectorMask"), None)

    @property
    def include_prompt(self) -> bool:
        """Whether the tokens of a prompt are pooled with those of the text."""
        pooling = [folder for kind, folder in self.steps if kind == "Pooling"]
        return all(Config.read(folder / "config.json").values.get("include_prompt", True) for folder in pooling)

    def model(self) -> dict[str, str]:
        """What the ``model`` section says of the modules: how a sparse embedding follows from its logits."""
        if self.task != "embed_sparse":
            return {}
        config = Config.read(self.steps[0][1] / "config.json")
        strategy = config.text("pooling_strategy", "max")
        config.refuse("pooling_strategy", strategy != "max", "supported: max")
        activation = config.text("activation_function", "relu")
        config.refuse("activation_function", activation not in ("relu", "log1p_relu"), "supported: relu, log1p_relu")
        return {"activation": activation}

    def append_to(self, b: GraphBuilder, x: str, hidden: int, max_length: int) -> str:
        """Appends the steps to the graph; returns the embedding, one row a sequence, or a token.

        Where the tokens of a prompt are not pooled, the input ``SKIPPED`` says how many these are.
        """
        width, features = hidden, "token_embeddings" if self.task == "embed_tokens" else "sentence_embedding"
        skip = None if self.include_prompt else b.sequence_index(SKIPPED, max_length + 1)
        for i, (kind, folder) in enumerate(self.steps):
            if kind == "Pooling":
                x, width = _pool(b, x, Config.read(folder / "config.json"), width, skip)
            elif kind == "Dense":
                x, width = _dense(b, x, folder, width, f"dense{i}", features)
            elif kind == "LayerNorm":
                x = _layer_norm(b, x, folder, width, f"layer_norm{i}")
            elif kind == "Normalize":
                _plain_features(folder, features)
                x = b.normalize(x)
            elif kind == PROJECTION:
                weights = open_weights(folder)
                x = b.linear(x, weights.tensor("linear.weight", *weights.shape("linear.weight")), name="projection")
        return b.normalize(x) if self.normalized else x


def read_modules(folder: Path) -> Modules | None:
    """The modules of ``folder``, or None if it is a plain transformers checkpoint.

    Raises:
        CheckpointError: a module lies outside of the folder.
        UnsupportedModelError: another module than those of an embedder or a cross-encoder, or another order.
    """
    path = folder / "modules.json"
    if not path.is_file():
        config = folder / "config.json"
        stanford = config.is_file() and read_json(config).get("architectures") == [STANFORD]
        return Modules(folder, [(PROJECTION, folder)], "embed_tokens", normalized=True) if stanford else None
    modules = []
    for entry in read_json_list(path):
        named, where = str(entry.get("type", "")), _inside(folder, str(entry.get("path", "")), path)
        if not named.startswith(_PACKAGE) and named not in _OTHER_NAMES:
            raise UnsupportedModelError(
                f"{path} has a module of type {named!r}, which is code that comes with the model and is never run; "
                f"supported: {_SUPPORTED}"
            )
        kind = named.rsplit(".", 1)[-1]
        kind = "Transformer" if kind == "MLMTransformer" else kind  # of older sparse encoders
        if kind not in _KINDS:
            raise UnsupportedModelError(f"{path} has a module {kind!r}; supported: {_SUPPORTED}")
        modules.append((kind, where))
    kinds = [kind for kind, _ in modules]
    model_type = _saved_by(folder, kinds)
    saved_by = _SAVED_BY.get(model_type, model_type)
    if not _in_order(saved_by, kinds):
        raise UnsupportedModelError(
            f"{path} lists {' → '.join(kinds)} of a {saved_by}; supported: {_ORDERS.get(saved_by, _SUPPORTED)}"
        )
    if saved_by == "CrossEncoder":
        return _cross_encoder(modules[0][1])
    return Modules(modules[0][1], modules[1:], _TASKS[saved_by], normalized=model_type == "ColBERT")


def _saved_by(folder: Path, kinds: list[str]) -> str:
    """The class that saved ``folder``: as it says itself, else as its modules show."""
    path = folder / "config_sentence_transformers.json"
    named = read_json(path).get("model_type") if path.is_file() else None
    if named is not None:
        return str(named)
    if "SpladePooling" in kinds:
        return "SparseEncoder"
    if "MultiVectorMask" in kinds:
        return "MultiVectorEncoder"
    settings = next((found for name in FILES if (found := folder / name).is_file()), None)
    task = read_json(settings).get("transformer_task") if settings else None
    return "CrossEncoder" if task == "sequence-classification" else "SentenceTransformer"


def _in_order(saved_by: str, kinds: list[str]) -> bool:
    if saved_by == "CrossEncoder":
        return kinds == ["Transformer"]
    if saved_by == "SparseEncoder":
        return kinds == ["Transformer", "SpladePooling"]
    if saved_by == "MultiVectorEncoder":
        return kinds[:1] == ["Transformer"] and set(kinds[1:]) <= set(_OF_TOKENS)
    after = set(kinds[2:]) <= set(_AFTER_POOLING)
    return saved_by == "SentenceTransformer" and kinds[:2] == ["Transformer", "Pooling"] and after


def _cross_encoder(encoder: Path) -> Modules:
    config = Config.read(encoder / "config.json")
    names = config.values.get("architectures")
    if not isinstance(names, list) or not any(str(name).endswith("ForSequenceClassification") for name in names):
        raise UnsupportedModelError(
            f"{config.path}: 'architectures' is {names!r}, but a cross-encoder needs one that ends in "
            "ForSequenceClassification: its head was never trained"
        )
    return Modules(encoder, task="classify")


def _inside(folder: Path, where: str, source: Path) -> Path:
    if Path(where).is_absolute() or ".." in Path(where).parts:
        raise CheckpointError(f"{source} names the path {where!r}, which is outside of its folder")
    return folder / where


def _pool(b: GraphBuilder, x: str, config: Config, width: int, skip: str | None) -> tuple[str, int]:
    """One pooling, or several side by side."""
    kinds = [_POOLINGS[mode][1] for mode in _modes(config)]
    return b.concat([b.pool(x, kind, skip=skip) for kind in kinds]), width * len(kinds)


def _modes(config: Config) -> list[str]:
    """The names of the poolings in the order of their columns; a config that names none means the mean."""
    named = config.values.get("pooling_mode")
    if named is None:
        return [mode for mode, (flag, _) in _POOLINGS.items() if config.values.get(flag)] or ["mean"]
    modes = [named] if isinstance(named, str) else named
    if not isinstance(modes, list) or not modes or not all(mode in _POOLINGS for mode in modes):
        raise UnsupportedModelError(f"{config.path}: 'pooling_mode' is {named!r}; known: {', '.join(_POOLINGS)}")
    return modes


def _dense(b: GraphBuilder, x: str, folder: Path, width: int, name: str, features: str) -> tuple[str, int]:
    config = _plain_features(folder, features)
    named = config.text("activation_function", "torch.nn.modules.activation.Tanh")
    module, _, activation = named.rpartition(".")
    if not f"{module}.".startswith("torch.nn.") or activation not in _ACTIVATIONS:
        raise UnsupportedModelError(
            f"{config.path}: 'activation_function' is {named!r}; supported of torch.nn: {', '.join(_ACTIVATIONS)}"
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


def _plain_features(folder: Path, features: str) -> Config:
    """The config of a module that may say what it reads and writes: nothing but ``features`` will do.

    Modules of PyLate, which say nothing, work on tokens.
    """
    path = folder / "config.json"
    config = Config.read(path) if path.is_file() else Config({}, path)
    for key in ("module_input_name", "module_output_name"):
        value = config.values.get(key)
        config.refuse(key, value is not None and value != features, f"supported: {features!r}")
    return config


def _check_width(config: Config, key: str, given: int, width: int) -> None:
    if given != width:
        raise CheckpointError(f"{config.path}: {key!r} is {given}, but the rows before it have {width} columns")
