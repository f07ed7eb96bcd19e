"""What sentence-transformers keeps beside a model: prompts, lengths, the similarity, and settings of what it loads."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UnsupportedModelError
from .config import read_json

# One of these lies beside the encoder; the first that is not empty counts.
FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
OUTPUTS = {"feature-extraction": "last_hidden_state", "sequence-classification": "logits", "fill-mask": "logits"}
_TRANSFORMER_TASKS = {"classify": "sequence-classification", "embed_sparse": "fill-mask"}
# By task: what a model may name, the first if it names none.
SIMILARITIES = {
    "embed": ("cosine", "dot", "euclidean", "manhattan"),
    "embed_sparse": ("dot", "cosine", "euclidean", "manhattan"),
    "embed_tokens": ("maxsim", "meanmaxsim"),
}
_SCORES = {"torch.nn.modules.activation.Sigmoid": "sigmoid", "torch.nn.modules.linear.Identity": "identity"}

# How the reference loads and runs a model, not what it computes.
_LOADING = {
    *("add_pooling_layer", "attn_implementation", "backend", "cache_dir", "device_map", "dtype", "local_files_only"),
    *("low_cpu_mem_usage", "revision", "token", "torch_dtype", "trust_remote_code", "use_auth_token", "use_fast"),
    *("use_safetensors", "_fast_init"),
}
_OLD_NAMES = {"model_args": "model_kwargs", "tokenizer_args": "processor_kwargs", "config_args": "config_kwargs"}
_KNOWN = {
    *_OLD_NAMES,
    *_OLD_NAMES.values(),
    *("max_seq_length", "do_lower_case", "transformer_task", "modality_config", "processing_kwargs"),
    *("query_length", "document_length", "query_expansion"),
    *("module_output_name", "unpad_inputs"),  # the name of an intermediate value; a way to run
}


@dataclass(frozen=True)
class SentenceSettings:
    """The settings of a folder; all are at rest where it is a plain transformers checkpoint.

    ``tokenizer`` and ``config`` override ``tokenizer_config.json`` and ``config.json``; ``lowercase`` lowers texts
    before the tokenizer sees them. ``score`` is what a cross-encoder applies to its logits: ``sigmoid``, ``identity``
    or None.
    """

    tokenizer: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    lowercase: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity: str = "cosine"
    truncate_dim: int | None = None
    max_active_dims: int | None = None
    score: str | None = None
    encoder: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, root: Path, home: Path, config: dict[str, Any], task: str | None) -> SentenceSettings:
        """The settings of the folder ``root``, whose encoder lies in ``home`` and has the ``config.json`` ``config``.

        ``task`` is what the modules make of it, None where there are none.

        Raises:
            CheckpointError: a value has the wrong type.
            UnsupportedModelError: a setting changes the result in a way that a pocket file cannot hold.
        """
        encoder = _Values.first(home, FILES)
        model = _Values.first(root, ("config_sentence_transformers.json",) if (root / "modules.json").is_file() else ())
        prompts, default = _prompts(model)
        if model.text("model_type", "") == "CrossEncoder" and default is not None and prompts.get(default):
            model.refuse("default_prompt_name", "the prompts of a cross-encoder are not applied")
        _check_task(encoder, task)
        for key in ("query_length", "document_length", "query_expansion"):
            if task != "embed_tokens" and encoder.values.get(key) is not None:
                encoder.refuse(key, "it is of models with a vector for each token")
        similarities = SIMILARITIES.get(task or "embed", ("cosine",))
        similarity = model.text("similarity_fn_name", similarities[0])
        return cls(
            tokenizer=_tokenizer(encoder),
            config=_passed(encoder, "config_kwargs"),
            lowercase=encoder.flag("do_lower_case"),
            prompts=prompts,
            default_prompt_name=default,
            similarity=similarity if similarity in similarities else similarities[0],
            truncate_dim=model.count("truncate_dim"),
            max_active_dims=model.count("max_active_dims"),
            score=_score(config, model),
            encoder=encoder.values,
        )

    def model(self, task: str) -> dict[str, Any]:
        """What the ``model`` section of a pocket file for ``task`` says."""
        if task == "embed":
            return {"similarity": self.similarity, "truncate_dim": self.truncate_dim}
        if task == "embed_sparse":
            return {"similarity": self.similarity, "max_active_dims": self.max_active_dims}
        if task == "embed_tokens":
            return {"similarity": self.similarity}
        return {"activation": self.score} if task == "classify" and self.score else {}

    def text(self, task: str, include_prompt: bool) -> dict[str, Any]:
        """What the ``text`` section says."""
        if task not in SIMILARITIES:
            return {}
        prompts = {"prompts": self.prompts, "default_prompt_name": self.default_prompt_name}
        return {**prompts, "include_prompt": include_prompt}


@dataclass(frozen=True)
class _Values:
    """The JSON object of one settings file; empty where there is none."""

    path: Path
    values: dict[str, Any]

    @classmethod
    def first(cls, folder: Path, names: tuple[str, ...]) -> _Values:
        for path in (folder / name for name in names):
            if path.is_file() and (values := read_json(path)):
                return cls(path, values)
        return cls(folder, {})

    def text(self, key: str, default: str) -> str:
        value = self.values.get(key)
        return default if value is None else str(self._typed(key, value, str, "a string"))

    def flag(self, key: str) -> bool:
        value = self.values.get(key)
        return False if value is None else bool(self._typed(key, value, bool, "true or false"))

    def count(self, key: str) -> int | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(f"{self.path}: {key!r} is {value!r}; it must be an integer of at least 1")
        return value

    def table(self, key: str) -> dict[str, Any]:
        value = self.values.get(key)
        return {} if value is None else dict(self._typed(key, value, dict, "an object"))

    def refuse(self, key: str, why: str) -> None:
        raise UnsupportedModelError(f"{self.path}: {key!r} is {self.values[key]!r}; {why}")

    def _typed(self, key: str, value: Any, kind: type, what: str) -> Any:
        if not isinstance(value, kind):
            raise CheckpointError(f"{self.path}: {key!r} is {value!r}; it must be {what}")
        return value


def _prompts(model: _Values) -> tuple[dict[str, str], str | None]:
    """The prompts by name and the default's name; ``query`` and ``document`` are there, empty, in every model."""
    prompts = {"query": "", "document": ""} if model.values else {}
    for name, prompt in model.table("prompts").items():
        if not isinstance(prompt, (str, type(None))):
            raise CheckpointError(f"{model.path}: the prompt {name!r} is {prompt!r}; it must be a string")
        prompts[name] = prompt or ""
    default = model.text("default_prompt_name", "") or None
    if default is not None and default not in prompts:
        raise CheckpointError(
            f"{model.path}: 'default_prompt_name' is {default!r}, but 'prompts' has only {', '.join(prompts) or 'none'}"
        )
    return prompts, default


