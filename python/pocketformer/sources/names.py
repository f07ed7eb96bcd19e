"""The names of a checkpoint's tensors without what training tools wrap around them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import CheckpointError

_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch.compile, FSDP and activation checkpointing insert anywhere in a name."""


def without_wrappers(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


@dataclass(frozen=True)
class Names:
    """Where a checkpoint keeps the tensors that families ask for as ``base.…`` (the encoder's) and others (a head's).

    ``encoder`` and ``head`` are what precedes their names in the file: ``model.bert.`` and ``model.``, say, or nothing
    at all in an encoder saved alone.
    """

    base: str
    encoder: str
    head: str
    stored: dict[str, str] = field(default_factory=dict)

    def __call__(self, name: str) -> str:
        """The name in the file; where it has no such tensor, what it would be called."""
        plain = self._plain(name)
        return self.stored.get(plain, plain)

    def __contains__(self, name: str) -> bool:
        return self._plain(name) in self.stored

    def spellings(self, name: str) -> tuple[str, ...]:
        """What an adapter may call ``name``: as the file does, or as a model saved with or without a head."""
        return self._plain(name), name, name.removeprefix(f"{self.base}.")

    def _plain(self, name: str) -> str:
        inner = name.removeprefix(f"{self.base}.")
        return self.head + name if inner == name else self.encoder + inner


def find_names(names: Iterable[str], base: str, word_table: str, folder: Path) -> Names:
    """The naming of a checkpoint, told by what precedes its ``word_table``.

    Raises:
        CheckpointError: it has several such tables (two towers, say), none of them where transformers looks for it.
    """
    stored = {without_wrappers(name): name for name in names}
    found = {name.removesuffix(word_table) for name in stored if f".{name}".endswith(f".{word_table}")}
    usual = [prefix for prefix in (f"{base}.", "") if prefix in found]
    if len(found) > 1 and not usual:
        raise CheckpointError(
            f"{folder} holds several encoders, under {', '.join(repr(prefix) for prefix in sorted(found))}; save the "
            "one that you need with save_pretrained"
        )
    encoder = usual[0] if usual else next(iter(found), f"{base}.")
    inside = f".{encoder}".endswith(f".{base}.")
    return Names(base, encoder, encoder.removesuffix(f"{base}.") if inside else encoder, stored)
