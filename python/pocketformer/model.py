"""The public face of a pocket file: ``load`` gives the typed model of its task."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from .engine import Engine, Outputs, describe
from .errors import TaskError
from .ids import ragged
from .tasks import MODELS, model_class
from .tasks.text import TextReader

_M = TypeVar("_M", bound="Model")
Source: TypeAlias = tuple[str, int | None, bool, int | None, str | None]
"""The arguments of :func:`load`."""


def load(
    path: str | os.PathLike[str],
    threads: int | None = None,
    copy: bool = False,
    context: int | None = None,
    kv: str | None = None,
) -> Model:
    """Opens the pocket file ``path`` as the model of its task: an :class:`Embedder`, a :class:`Classifier` …

    ``threads`` is the most that one call uses; None takes one for each strong core that this process may use (affinity
    and cgroup quota). The result never depends on it.

    The file is mapped: nothing is read before it is needed, and processes share one copy. Whoever overwrites it in
    place (``cp``, ``rsync --inplace``) changes or kills the processes that run it; replacing it by another (``mv``, or
    ``compress``, which does so) is safe. ``copy=True`` reads it into memory of this process instead.

    ``context`` is for a :class:`Generator`: the most tokens that a prompt and what follows may have, which bounds the
    memory of its keys and values; None takes 4096, or fewer where the model was trained for fewer. ``kv`` is the dtype
    of these: None takes the file's, ``"int8"`` where weights are integers, else ``"fp32"``; ``"fp16"`` rounds them to
    fp16 as they come, which takes half of what fp32 takes and twice what int8 does, and leaves queries as they are:
    attention multiplies in fp32.

    Example:
        >>> model = pocketformer.load("minilm.pocket")  # doctest: +SKIP
        >>> model.encode("A cat sits on the mat.").shape  # doctest: +SKIP
        (384,)

    Raises:
        OSError: the file cannot be opened.
        PocketFileError: the file breaks the format.
        ValueError: ``threads`` or ``context`` is not a positive integer, ``context`` was given for a model that does
            not generate or exceeds what it was trained for, ``kv`` was given for such a model, is another name, or
            ``"int8"`` where the file has floats, or POCKETFORMER_ISA names what this CPU lacks.
    """
    return Model.load(path, threads, copy, context, kv)


class Model:
    """An open pocket file. Any number of threads may call it at once; it survives fork and pickles as its path.

    :func:`load` returns the subclass of the file's task, whose method works on texts; the methods of other tasks raise
    TaskError, a TypeError. Calling the model works on texts, as its method does, or on token ids, as :meth:`run` does.
    """

    _method: ClassVar[str] = ""  # what calling the model on texts does

    def __init__(self, engine: Engine, source: Source) -> None:
        self._engine = engine
        self._source = source
        self._reader = TextReader(engine.file, engine.threads)

    @classmethod
    def load(
        cls: type[_M],
        path: str | os.PathLike[str],
        threads: int | None = None,
        copy: bool = False,
        context: int | None = None,
        kv: str | None = None,
    ) -> _M:
        """Like :func:`load`, typed: ``Embedder.load(path)`` raises TaskError for a file of another task."""
        source = (os.path.abspath(path), threads, copy, context, kv)
        engine = Engine(source[0], threads, copy, kv)
        _check_context(engine, context)
        found: type[Any] = model_class(engine)
        if not issubclass(found, cls):
            raise TaskError(f"{source[0]} is a model for the task {engine.file.model['task']!r}; use {found.__name__}")
        model: _M = found(engine, source)
        return model

    def __reduce__(self) -> tuple[Any, ...]:
        return load, self._source

    def __repr__(self) -> str:
        model, isa = self._engine.file.model, self._engine.program.isa
        return f"<pocketformer.{type(self).__name__} {model['name']!r}: {self.task}, {model['weights']}, {isa}>"

    @property
    def task(self) -> str:
        """``embed``, ``classify``, ``tag``, ``answer``, ``fill_mask``, ``generate``, ``classify_image`` …"""
        return str(self._engine.file.model["task"])

    @property
    def labels(self) -> list[str]:
        """The names of the outputs of ``classify`` and ``tag``; empty for other tasks."""
        return list(self._engine.file.model["labels"] or [])

    @property
    def width(self) -> int:
        """Columns of the output: the embedding's dimensions, labels, 2 (start, end) or the vocabulary."""
        return self._engine.width

    @property
    def max_length(self) -> int:
        """Tokens, special ones included, at which texts are cut."""
        return self._reader.max_length

    @property
    def threads(self) -> int:
        """The most threads that one call uses."""
        return self._engine.threads

    def info(self) -> dict[str, Any]:
        """What the file holds and how it runs here, ready for JSON."""
        return describe(self._engine)

    def plan(self, lengths: Sequence[int], *, rows: int = 0) -> int:
        """Bytes of working memory for one run over sequences of ``lengths`` tokens; the weights are not counted.

        ``rows`` is the number of chosen token rows of a model that takes them. Raises ValueError for a length that the
        model does not allow.
        """
        return self._engine.program.arena_bytes([int(n) for n in lengths], self._engine.threads, rows)

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Texts, with the arguments and results of the task's method; or token ids, with those of :meth:`run`."""
        if inputs and isinstance(inputs[0], Iterator):
            inputs = (list(inputs[0]), *inputs[1:])
        first = inputs[0] if inputs else next(iter(options.values()), None)
        if not _holds_text(first):
            return self.run(*inputs, **options)
        if not self._method:
            raise TaskError(f"{self._source[0]} is a model for the task {self.task!r}, which takes token ids")
        return getattr(self, self._method)(*inputs, **options)

    def run(
        self,
        input_ids: ArrayLike | Sequence[ArrayLike],
        attention_mask: ArrayLike | None = None,
        token_type_ids: ArrayLike | Sequence[ArrayLike] | None = None,
        *,
        rows: ArrayLike | None = None,
    ) -> Outputs:
        """Runs token ids as they are, special tokens included, in one pass.

        ``input_ids`` is a list of sequences of any lengths or an integer array [sequences, tokens]; with
        ``attention_mask`` [sequences, tokens] padding at either end is left out before it costs anything.
        ``token_type_ids`` has the form of ``input_ids`` and defaults to zeros. ``rows`` are token indices, counted over
        all sequences end to end without padding, for a model that works on chosen rows (``fill_mask``).

        Returns float32 [sequences | tokens | rows, width]; ``info()["output"]`` says which.

        Raises TypeError for anything but integers, ValueError for ids, lengths or rows that do not fit the model.
        """
        sequences, types = ragged(input_ids, attention_mask, token_type_ids)
        chosen = None if rows is None else np.ascontiguousarray(rows, np.int64)
        return self._engine.run(sequences, types, chosen)

    def __getattr__(self, name: str) -> Any:
        """A method of another task, which raises TaskError when it is called."""
        having = [task for task, (_, _, methods) in MODELS.items() if name in methods]
        wanted = name if name in having else next(iter(having), None)
        if wanted is None or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

        def refuse(*_: Any, **__: Any) -> Any:
            use = self._method or "run on token ids"
            task = wanted if wanted != self.task else name  # rank is there for classifiers with one label only
            raise TaskError(f"{self._source[0]} is a model for the task {self.task!r}, not {task!r}; use Model.{use}")

        return refuse


def _check_context(engine: Engine, context: int | None) -> None:
    if context is None:
        return
    task, most = engine.file.model["task"], engine.file.graph.max_length
    if task != "generate":
        raise ValueError(f"context is {context!r}, but the task of {engine.file.path} is {task!r}; leave it out")
    if not isinstance(context, int) or isinstance(context, bool) or not 1 <= context <= most:
        raise ValueError(f"context is {context!r}; it must be an integer in 1…{most}, which the model was trained for")


def _holds_text(value: Any) -> bool:
    """A text, a list of texts, or of pairs."""
    if isinstance(value, np.ndarray):
        value = value.ravel()[:1].tolist()
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return isinstance(value, str)