def _check_task(encoder: _Values, task: str | None) -> None:
    """What the encoder computes is what the modules after it take."""
    needed = _TRANSFORMER_TASKS.get(task or "embed", "feature-extraction")
    named = encoder.text("transformer_task", needed)
    if task is None and named in OUTPUTS:
        needed = named
    if named != needed:
        encoder.refuse("transformer_task", f"supported with these modules: {needed}")
    for modality, call in encoder.table("modality_config").items():
        if modality == "text" and call != {"method": "forward", "method_output_name": OUTPUTS[needed]}:
            encoder.refuse(
                "modality_config", f"supported for text: the output {OUTPUTS[needed]!r} of the method 'forward'"
            )


def _tokenizer(encoder: _Values) -> dict[str, Any]:
    """What overrides ``tokenizer_config.json``: ``processor_kwargs``, ``max_seq_length``, the length of each call."""
    for key in sorted(set(encoder.values) - _KNOWN):
        if encoder.values[key] is not None:
            encoder.refuse(key, "not supported; set max_seq_length instead, and keep the tokenizer in the folder")
    for key in set(_passed(encoder, "model_kwargs")):
        name = next(name for name in ("model_args", "model_kwargs") if key in encoder.table(name))
        encoder.refuse(name, f"{key!r} may change what the model computes: save the model as it is to run")
    overrides = _passed(encoder, "processor_kwargs")
    if encoder.values.get("max_seq_length") is not None:
        overrides.setdefault("model_max_length", encoder.count("max_seq_length"))
    for modality, arguments in encoder.table("processing_kwargs").items():
        if modality not in ("text", "common"):
            continue
        for key, value in (arguments or {}).items():
            if key == "max_length":
                overrides["model_max_length"] = value
            elif key == "truncation" and value not in (True, "longest_first"):
                encoder.refuse("processing_kwargs", "texts are always cut at the model's length")
            elif key not in ("truncation", "padding", "padding_side", "pad_to_multiple_of", "return_tensors"):
                encoder.refuse("processing_kwargs", f"{key!r} is not supported: put it into tokenizer_config.json")
    return overrides


def _passed(encoder: _Values, key: str) -> dict[str, Any]:
    """The arguments under ``key`` or its old name, without those that only say how to load."""
    old = next(old for old, name in _OLD_NAMES.items() if name == key)
    arguments = {**encoder.table(key), **encoder.table(old)}
    return {name: value for name, value in arguments.items() if name not in _LOADING}


def _score(config: dict[str, Any], model: _Values) -> str | None:
    """The activation of a cross-encoder, where one of its three homes names one."""
    newer = config.get("sentence_transformers")
    named = model.values.get("activation_fn") or (newer.get("activation_fn") if isinstance(newer, dict) else None)
    named = named or config.get("sbert_ce_default_activation_function")
    if named is None:
        return None
    if named not in _SCORES:
        raise UnsupportedModelError(
            f"{model.path}: the scores' activation is {named!r}; supported: {', '.join(_SCORES)}"
        )
    return _SCORES[named]
