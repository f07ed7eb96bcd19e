"""Common public repositories: their files and their settings, as tests rebuild them at tiny size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

_COMMON = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02}
_BERT = {
    **_COMMON,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "model_type": "bert",
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "type_vocab_size": 2,
    "use_cache": True,
}
_POOLER = {
    "directionality": "bidi",
    "pooler_fc_size": 768,
    "pooler_num_attention_heads": 12,
    "pooler_num_fc_layers": 3,
    "pooler_size_per_head": 128,
    "pooler_type": "first_token_transform",
}
_ROBERTA = {
    **_COMMON,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "model_type": "roberta",
    "pad_token_id": 1,
    "type_vocab_size": 1,
}
_XLM_ROBERTA = {**_ROBERTA, "model_type": "xlm-roberta", "output_past": True, "position_embedding_type": "absolute"}
_CAMEMBERT = {**_ROBERTA, "model_type": "camembert", "bos_token_id": 5, "eos_token_id": 6, "output_past": True}
_MPNET = {**_ROBERTA, "model_type": "mpnet", "relative_attention_num_buckets": 32}
_DISTILBERT = {
    "activation": "gelu",
    "attention_dropout": 0.1,
    "dropout": 0.1,
    "initializer_range": 0.02,
    "model_type": "distilbert",
    "pad_token_id": 0,
    "qa_dropout": 0.1,
    "seq_classif_dropout": 0.2,
    "sinusoidal_pos_embds": False,
    "tie_weights_": True,
}
_ALBERT = {
    **_COMMON,
    "attention_probs_dropout_prob": 0,
    "bos_token_id": 2,
    "classifier_dropout_prob": 0.1,
    "down_scale_factor": 1,
    "eos_token_id": 3,
    "gap_size": 0,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0,
    "inner_group_num": 1,
    "layer_norm_eps": 1e-12,
    "model_type": "albert",
    "net_structure_type": 0,
    "num_hidden_groups": 1,
    "num_memory_blocks": 0,
    "pad_token_id": 0,
    "type_vocab_size": 2,
}
_MODERNBERT = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "decoder_bias": True,
    "deterministic_flash_attn": False,
    "embedding_dropout": 0.0,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "gradient_checkpointing": False,
    "hidden_activation": "gelu",
    "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-5,
    "local_attention": 8,  # of a tiny model, that reads tiny texts
    "local_rope_theta": 10000.0,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "model_type": "modernbert",
    "norm_bias": False,
    "norm_eps": 1e-5,
    "position_embedding_type": "absolute",
    "reference_compile": False,
    "sparse_pred_ignore_index": -100,
    "sparse_prediction": False,
    "torch_dtype": "float32",
    # what the tiny tokenizers number
    **{"bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "pad_token_id": 3},
}
_T5 = {
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "relu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-6,
    "model_type": "t5",
    "n_positions": 512,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_num_buckets": 32,
    "use_cache": True,
}
_WORDPIECE = ("special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
_BPE = ("merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json")
_SENTENCE_PIECE = ("special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Pooling:
    """The sentence-transformers side of a repository: pooling ``mode``, the modules after it, the limit of texts."""

    mode: str
    max_seq_length: int
    tail: tuple[str, ...] = ()
    do_lower_case: bool = False


@dataclass(frozen=True)
class Repository:
    """``config`` has the settings of the repository's config.json but for sizes; ``files`` are the others it holds.

    ``task`` is what it imports as, or None with the ``reason`` that a refusal names. ``legacy`` adds what old releases
    saved: the buffer of position ids, and norms called gamma and beta. ``saved_as`` is the class whose tensors the file
    holds, where that is another than ``architecture``.
    """

    name: str
    architecture: str
    task: str | None
    config: dict[str, Any]
    files: tuple[str, ...]
    pooling: Pooling | None = None
    dtype: torch.dtype = torch.float32
    legacy: bool = False
    reason: str = ""
    saved_as: str = ""

    @property
    def summary(self) -> str:
        """Its cells in the table of docs/models.md."""
        if not self.task:
            return f"`{self.architecture}` | refused: `{self.reason}`"
        steps = f": {', '.join((self.pooling.mode, *self.pooling.tail))}" if self.pooling else ""
        return f"`{self.architecture}` | {self.task}{steps}"


def _labelled(config: dict[str, Any], labels: Sequence[str], **more: Any) -> dict[str, Any]:
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    return {**config, **names, **more}


_CONLL = ("O", "B-MISC", "I-MISC", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")
_ST, _CE = "sentence-transformers/", "cross-encoder/"
REPOSITORIES = (
    Repository(
        f"{_ST}all-MiniLM-L6-v2",
        "BertModel",
        "embed",
        {**_BERT, "_name_or_path": "nreimers/MiniLM-L6-H384-uncased", "gradient_checkpointing": False},
        _WORDPIECE,
        Pooling("mean", 256, ("Normalize",)),
        legacy=True,
    ),
    Repository(
        f"{_ST}all-mpnet-base-v2",
        "MPNetForMaskedLM",
        "embed",
        {**_MPNET, "_name_or_path": "microsoft/mpnet-base"},
        _WORDPIECE,
        Pooling("mean", 384, ("Normalize",)),
        saved_as="MPNetModel",
    ),
    Repository(
        f"{_ST}multi-qa-mpnet-base-dot-v1",
        "MPNetForMaskedLM",
        "embed",
        _MPNET,
        _WORDPIECE,
        Pooling("cls", 512),
        saved_as="MPNetModel",
    ),
    Repository(
        f"{_ST}paraphrase-multilingual-MiniLM-L12-v2",
        "BertModel",
        "embed",
        _BERT,
        (*_SENTENCE_PIECE, "unigram.json"),
        Pooling("mean", 128),
    ),
    Repository(
        f"{_ST}LaBSE",
        "BertModel",
        "embed",
        {**_BERT, **_POOLER, "gradient_checkpointing": False},
        _WORDPIECE,
        Pooling("cls", 256, ("Dense", "Normalize")),
    ),
    Repository(
        f"{_ST}distiluse-base-multilingual-cased-v2",
        "DistilBertModel",
        "embed",
        {**_DISTILBERT, "output_hidden_states": True},
        _WORDPIECE,
        Pooling("mean", 128, ("Dense",)),
    ),
    Repository(
        f"{_ST}paraphrase-albert-small-v2", "AlbertModel", "embed", _ALBERT, _SENTENCE_PIECE, Pooling("mean", 100)
    ),
    Repository(
        "BAAI/bge-small-en-v1.5",
        "BertModel",
        "embed",
        _labelled(_BERT, ["LABEL_0"], classifier_dropout=None),
        _WORDPIECE,
        Pooling("cls", 512, ("Normalize",), do_lower_case=True),
    ),
    Repository("intfloat/e5-base-v2", "BertModel", "embed", _BERT, _WORDPIECE, Pooling("mean", 512, ("Normalize",))),
    Repository(
        "intfloat/multilingual-e5-small",
        "BertModel",
        "embed",
        {**_BERT, "tokenizer_class": "XLMRobertaTokenizer"},
        _SENTENCE_PIECE,
        Pooling("mean", 512, ("Normalize",)),
    ),
    Repository(
        "intfloat/multilingual-e5-large",
        "XLMRobertaModel",
        "embed",
        _XLM_ROBERTA,
        _SENTENCE_PIECE,
        Pooling("mean", 512, ("Normalize",)),
    ),
    Repository(
        "thenlper/gte-small",
        "BertModel",
        "embed",
        {**_BERT, "torch_dtype": "float16"},
        _WORDPIECE,
        Pooling("mean", 512, ("Normalize",)),
        dtype=torch.float16,
    ),
    Repository(
        "Snowflake/snowflake-arctic-embed-s",
        "BertModel",
        "embed",
        _BERT,
        _WORDPIECE,
        Pooling("cls", 512, ("Normalize",)),
    ),
    Repository(
        "Snowflake/snowflake-arctic-embed-l-v2.0",
        "XLMRobertaModel",
        "embed",
        _XLM_ROBERTA,
        _SENTENCE_PIECE,
        Pooling("cls", 8192, ("Normalize",)),
    ),
    Repository(
        "mixedbread-ai/mxbai-embed-large-v1",
        "BertModel",
        "embed",
        {**_BERT, "torch_dtype": "float16", "use_cache": False},
        _WORDPIECE,
        Pooling("cls", 512),
        dtype=torch.float16,
    ),
    Repository(
        f"{_CE}stsb-roberta-base",
        "RobertaForSequenceClassification",
        "classify",
        _labelled(_ROBERTA, ["LABEL_0"], gradient_checkpointing=False),
        _BPE,
    ),
    Repository(
        "BAAI/bge-reranker-v2-m3",
        "XLMRobertaForSequenceClassification",
        "classify",
        _labelled({**_XLM_ROBERTA, "torch_dtype": "float32"}, ["LABEL_0"]),
        _SENTENCE_PIECE,
    ),
    Repository(
        f"{_CE}ms-marco-MiniLM-L6-v2",
        "BertForSequenceClassification",
        "classify",
        _labelled(_BERT, ["LABEL_0"], sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"}),
        _WORDPIECE,
    ),
    Repository(
        "BAAI/bge-reranker-base",
        "XLMRobertaForSequenceClassification",
        "classify",
        _labelled(_XLM_ROBERTA, ["LABEL_0"]),
        _SENTENCE_PIECE,
    ),
    Repository(
        "distilbert/distilbert-base-uncased-finetuned-sst-2-english",
        "DistilBertForSequenceClassification",
        "classify",
        _labelled({**_DISTILBERT, "finetuning_task": "sst-2", "output_past": True}, ["NEGATIVE", "POSITIVE"]),
        _WORDPIECE,
    ),
    Repository(
        "nlptown/bert-base-multilingual-uncased-sentiment",
        "BertForSequenceClassification",
        "classify",
        _labelled(
            {**_BERT, **_POOLER, "_num_labels": 5, "output_past": True},
            ["1 star", "2 stars", "3 stars", "4 stars", "5 stars"],
            finetuning_task="sentiment-analysis",
        ),
        _WORDPIECE,
    ),
    Repository(
        "SamLowe/roberta-base-go_emotions",
        "RobertaForSequenceClassification",
        "classify",
        _labelled(_ROBERTA, ["admiration", "amusement", "anger"], problem_type="multi_label_classification"),
        _BPE,
    ),
    Repository(
        "joeddav/xlm-roberta-large-xnli",
        "XLMRobertaForSequenceClassification",
        "classify",
        _labelled(_XLM_ROBERTA, ["contradiction", "neutral", "entailment"], _num_labels=3),
        _SENTENCE_PIECE,
    ),
    Repository(
        "dslim/bert-base-NER",
        "BertForTokenClassification",
        "tag",
        _labelled({**_BERT, **_POOLER, "_num_labels": 9, "output_past": True}, _CONLL),
        (*_WORDPIECE, "added_tokens.json"),
    ),
    Repository(
        "Jean-Baptiste/camembert-ner",
        "CamembertForTokenClassification",
        "tag",
        _labelled(_CAMEMBERT, ["O", "I-LOC", "I-PER", "I-MISC", "I-ORG"], tokenizer_class="CamembertTokenizer"),
        _SENTENCE_PIECE,
    ),
    Repository(
        "FacebookAI/xlm-roberta-large-finetuned-conll03-english",
        "XLMRobertaForTokenClassification",
        "tag",
        _labelled({**_XLM_ROBERTA, "_num_labels": 8}, [label for label in _CONLL if label != "B-PER"]),
        ("tokenizer.json", "tokenizer_config.json"),
    ),
    Repository(
        "deepset/roberta-base-squad2",
        "RobertaForQuestionAnswering",
        "answer",
        {**_ROBERTA, "language": "english", "name": "Roberta", "gradient_checkpointing": False},
        _BPE,
    ),
    Repository(
        "distilbert/distilbert-base-cased-distilled-squad",
        "DistilBertForQuestionAnswering",
        "answer",
        {**_DISTILBERT, "output_past": True},
        _WORDPIECE,
    ),
    Repository(
        "google-bert/bert-base-uncased",
        "BertForMaskedLM",
        "fill_mask",
        {**_BERT, "gradient_checkpointing": False},
        _WORDPIECE,
        legacy=True,
        saved_as="BertForPreTraining",
    ),
    Repository(
        "albert/albert-base-v2", "AlbertForMaskedLM", "fill_mask", _ALBERT, ("tokenizer.json", "tokenizer_config.json")
    ),
    Repository(
        f"{_ST}sentence-t5-base",
        "T5EncoderModel",
        "embed",
        _T5,
        _SENTENCE_PIECE,
        Pooling("mean", 256, ("Dense", "Normalize")),
        dtype=torch.float16,
    ),
    Repository("answerdotai/ModernBERT-base", "ModernBertForMaskedLM", "fill_mask", _MODERNBERT, _SENTENCE_PIECE),
    Repository(
        "nomic-ai/modernbert-embed-base",
        "ModernBertModel",
        "embed",
        _MODERNBERT,
        _SENTENCE_PIECE,
        Pooling("mean", 8192, ("Normalize",)),
    ),
    Repository(
        "Alibaba-NLP/gte-modernbert-base",
        "ModernBertModel",
        "embed",
        {**_MODERNBERT, "torch_dtype": "float16"},
        _SENTENCE_PIECE,
        Pooling("cls", 8192),
        dtype=torch.float16,
    ),
    Repository(
        "Alibaba-NLP/gte-reranker-modernbert-base",
        "ModernBertForSequenceClassification",
        "classify",
        _labelled({**_MODERNBERT, "torch_dtype": "float16"}, ["LABEL_0"]),
        _SENTENCE_PIECE,
        dtype=torch.float16,
    ),
    Repository(
        "ibm-granite/granite-embedding-english-r2",
        "ModernBertModel",
        "embed",
        {**_MODERNBERT, "classifier_pooling": "cls", "global_rope_theta": 80000.0, "torch_dtype": "bfloat16"},
        _SENTENCE_PIECE,
        Pooling("cls", 8192, ("Normalize",)),
        dtype=torch.bfloat16,
    ),
    Repository(
        "jinaai/jina-embeddings-v2-small-en",
        "JinaBertForMaskedLM",
        None,
        {
            **_BERT,
            "position_embedding_type": "alibi",
            "auto_map": {"AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"},
        },
        _WORDPIECE,
        Pooling("mean", 8192),
        saved_as="BertModel",
        reason="jinaai/jina-bert-implementation",
    ),
    Repository(
        "jinaai/jina-reranker-v2-base-multilingual",
        "XLMRobertaForSequenceClassification",
        None,
        {
            **_XLM_ROBERTA,
            "auto_map": {
                "AutoModelForSequenceClassification": "modeling_xlm_roberta.XLMRobertaForSequenceClassification"
            },
            "use_flash_attn": True,
        },
        _SENTENCE_PIECE,
        reason="modeling_xlm_roberta",
    ),
    Repository(
        "nomic-ai/nomic-embed-text-v1.5",
        "NomicBertModel",
        None,
        {**_BERT, "model_type": "nomic_bert", "auto_map": {"AutoModel": "modeling_hf_nomic_bert.NomicBertModel"}},
        _WORDPIECE,
        Pooling("mean", 8192),
        saved_as="BertModel",
        reason="nomic_bert",
    ),
    Repository(
        f"{_CE}nli-deberta-v3-base",
        "DebertaV2ForSequenceClassification",
        None,
        {**_BERT, "model_type": "deberta-v2", "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        _SENTENCE_PIECE,
        saved_as="BertForSequenceClassification",
        reason="deberta-v2",
    ),
)


def table() -> str:
    """The repositories as a table of docs/models.md."""
    lines = ["| repository | class | imports as |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| `{each.name}` | {each.summary} |" for each in REPOSITORIES)])


if __name__ == "__main__":
    print(table())
