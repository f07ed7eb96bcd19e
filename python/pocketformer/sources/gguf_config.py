"""The architectures of GGUF files as the config and the tensor names that Hugging Face checkpoints have.

Every setting of the architecture in the metadata is either taken over, checked, or refused by name; so is every tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import CheckpointError, UnsupportedModelError
from .config import MAX_LAYERS, Config
from .gguf_reader import GgufHeader

EMBEDDING, HEAD, FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
POSITIONS, SHORT, LONG = "position_embd.weight", "rope_factors_short.weight", "rope_factors_long.weight"

_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_SANDWICH = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_PHI3 = {
    "input_layernorm": "attn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GPT2 = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}

_CHANGES_NOTHING = ("vocab_size", "rope.scaling.finetuned")
"""Settings that are not needed: the table's height says the one, and how it was trained the other."""

_WHOLE = {"embed_tokens.weight": EMBEDDING, "norm.weight": "output_norm.weight"}


class Settings:
    """The metadata of one architecture, by keys without its name. What has been asked for counts as honoured."""

    def __init__(self, header: GgufHeader, architecture: str) -> None:
        self.header = header
        self.architecture = architecture
        self.asked: set[str] = set()

    def get(self, key: str) -> Any:
        self.asked.add(key)
        return self.header.metadata.get(f"{self.architecture}.{key}")

    def integer(self, key: str, default: int | None = None, most: int | None = None) -> int:
        value = self.get(key)
        if value is None:
            value = default
        if type(value) is not int or value < 1:
            raise self.wrong(key, value, "must be an integer of at least 1, the same for all layers")
        if most is not None and value > most:
            raise self.wrong(key, value, f"must be at most {most}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number, of a float32 its shortest decimal: 1e-05, where the file holds 9.99999974e-06."""
        value = self.get(key)
        if value is None:
            value = default
        if not isinstance(value, (int, float)) or not 0 < value < np.finfo(np.float32).max:
            raise self.wrong(key, value, "must be a positive number")
        return float(str(np.float32(value)))

    def only(self, key: str, *accepted: Any) -> None:
        """Refuses a setting that is there with another value than those that change nothing."""
        value = self.get(key)
        if value is not None and not any(type(value) is type(known) and value == known for known in accepted):
            raise UnsupportedModelError(
                f"{self.header.path}: {self.architecture}.{key} is {value!r:.80}; supported: "
                f"{' or '.join(map(repr, accepted))}"
            )

    def wrong(self, key: str, value: Any, rule: str) -> CheckpointError:
        return CheckpointError(f"{self.header.path}: {self.architecture}.{key} is {value!r:.80}; it {rule}")

    def refuse_others(self) -> None:
        prefix = f"{self.architecture}."
        for key, value in self.header.metadata.items():
            if key.startswith(prefix) and key.removeprefix(prefix) not in self.asked:
                raise UnsupportedModelError(
                    f"{self.header.path}: {key} is {value!r:.80}; that setting is not honoured, and the model would "
                    "compute something else"
                )


@dataclass(frozen=True)
class Architecture:
    """How a ``general.architecture`` relates to its ``model_type``.

    ``layer`` maps names of a Hugging Face layer to GGUF's, ``whole`` those of other tensors, and ``base`` precedes
    both; ``others`` are tensors that only the config is made of.
    ``interleaved`` says that rotary pairs are neighbours among the rows of queries and keys, ``unit_norms`` that norms
    are stored as 1 + weight, ``partial`` that not all channels of a head need turn. ``settings`` adds to the config;
    ``epsilon`` is that of the norms.
    """

    model_type: str
    classes: str
    layer: Mapping[str, str]
    settings: Callable[[Settings, dict[str, Any]], dict[str, Any]]
    interleaved: bool = False
    unit_norms: bool = False
    others: tuple[str, ...] = ()
    whole: Mapping[str, str] = field(default_factory=lambda: _WHOLE)
    base: str = "model"
    epsilon: str = "attention.layer_norm_rms_epsilon"
    partial: bool = False

    def stored(self, name: str) -> str | None:
        """GGUF's name of a Hugging Face tensor, or None where the architecture has no such tensor."""
        inner = name.removeprefix(f"{self.base}.")
        found = re.fullmatch(r"(?:layers|h)\.(\d+)\.(.+)\.(weight|bias)", inner)
        if found and found[2] in self.layer:
            return f"blk.{found[1]}.{self.layer[found[2]]}.{found[3]}"
        return HEAD if name == "lm_head.weight" else self.whole.get(inner)

    def knows(self, stored: str, layers: int) -> bool:
        """Whether :meth:`stored` gives this name for some tensor of a model of so many ``layers``."""
        found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", stored)
        if found:
            return int(found[1]) < layers and found[2] in self.layer.values()
        return stored in (HEAD, *self.whole.values(), *self.others)


def architecture_of(header: GgufHeader) -> tuple[str, Architecture]:
    name = header.metadata.get("general.architecture")
    if not isinstance(name, str):
        raise CheckpointError(f"{header.path}: general.architecture is {name!r:.80}; it must name the architecture")
    if name not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{header.path}: general.architecture {name!r:.80} is not supported; supported are "
            f"{', '.join(ARCHITECTURES)}"
        )
    return name, ARCHITECTURES[name]


