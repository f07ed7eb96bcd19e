"""Makes ``tests/data/sentencepiece``: three small models, and what AutoTokenizer makes of them.

The tests read what lies there and need neither package. To make it again, in an environment that has sentencepiece and
protobuf beside transformers: ``PYTHONPATH=tests python -m helpers.sentencepiece_data``.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers.corpus import texts
from helpers.odd_texts import odd_texts

FOLDER = Path(__file__).parents[1] / "data" / "sentencepiece"
LENGTH = 48
FILES = {
    "xlm-roberta": "sentencepiece.bpe.model",
    "camembert": "sentencepiece.bpe.model",
    "albert": "spiece.model",
    "siglip": "sentencepiece.bpe.model",
    "t5": "t5.model",
    "big_bird": "spiece.model",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "prefix": {"add_prefix_space": False},
    "case": {"do_lower_case": False, "keep_accents": True},
    "left": {"truncation_side": "left", "model_max_length": 20},
    "few": {"extra_ids": 3},
    "mask": {"mask_token": "[MASK]", "additional_special_tokens": ["house"]},
}
_RULES = {
    **{"ﬁ": "fi", "ﬂ": "fl", "½": "1/2", "™": "TM", "\u00a0": " ", "\u3000": " ", "\t": " ", "\n": " ", "\x07": ""},
    **{chr(0xFF10 + i): str(i) for i in range(10)},
    **{"e\u0301": "é", "E\u0301": "É", "\u1112\u1161\u11ab": "한"},
}


def settings_of(model_type: str) -> list[str]:
    """SigLIP has no mask, and its class gives no other to a folder; T5 alone has sentinels."""
    left_out = {"siglip": ("mask", "few"), "t5": ()}.get(model_type, ("few",))
    return [name for name in SETTINGS if name not in left_out]


def texts_of(model_type: str) -> list[str]:
    """SigLIP's are without special tokens, which its class looks for before it takes punctuation out of a text, and
    without letters under a heap of accents, which the package sees as one and the tokenizers library one by one."""
    left_out = ("<unk>", "</s>", "<s>", "<pad>", "\u0323\u0301", "\u0301\u0323") if model_type == "siglip" else ()
    return [text for text in odd_texts() if not any(part in text for part in left_out)]


def digest(ids: Sequence[Sequence[int]]) -> str:
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


def folder(parent: Path, model_type: str, settings: dict[str, Any]) -> Path:
    """A checkpoint folder without ``tokenizer.json``; the settings' file is missing where there are none."""
    parent.mkdir(parents=True)
    (parent / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": 2000}))
    name = "spiece.model" if model_type in ("siglip", "t5") else FILES[model_type]
    (parent / name).write_bytes((FOLDER / FILES[model_type]).read_bytes())
    if settings:
        (parent / "tokenizer_config.json").write_text(json.dumps(settings))
    return parent


def _train(name: str, **options: Any) -> None:
    import sentencepiece

    with tempfile.TemporaryDirectory() as work:
        rules = Path(work) / "rules.tsv"
        points = {" ".join(f"{ord(c):X}" for c in a): " ".join(f"{ord(c):X}" for c in b) for a, b in _RULES.items()}
        rules.write_text("".join(f"{source}\t{target}\n" for source, target in points.items()))
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([*texts(), *odd_texts(99)]),
            model_prefix=str(Path(work) / "m"),
            vocab_size=900,
            character_coverage=0.98,
            normalization_rule_tsv=str(rules),
            user_defined_symbols=["<USER>"],
            num_threads=1,
            **options,
        )
        (FOLDER / name).write_bytes((Path(work) / "m.model").read_bytes())


def main() -> None:
    from transformers import AutoTokenizer

    FOLDER.mkdir(exist_ok=True)
    _train("sentencepiece.bpe.model")
    special = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1}
    _train("spiece.model", **special, control_symbols=["[CLS]", "[SEP]", "[MASK]"])
    _train("t5.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    result = {}
    with tempfile.TemporaryDirectory() as work:
        for model_type in FILES:
            for name in settings_of(model_type):
                settings = SETTINGS[name]
                tokenizer = AutoTokenizer.from_pretrained(folder(Path(work) / model_type / name, model_type, settings))
                encoded = tokenizer(texts_of(model_type), truncation=True, max_length=LENGTH)["input_ids"]
                result[f"{model_type} {name}"] = digest(encoded)
    (FOLDER / "ids.json").write_text(json.dumps(result, indent=0) + "\n")


if __name__ == "__main__":
    main()
