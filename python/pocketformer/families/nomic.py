"""NomicBERT: BERT's layers with rotary positions, a gated FFN and no biases but those of norms (arXiv 2402.01613)."""

from __future__ import annotations

from dataclasses import replace

from ..graph import GraphBuilder, Table
from ..sources.source import Config, Tensors
from .bert import refuse_variants
from .encoder import EncoderSpec
from .family import ClassifyHead, Family, MaskHead
from .rope import read_rope
from .transformer import Layer, LayerNames, LayerSpec, norm

_THETA = 1000.0
_NAMES = LayerNames(
    qkv=("attn.Wqkv",),
    attention_out="attn.out_proj",
    attention_norm="norm1",
    ffn_up="mlp.fc11",
    ffn_gate="mlp.fc12",
    ffn_down="mlp.fc2",
    ffn_norm="norm2",
)
_OLD_KEYS = {
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
    "layer_norm_eps": "layer_norm_epsilon",
    "rope_theta": "rotary_emb_base",
}
"""What the model's own code called the settings of transformers."""


def spec(config: Config) -> EncoderSpec:
    own = config.renamed(_OLD_KEYS)
    refuse_variants(own)
    _refuse_own(config)
    activation = own.text("activation_function", "swiglu")
    config.refuse("activation_function", activation != "swiglu", "supported: 'swiglu'")
    hidden, positions = own.integer("hidden_size"), own.integer("max_position_embeddings", 2048)
    if config.values.get("rotary_scaling_factor"):  # changes angles, but only of texts longer than those in training
        positions = min(positions, config.integer("max_trained_positions", 2048))
    layer = LayerSpec(
        hidden=hidden,
        heads=own.integer("num_attention_heads"),
        head_dim=own.integer("head_dim", hidden // own.integer("num_attention_heads")),
        ffn=own.integer("intermediate_size"),
        activation=own.activation("hidden_act", "silu"),
        eps=own.number("layer_norm_eps", 1e-12),
        gated=True,
        qkv_bias=False,
        out_bias=False,
        ffn_bias=False,
    )
    return EncoderSpec(
        vocab=own.integer("vocab_size"),
        types=own.integer("type_vocab_size", 2, minimum=0),
        positions=positions,
        layer=replace(layer, rope=read_rope(own, _THETA, layer.head_width)),
        layers=own.integer("num_hidden_layers"),
        embedding=hidden,
        tied=own.flag("tie_word_embeddings", True),
    )


def _refuse_own(config: Config) -> None:
    """Settings of the model's own code that change what it computes."""
    for key in ("prenorm", "use_rms_norm", "parallel_block", "rotary_emb_interleaved", "rotary_head_dim", "causal"):
        config.refuse(key, config.values.get(key), "not supported")
    config.refuse(
        "moe_every_n_layers", config.values.get("moe_every_n_layers"), "mixtures of experts are not supported"
    )
    shared = config.values.get("num_heads_kv")
    config.refuse("num_heads_kv", shared not in (None, config.values.get("n_head")), "not supported")
    for key in ("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"):
        config.refuse(key, config.values.get(key), "only linears without bias are supported")
    fraction = config.values.get("rotary_emb_fraction", 1)
    config.refuse("rotary_emb_fraction", fraction not in (None, 1), "all channels of a head must turn")
    config.refuse("rotary_emb_scale_base", config.values.get("rotary_emb_scale_base"), "not supported")


def encode(b: GraphBuilder, spec: EncoderSpec, tensors: Tensors, prefix: str) -> str:
    def table(name: str, part: str, rows: int, index: str) -> Table:
        return Table(name, tensors.weight(f"{prefix}embeddings.{part}.weight", rows, spec.embedding), index)

    tables = [table("embed.words", "word_embeddings", spec.vocab, "ids")]
    if spec.types:
        tables.append(table("embed.types", "token_type_embeddings", spec.types, "types"))
    x = b.norm(b.embed(tables), *norm(tensors, f"{prefix}emb_ln", spec.hidden), name="embed.norm", eps=spec.layer.eps)
    for i in range(spec.layers):
        layer = Layer.read(f"layers.{i}", spec.layer, tensors, f"{prefix}encoder.layers.{i}.", _NAMES)
        x = layer.append_to(b, x)
    return x


NOMIC_BERT = Family(
    name="nomic_bert",
    classes="NomicBert",
    base="nomic_bert",
    spec=spec,
    encode=encode,
    classify=ClassifyHead("nomic_bert.pooler.dense", "classifier"),
    mask=MaskHead(
        "cls.predictions.transform.dense",
        "cls.predictions.transform.layer_norm",
        "cls.predictions.decoder",
        "cls.predictions.bias",
    ),
)