def read_config(header: GgufHeader) -> tuple[Architecture, Config]:
    """The config that ``config.json`` of the same model would hold.

    Raises:
        CheckpointError: a setting or the token table is missing or wrong.
        UnsupportedModelError: the architecture, a setting or a tensor has no counterpart.
    """
    name, architecture = architecture_of(header)
    settings = Settings(header, name)
    if EMBEDDING not in header.tensors:
        raise CheckpointError(f"{header.path} has no tensor {EMBEDDING!r}; it holds no complete model: take another")
    heads, hidden = settings.integer("attention.head_count"), settings.integer("embedding_length")
    width = max(hidden // heads, 1)
    rotated = width if architecture.partial else settings.integer("rope.dimension_count", width)
    head_dim = settings.integer("attention.key_length", rotated)
    settings.only("attention.value_length", head_dim)
    if not architecture.partial:
        settings.only("rope.dimension_count", head_dim)
    settings.only("attention.causal", True)
    settings.only("expert_count", 0)
    settings.only("expert_used_count", 0)
    for key in _CHANGES_NOTHING:
        settings.get(key)
    values: dict[str, Any] = {
        "model_type": architecture.model_type,
        "architectures": [f"{architecture.classes}ForCausalLM"],
        "vocab_size": header.tensors[EMBEDDING].shape[0],
        "hidden_size": hidden,
        "intermediate_size": settings.integer("feed_forward_length"),
        "num_hidden_layers": settings.integer("block_count", most=MAX_LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": settings.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": settings.integer("context_length"),
        "rms_norm_eps": settings.number(architecture.epsilon),
        "tie_word_embeddings": HEAD not in header.tensors,
    }
    values |= architecture.settings(settings, values)
    settings.refuse_others()
    for stored in header.tensors:
        if not architecture.knows(stored, values["num_hidden_layers"]):
            raise UnsupportedModelError(
                f"{header.path}: tensor {stored!r:.80} is no part of a {name} model of {values['num_hidden_layers']} "
                "layers as it is known here, and would be left out"
            )
    return architecture, Config(values, header.path)


def _rope(settings: Settings, head_dim: int) -> dict[str, Any]:
    theta = settings.number("rope.freq_base", 10_000.0)
    kind = settings.get("rope.scaling.type")
    scaling: dict[str, Any] = {"rope_type": "default"}
    if isinstance(kind, str) and kind in ("linear", "yarn"):
        factor = settings.number("rope.scaling.factor")
        if factor != 1:
            scaling = {"rope_type": kind, "factor": factor}
        if kind == "yarn":
            original = settings.integer("rope.scaling.original_context_length")
            if factor != 1:
                scaling["original_max_position_embeddings"] = original
    else:
        settings.only("rope.scaling.type", "none")
        settings.only("rope.scaling.factor", 1.0, 0.0)
    settings.only("rope.scaling.attn_factor", 1.0)
    return {**scaling, "rope_theta": theta}


def _llama(settings: Settings, values: dict[str, Any]) -> dict[str, Any]:
    rope = _rope(settings, values["head_dim"])
    if FACTORS in settings.header.tensors:
        rope = _llama3(settings, rope, values["head_dim"])
    tensors = settings.header.tensors
    return {
        "hidden_act": "silu",
        "rope_parameters": rope,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
    }


def _llama3(settings: Settings, rope: dict[str, Any], head_dim: int) -> dict[str, Any]:
    """The parameters that the divisors in ``rope_freqs.weight`` were made with; Llama 3.1 has few, which are tried."""
    info = settings.header.tensors[FACTORS]
    where = f"{settings.header.path}: tensor {FACTORS!r}"
    if rope["rope_type"] != "default" or head_dim % 2 or info.shape != (head_dim // 2,):
        raise CheckpointError(f"{where} has the shape {list(info.shape)}; it must be that of half a head, unscaled")
    stored = info.type.rows(settings.header.content[info.begin : info.end][None])[0]
    wavelengths = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
    factor, low, high, original = float(stored.max()), 1.0, 4.0, 8192
    share = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    with np.errstate(all="ignore"):  # a factor of 0 agrees with nothing
        expected = 1 / ((1 - share) / factor + share)
    if not np.allclose(stored, expected, rtol=1e-4):
        raise UnsupportedModelError(
            f"{where} holds other divisors than Llama 3.1's rope with a factor of {factor:g}; compress the model's "
            "Hugging Face folder"
        )
    return {
        **rope,
        "rope_type": "llama3",
        "factor": float(str(np.float32(factor))),
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _qwen(settings: Settings, values: dict[str, Any]) -> dict[str, Any]:
    return {"hidden_act": "silu", "rope_parameters": _rope(settings, values["head_dim"]), "use_sliding_window": False}


def _gemma3(settings: Settings, values: dict[str, Any]) -> dict[str, Any]:
    layers, head_dim = values["num_hidden_layers"], values["head_dim"]
    pattern = settings.integer("attention.sliding_window_pattern", 6)
    local = {"rope_type": "default", "rope_theta": settings.number("rope.freq_base_swa", 10_000.0)}
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_parameters": {"full_attention": _rope(settings, head_dim), "sliding_attention": local},
        "sliding_window": settings.integer("attention.sliding_window"),
        "layer_types": [f"{'sliding' if (i + 1) % pattern else 'full'}_attention" for i in range(layers)],
        "query_pre_attn_scalar": _divisor(values, 62),
        "attention_bias": False,
        "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
        "use_bidirectional_attention": False,
    }


def _divisor(values: dict[str, Any], layers: int) -> int:
    """What a Gemma's scores are divided by the root of: the 27B model's, of so many layers, by the width a head would
    have.
    """
    if values["num_hidden_layers"] == layers:
        return int(values["hidden_size"] // values["num_attention_heads"])
    return int(values["head_dim"])


def _gemma2(settings: Settings, values: dict[str, Any]) -> dict[str, Any]:
    layers = values["num_hidden_layers"]
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_parameters": _rope(settings, values["head_dim"]),
        "sliding_window": settings.integer("attention.sliding_window", 4096),
        "layer_types": [f"{'full' if i % 2 else 'sliding'}_attention" for i in range(layers)],
        "query_pre_attn_scalar": _divisor(values, 46),
        "attention_bias": False,
        "final_logit_softcapping": settings.number("final_logit_softcapping", 30.0),
        "attn_logit_softcapping": settings.number("attn_logit_softcapping", 50.0),
    }


def _phi3(settings: Settings, values: dict[str, Any]) -> dict[str, Any]:
    head_dim, window = values["head_dim"], settings.get("attention.sliding_window")
    rotated = settings.integer("rope.dimension_count", head_dim)
    trained = settings.integer("rope.scaling.original_context_length", values["max_position_embeddings"])
    rope: dict[str, Any] = {"rope_type": "default"}
    if SHORT in settings.header.tensors:
        rope = {"rope_type": "longrope", "short_factor": _divisors(settings, SHORT, rotated // 2)}
        rope["long_factor"] = _divisors(settings, LONG, rotated // 2)
        rope["original_max_position_embeddings"] = trained
        longer = values["max_position_embeddings"] / trained
        usual = math.sqrt(1 + math.log(longer) / math.log(trained)) if longer > 1 and trained > 1 else 1.0
        factor = settings.number("rope.scaling.attn_factor", usual)
        if not math.isclose(factor, usual, rel_tol=1e-5):
            rope["attention_factor"] = factor
    else:
        settings.only("rope.scaling.attn_factor", 1.0)
    settings.only("rope.scaling.type", "none", *(["longrope"] if SHORT in settings.header.tensors else []))
    rope["rope_theta"] = settings.number("rope.freq_base", 10_000.0)
    rope["partial_rotary_factor"] = rotated / head_dim
    return {
        "hidden_act": "silu",
        "rope_parameters": rope,
        "original_max_position_embeddings": trained,
        "sliding_window": settings.integer("attention.sliding_window") if window else None,
    }


def _divisors(settings: Settings, name: str, count: int) -> list[float]:
    info = settings.header.tensors.get(name)
    if info is None or info.shape != (count,):
        shape = "missing" if info is None else f"of the shape {list(info.shape)}"
        raise CheckpointError(f"{settings.header.path}: tensor {name!r} is {shape}; it must hold {count} divisors")
    stored = info.type.rows(settings.header.content[info.begin : info.end][None])[0]
    return [float(str(value)) for value in stored]


def _gpt2(settings: Settings, values: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": values["hidden_size"],
        "n_inner": values["intermediate_size"],
        "n_layer": values["num_hidden_layers"],
        "n_head": values["num_attention_heads"],
        "n_positions": values["max_position_embeddings"],
        "layer_norm_epsilon": values["rms_norm_eps"],
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
    }


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", "Llama", _LAYER, _llama, interleaved=True, others=(FACTORS,)),
    "qwen2": Architecture("qwen2", "Qwen2", _LAYER, _qwen),
    "qwen3": Architecture("qwen3", "Qwen3", {**_LAYER, **_HEAD_NORMS}, _qwen),
    "gemma3": Architecture("gemma3_text", "Gemma3", {**_LAYER, **_HEAD_NORMS, **_SANDWICH}, _gemma3, unit_norms=True),
    "gemma2": Architecture("gemma2", "Gemma2", {**_LAYER, **_SANDWICH}, _gemma2, unit_norms=True),
    "phi3": Architecture("phi3", "Phi3", _PHI3, _phi3, others=(SHORT, LONG), partial=True),
    "gpt2": Architecture(
        "gpt2",
        "GPT2",
        _GPT2,
        _gpt2,
        whole={
            "wte.weight": EMBEDDING,
            "wpe.weight": POSITIONS,
            "ln_f.weight": "output_norm.weight",
            "ln_f.bias": "output_norm.bias",
        },
        base="transformer",
        epsilon="attention.layer_norm_epsilon",
    ),
}
"""By ``general.architecture``."""
