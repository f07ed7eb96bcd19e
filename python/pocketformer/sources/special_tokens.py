"""Special and added tokens, collected from every file that may declare some, in the order in which they get ids."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from .config import read_json
from .tokenizer_files import Settings, TokenizerFiles
from .tokenizer_parts import Kind

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_TOKEN_FIELDS = ("content", "lstrip", "rstrip", "normalized", "single_word", "special")


class SpecialTokens:
    """Named and other added tokens, from every file that may declare some, in the order in which they are added."""

    def __init__(self) -> None:
        self.named: dict[str, AddedToken | str | None] = {}
        self.added: dict[int, AddedToken] = {}
        self.extra: list[AddedToken | str] = []
        self.defaults: set[str] = set()  # named by the class alone: no file asks for them

    @classmethod
    def collect(cls, kind: Kind, files: TokenizerFiles, settings: Settings) -> SpecialTokens:
        result = cls()
        values = dict(settings.values)
        if "additional_special_tokens" in values and not values.get("extra_special_tokens"):
            values["extra_special_tokens"] = values.pop("additional_special_tokens")
        if "added_tokens_decoder" in values:
            result._read_decoder(values["added_tokens_decoder"], settings.path)
        else:
            result._read_older_files(values, files, settings)
        by_text = {str(token): token for token in result.added.values()}
        if files.control_tokens and kind.names_control:
            control = [
                _added(content=text, normalized=False, special=special) for text, special in files.control_tokens
            ]
            values["additional_special_tokens"] = control
            if "extra_special_tokens" not in values:  # else the class's own flags count
                by_text.update((str(token), token) for token in control)
        for key in NAMED:
            value = values.get(key, kind.tokens.get(key))
            if key not in values and value is not None:
                result.defaults.add(str(value))
            token = None if value is None else _token(value, f"{settings.path}: {key!r}")
            result.named[key] = None if token is None else by_text.get(str(token), token)
        mask = result.named["mask_token"]
        if kind.mask_strips and isinstance(mask, str):
            result.named["mask_token"] = _added(content=mask, lstrip=True, special=True)
        result._read_extra(values, kind, settings)
        return result

    def add_to(self, tokenizer: Tokenizer, rows: int) -> None:
        """Adds what the vocabulary lacks at its end, and makes all of them readable in a text.

        A token that only the class names is left out where the table has no row for it.
        """
        wanted: list[AddedToken | str] = [token for _, token in sorted(self.added.items())]
        known = {token.content for token in tokenizer.get_added_tokens_decoder().values()} | {str(t) for t in wanted}
        for token in [*(t for t in self.named.values() if t is not None), *self.extra]:
            if str(token) not in known:
                known.add(str(token))
                wanted.append(token)
        names = {str(token) for token in self.named.values() if token is not None}
        size = tokenizer.get_vocab_size()
        tokens = []
        for token in wanted:
            if tokenizer.token_to_id(str(token)) is None:
                if size >= rows and str(token) in self.defaults:
                    continue
                size += 1
            if isinstance(token, str):
                token = _added(content=token, special=True)
            elif str(token) in names:
                token.special = True
            tokens.append(token)
        tokenizer.add_tokens(tokens)

    def _read_decoder(self, values: Any, path: Path) -> None:
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: 'added_tokens_decoder' is {values!r}; it must map ids to tokens")
        for index, token in values.items():
            what = f"{path}: token {index!r} of 'added_tokens_decoder'"
            if not str(index).isdecimal() or not isinstance(token, dict):
                raise CheckpointError(f"{what} is {token!r}; it must be an object under a number")
            self.added[int(index)] = _from_dict(token, what)

    def _read_older_files(self, values: dict[str, Any], files: TokenizerFiles, settings: Settings) -> None:
        """``special_tokens_map.json``, ``added_tokens.json`` and the added tokens of ``tokenizer.json``."""
        path = settings.folder / "special_tokens_map.json"
        for key, value in (read_json(path) if path.is_file() else {}).items():
            if settings.overrides.get(key):
                continue
            if key == "extra_special_tokens" and isinstance(value, list):
                value = [*(values.get(key) or []), *value]
            values[key] = {**value, "special": True} if isinstance(value, dict) and "content" in value else value
        path = settings.folder / "added_tokens.json"
        if path.is_file():
            special = {_content(values[key]) for key in NAMED if values.get(key)}
            special |= {_content(token) for token in values.get("extra_special_tokens") or []}
            for text, index in read_json(path).items():
                if not isinstance(index, int):
                    raise CheckpointError(f"{path}: {text!r} has the id {index!r}; it must be an integer")
                self.added[index] = _added(content=text, normalized=text not in special, special=text in special)
        for token in (files.json or {}).get("added_tokens") or []:
            self.added[int(token["id"])] = _from_dict({k: v for k, v in token.items() if k != "id"}, str(files.path))

    def _read_extra(self, values: dict[str, Any], kind: Kind, settings: Settings) -> None:
        """Tokens of other names (``query_token``) and without a name."""
        named: dict[str, Any] = {}
        for key, value in values.items():
            if key.endswith("_token") and key not in NAMED and (isinstance(value, str) or _is_token(value)):
                named[key] = value
        key = "extra_special_tokens" if "extra_special_tokens" in values else "additional_special_tokens"
        usual = kind.extra(settings)
        listed = values.get(key) or (list(usual) if key not in values else [])
        if isinstance(listed, dict):
            named.update(listed)
            listed = []
        if not isinstance(listed, list):
            raise CheckpointError(f"{settings.path}: {key!r} is {listed!r}; it must be a list of tokens")
        if key not in values:
            self.defaults.update(listed)
        self.extra = [_token(value, f"{settings.path}: {key!r}") for value in [*named.values(), *listed]]


def _added(**fields: Any) -> AddedToken:
    from tokenizers import AddedToken

    return AddedToken(**fields)


def _is_token(value: Any) -> bool:
    return hasattr(value, "content") or (isinstance(value, dict) and value.get("__type") == "AddedToken")


def _content(value: Any) -> str:
    return str(value["content"]) if isinstance(value, dict) and "content" in value else str(value)


def _token(value: Any, what: str) -> AddedToken | str:
    """A token as written in a JSON file: its text, or an object with its flags."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return _from_dict(value, what)
    if hasattr(value, "content"):
        return value  # type: ignore[no-any-return]  # an AddedToken
    raise CheckpointError(f"{what} is {value!r}; it must be a token's text or an object with 'content'")


def _from_dict(value: dict[str, Any], what: str) -> AddedToken:
    fields = {key: item for key, item in value.items() if key != "__type"}
    wrong = set(fields) - set(_TOKEN_FIELDS) or not isinstance(fields.get("content"), str)
    if wrong or not all(isinstance(item, bool) for key, item in fields.items() if key != "content"):
        raise CheckpointError(f"{what} is {value!r}; a token has the fields {', '.join(_TOKEN_FIELDS)}")
    return _added(**fields)
