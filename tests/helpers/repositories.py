"""Common public repositories: their files and their settings, as tests rebuild them at tiny size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from helpers import repository_settings as known
from helpers.repository import Pooling, Repository


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
        {**known.BERT, "_name_or_path": "nreimers/MiniLM-L6-H384-uncased", "gradient_checkpointing": False},
        known.WORDPIECE,
        Pooling("mean", 256, ("Normalize",)),
        legacy=True,
    ),
    Repository(
        f"{_ST}all-mpnet-base-v2",
        "MPNetForMaskedLM",
        "embed",
        {**known.MPNET, "_name_or_path": "microsoft/mpnet-base"},
        known.WORDPIECE,
        Pooling("mean", 384, ("Normalize",)),
        saved_as="MPNetModel",
    ),
    Repository(
        f"{_ST}multi-qa-mpnet-base-dot-v1",
        "MPNetForMaskedLM",
        "embed",
        known.MPNET,
        known.WORDPIECE,
        Pooling("cls", 512),
        saved_as="MPNetModel",
    ),
    Repository(
        f"{_ST}paraphrase-multilingual-MiniLM-L12-v2",
        "BertModel",
        "embed",
        known.BERT,
        (*known.SENTENCE_PIECE, "unigram.json"),
        Pooling("mean", 128),
    ),
    Repository(
        f"{_ST}LaBSE",
        "BertModel",
        "embed",
        {**known.BERT, **known.POOLER, "gradient_checkpointing": False},
        known.WORDPIECE,
        Pooling("cls", 256, ("Dense", "Normalize")),
    ),
    Repository(
        f"{_ST}distiluse-base-multilingual-cased-v2",
        "DistilBertModel",
        "embed",
        {**known.DISTILBERT, "output_hidden_states": True},
        known.WORDPIECE,
        Pooling("mean", 128, ("Dense",)),
    ),
    Repository(
        f"{_ST}paraphrase-albert-small-v2",
        "AlbertModel",
        "embed",
        known.ALBERT,
        known.SENTENCE_PIECE,
        Pooling("mean", 100),
    ),
    Repository(
        "BAAI/bge-small-en-v1.5",
        "BertModel",
        "embed",
        _labelled(known.BERT, ["LABEL_0"], classifier_dropout=None),
        known.WORDPIECE,
        Pooling("cls", 512, ("Normalize",), do_lower_case=True),
    ),
    Repository(
        "intfloat/e5-base-v2",
        "BertModel",
        "embed",
        known.BERT,
        known.WORDPIECE,
        Pooling("mean", 512, ("Normalize",)),
    ),
    Repository(
        "intfloat/multilingual-e5-small",
        "BertModel",
        "embed",
        {**known.BERT, "tokenizer_class": "XLMRobertaTokenizer"},
        known.SENTENCE_PIECE,
        Pooling("mean", 512, ("Normalize",)),
    ),
    Repository(
        "intfloat/multilingual-e5-large",
        "XLMRobertaModel",
        "embed",
        known.XLM_ROBERTA,
        known.SENTENCE_PIECE,
        Pooling("mean", 512, ("Normalize",)),
    ),
    Repository(
        "thenlper/gte-small",
        "BertModel",
        "embed",
        {**known.BERT, "torch_dtype": "float16"},
        known.WORDPIECE,
        Pooling("mean", 512, ("Normalize",)),
        dtype=torch.float16,
    ),
    Repository(
        "Snowflake/snowflake-arctic-embed-s",
        "BertModel",
        "embed",
        known.BERT,
        known.WORDPIECE,
        Pooling("cls", 512, ("Normalize",)),
    ),
    Repository(
        "Snowflake/snowflake-arctic-embed-l-v2.0",
        "XLMRobertaModel",
        "embed",
        known.XLM_ROBERTA,
        known.SENTENCE_PIECE,
        Pooling("cls", 8192, ("Normalize",)),
    ),
    Repository(
        "mixedbread-ai/mxbai-embed-large-v1",
        "BertModel",
        "embed",
        {**known.BERT, "torch_dtype": "float16", "use_cache": False},
        known.WORDPIECE,
        Pooling("cls", 512),
        dtype=torch.float16,
    ),
    Repository(
        f"{_CE}stsb-roberta-base",
        "RobertaForSequenceClassification",
        "classify",
        _labelled(known.ROBERTA, ["LABEL_0"], gradient_checkpointing=False),
        known.BPE,
    ),
    Repository(
        "BAAI/bge-reranker-v2-m3",
        "XLMRobertaForSequenceClassification",
        "classify",
        _labelled({**known.XLM_ROBERTA, "torch_dtype": "float32"}, ["LABEL_0"]),
        known.SENTENCE_PIECE,
    ),
    Repository(
        f"{_CE}ms-marco-MiniLM-L6-v2",
        "BertForSequenceClassification",
        "classify",
        _labelled(known.BERT, ["LABEL_0"], sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"}),
        known.WORDPIECE,
    ),
    Repository(
        "BAAI/bge-reranker-base",
        "XLMRobertaForSequenceClassification",
        "classify",
        _labelled(known.XLM_ROBERTA, ["LABEL_0"]),
        known.SENTENCE_PIECE,
    ),
    Repository(
        "distilbert/distilbert-base-uncased-finetuned-sst-2-english",
        "DistilBertForSequenceClassification",
        "classify",
        _labelled({**known.DISTILBERT, "finetuning_task": "sst-2", "output_past": True}, ["NEGATIVE", "POSITIVE"]),
        known.WORDPIECE,
    ),
    Repository(
        "nlptown/bert-base-multilingual-uncased-sentiment",
        "BertForSequenceClassification",
        "classify",
        _labelled(
            {**known.BERT, **known.POOLER, "_num_labels": 5, "output_past": True},
            ["1 star", "2 stars", "3 stars", "4 stars", "5 stars"],
            finetuning_task="sentiment-analysis",
        ),
        known.WORDPIECE,
    ),
    Repository(
        "SamLowe/roberta-base-go_emotions",
        "RobertaForSequenceClassification",
        "classify",
        _labelled(known.ROBERTA, ["admiration", "amusement", "anger"], problem_type="multi_label_classification"),
        known.BPE,
    ),
    Repository(
        "joeddav/xlm-roberta-large-xnli",
        "XLMRobertaForSequenceClassification",
        "classify",
        _labelled(known.XLM_ROBERTA, ["contradiction", "neutral", "entailment"], _num_labels=3),
        known.SENTENCE_PIECE,
    ),
    Repository(
        "dslim/bert-base-NER",
        "BertForTokenClassification",
        "tag",
        _labelled({**known.BERT, **known.POOLER, "_num_labels": 9, "output_past": True}, _CONLL),
        (*known.WORDPIECE, "added_tokens.json"),
    ),
    Repository(
        "Jean-Baptiste/camembert-ner",
        "CamembertForTokenClassification",
        "tag",
        _labelled(known.CAMEMBERT, ["O", "I-LOC", "I-PER", "I-MISC", "I-ORG"], tokenizer_class="CamembertTokenizer"),
        known.SENTENCE_PIECE,
    ),
    Repository(
        "FacebookAI/xlm-roberta-large-finetuned-conll03-english",
        "XLMRobertaForTokenClassification",
        "tag",
        _labelled({**known.XLM_ROBERTA, "_num_labels": 8}, [label for label in _CONLL if label != "B-PER"]),
        ("tokenizer.json", "tokenizer_config.json"),
    ),
    Repository(
        "deepset/roberta-base-squad2",
        "RobertaForQuestionAnswering",
        "answer",
        {**known.ROBERTA, "language": "english", "name": "Roberta", "gradient_checkpointing": False},
        known.BPE,
    ),
    Repository(
        "distilbert/distilbert-base-cased-distilled-squad",
        "DistilBertForQuestionAnswering",
        "answer",
        {**known.DISTILBERT, "output_past": True},
        known.WORDPIECE,
    ),
    Repository(
        "google-bert/bert-base-uncased",
        "BertForMaskedLM",
        "fill_mask",
        {**known.BERT, "gradient_checkpointing": False},
        known.WORDPIECE,
        legacy=True,
        saved_as="BertForPreTraining",
    ),
    Repository(
        "albert/albert-base-v2",
        "AlbertForMaskedLM",
        "fill_mask",
        known.ALBERT,
        ("tokenizer.json", "tokenizer_config.json"),
    ),
    Repository(
        f"{_ST}sentence-t5-base",
        "T5EncoderModel",
        "embed",
        known.T5,
        known.SENTENCE_PIECE,
        Pooling("mean", 256, ("Dense", "Normalize")),
        dtype=torch.float16,
    ),
    Repository(
        "answerdotai/ModernBERT-base",
        "ModernBertForMaskedLM",
        "fill_mask",
        known.MODERNBERT,
        known.SENTENCE_PIECE,
    ),
    Repository(
        "nomic-ai/modernbert-embed-base",
        "ModernBertModel",
        "embed",
        known.MODERNBERT,
        known.SENTENCE_PIECE,
        Pooling("mean", 8192, ("Normalize",)),
    ),
    Repository(
        "Alibaba-NLP/gte-modernbert-base",
        "ModernBertModel",
        "embed",
        {**known.MODERNBERT, "torch_dtype": "float16"},
        known.SENTENCE_PIECE,
        Pooling("cls", 8192),
        dtype=torch.float16,
    ),
    Repository(
        "Alibaba-NLP/gte-reranker-modernbert-base",
        "ModernBertForSequenceClassification",
        "classify",
        _labelled({**known.MODERNBERT, "torch_dtype": "float16"}, ["LABEL_0"]),
        known.SENTENCE_PIECE,
        dtype=torch.float16,
    ),
    Repository(
        "ibm-granite/granite-embedding-english-r2",
        "ModernBertModel",
        "embed",
        {**known.MODERNBERT, "classifier_pooling": "cls", "global_rope_theta": 80000.0, "torch_dtype": "bfloat16"},
        known.SENTENCE_PIECE,
        Pooling("cls", 8192, ("Normalize",)),
        dtype=torch.bfloat16,
    ),
    Repository(
        "nomic-ai/nomic-embed-text-v1.5",
        "NomicBertModel",
        "embed",
        known.NOMIC,
        known.WORDPIECE,
        Pooling("mean", 8192),
        renamed=known.NOMIC_KEYS,
    ),
    Repository(
        "jinaai/jina-embeddings-v2-small-en",
        "JinaBertForMaskedLM",
        None,
        {
            **known.BERT,
            "position_embedding_type": "alibi",
            "auto_map": {"AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"},
        },
        known.WORDPIECE,
        Pooling("mean", 8192),
        saved_as="BertModel",
        reason="jinaai/jina-bert-implementation",
    ),
    Repository(
        "jinaai/jina-reranker-v2-base-multilingual",
        "XLMRobertaForSequenceClassification",
        None,
        {
            **known.XLM_ROBERTA,
            "auto_map": {
                "AutoModelForSequenceClassification": "modeling_xlm_roberta.XLMRobertaForSequenceClassification"
            },
            "use_flash_attn": True,
        },
        known.SENTENCE_PIECE,
        reason="modeling_xlm_roberta",
    ),
    Repository(
        f"{_CE}nli-deberta-v3-base",
        "DebertaV2ForSequenceClassification",
        None,
        {**known.BERT, "model_type": "deberta-v2", "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        known.SENTENCE_PIECE,
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
