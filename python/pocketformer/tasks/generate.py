"""Text that goes on: token by token, as a whole or as a stream."""

from __future__ import annotations

import threading
from collections.abc import Generator as PyGenerator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from .._core import StateCache
from ..engine import Engine, Ids, Outputs
from ..graph import kept_dtype
from ..model import Model, Source
from ..sampling import Sampler, Sampling
from . import score
from .lookup import Lookup
from .score import CHUNK, Perplexity
from .stream import Generation, Progress, Spelling, TextStream, Writer
from .text import check_unicode

if TYPE_CHECKING:
    from tokenizers import Tokenizer


MOST_GUESSES = 64
"""Tokens that a run may try; more cost more than they can save."""


class Generator(Model):
    """Continues texts. Any number of threads may call it at once: every call has keys and values of its own.

    Those of the last text are kept: a prompt that begins as it did, such as the next turn of a conversation, is read
    from where they part. Not a bit depends on that.
    """

    _method = "generate"

    def __init__(self, engine: Engine, source: Source) -> None:
        super().__init__(engine, source)
        self._kept = _Kept()

    @property
    def context(self) -> int:
        """Tokens that a prompt and what follows may have together."""
        given = self._source[3]
        return min(4096 if given is None else given, self._engine.file.graph.max_length)

    def info(self) -> dict[str, Any]:
        """What the file holds and how it runs here, ready for JSON: with the ``context``, the dtype ``kv`` of keys and
        values, and the ``cache_bytes`` that those of one conversation take."""
        engine, context = self._engine, self.context
        cache = engine.program.cache_bytes(context, min(CHUNK, context))
        return super().info() | {"context": context, "kv": kept_dtype(engine.file.graph), "cache_bytes": cache}

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        return tuple(self._engine.file.text["end_token_ids"])

    def generate(
        self,
        prompt: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]],
        max_tokens: int = 256,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        logprobs: int | None = None,
        lookup: int = 0,
        stream: bool = False,
    ) -> Any:
        """What follows ``prompt``, a text or token ids: at most ``max_tokens`` tokens, without what ends it.

        The options are those of :class:`~pocketformer.sampling.Sampling`; what is None is as the checkpoint's
        ``generation_config.json`` says, which without ``do_sample`` is the likeliest token each time. The same ``seed``
        gives the same text on every CPU. The text ends before the first of the ``stop`` strings.

        Returns the text, or with ``stream`` its pieces as they come, a :class:`TextStream`; a character is never cut.
        With ``logprobs`` N a :class:`Generation`, which holds for every token its log probability and those of the N
        likeliest, as the model gives them: before penalties, biases and temperature. A stream holds them too.
        ``lookup`` N lets a run try up to N tokens at once, those that followed where the text said the same before: the
        result is the same, and comes sooner where a text repeats what is in the prompt or in itself.
        For a list of prompts a list of texts, each what it would be alone: their tokens come from one run, which costs
        little more than that of one.

        Raises ValueError where prompt and ``max_tokens`` exceed the :attr:`context`.

        Example:
            >>> model = pocketformer.load("smollm2.pocket")  # doctest: +SKIP
            >>> model.generate("The capital of France is", max_tokens=8)  # doctest: +SKIP
            ' Paris.'
        """
        given = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
        }
        sampling = replace(
            Sampling(presence_penalty=presence_penalty, logit_bias=dict(logit_bias or {}), seed=seed),
            **self._engine.file.text["sampling"] | {key: value for key, value in given.items() if value is not None},
        )
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens!r}; it must be an integer of at least 1")
        if isinstance(lookup, bool) or not isinstance(lookup, int) or not 0 <= lookup <= MOST_GUESSES:
            raise ValueError(f"lookup is {lookup!r}; it must be an integer in 0…{MOST_GUESSES}, and 0 tries none")
        stops = [stop] if isinstance(stop, str) else list(stop)
        if not all(isinstance(text, str) and text for text in stops):
            raise ValueError(f"stop is {stop!r}; it must be a text or a list of them, none empty")
        several = not isinstance(prompt, str) and len(prompt) > 0 and not isinstance(prompt[0], int | np.integer)
        if several and stream:
            raise ValueError(
                "stream is True and there are several prompts; give one, or take the texts as they are done"
            )
        if several and lookup:
            raise ValueError(f"lookup is {lookup} and there are several prompts; give one, or leave it out")
        prompts = [self._prompt(one, max_tokens) for one in (prompt if several else [prompt])]
        samplers = [Sampler(sampling, self.width, logprobs) for _ in prompts]
        for ids, sampler in zip(prompts, samplers, strict=True):
            sampler.see(ids.tolist())
        writers = [Writer(self._spelling(ids), self.end_token_ids, stops) for ids in prompts]
        if several:
            texts = self._together(prompts, max_tokens, samplers, writers)
        else:
            pieces = self._write(writers[0], prompts[0], max_tokens, samplers[0], lookup)
            if stream:
                return TextStream(pieces, writers[0].progress, len(prompts[0]), samplers[0].seed)
            texts = ["".join(pieces)]
        results: list[Any] = texts
        if logprobs is not None:
            results = [_generation(*one) for one in zip(texts, writers, prompts, samplers, strict=True)]
        return results if several else results[0]

    def _prompt(self, prompt: Any, max_tokens: int) -> Ids:
        ids = self._ids(prompt)
        if len(ids) + max_tokens > self.context:
            raise ValueError(
                f"the prompt has {len(ids)} tokens and max_tokens is {max_tokens}, together more than the context of "
                f"{self.context}: shorten the prompt, ask for fewer, or load the model with a larger context (it was "
                f"trained for {self._engine.file.graph.max_length})"
            )
        return ids

    def _spelling(self, ids: Ids) -> Spelling | None:
        return Spelling(self._tokenizer(), ids.tolist()) if self._engine.file.has_tokenizer else None

    def chat(self, messages: Sequence[Mapping[str, Any]], max_tokens: int = 256, **options: Any) -> Any:
        """The assistant's answer to ``messages``, a list of ``{"role": …, "content": …}``; else as :meth:`generate`.

        The checkpoint's own template makes a prompt of them, in jinja2's sandbox.

        Example:
            >>> model.chat([{"role": "user", "content": "What is 2 + 2?"}])  # doctest: +SKIP
            '2 + 2 equals 4.'

        Raises:
            ImportError: jinja2 is absent (``pip install 'pocketformer[generate]'``).
            ValueError: the checkpoint has no template, or it refuses the messages.
        """
        return self.generate(self.chat_ids(messages), max_tokens, **options)

    def chat_ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The prompt of :meth:`chat`, as tokens."""
        from .chat import check_messages, render

        listed, text = check_messages(messages), self._engine.file.text
        if not text.get("chat_template"):
            raise ValueError(f"{self._source[0]} has no chat template: use generate with the prompt that it expects")
        prompt = render(text["chat_template"], listed, text.get("special_tokens") or {})
        check_unicode("messages", prompt)
        ids: list[int] = self._tokenizer().encode(prompt, add_special_tokens=False).ids
        return ids

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a prompt, behind the beginning token where the model has one; a text that begins with it gets
        no second.

        Raises ValueError for a text without tokens.
        """
        check_unicode("prompt", text)
        tokenizer = self._tokenizer()
        ids: list[int] = tokenizer.encode(text).ids
        added: list[int] = tokenizer.encode("").ids
        if added and ids[: 2 * len(added)] == added * 2:
            ids = ids[len(added) :]
        if not ids:
            raise ValueError("prompt has no tokens, and this tokenizer adds none; give it at least a word")
        return ids

    def logits(self, ids: str | ArrayLike, *, last: bool = False) -> Outputs:
        """float32 [tokens, vocabulary]: what each token of ``ids``, a text or token ids, says of the one after it.

        ``last`` gives the row of the last alone, [vocabulary], and takes memory for no other.

        Raises ValueError for more tokens than the :attr:`context`.
        """
        tokens = self._ids(ids)
        if len(tokens) > self.context:
            raise ValueError(
                f"ids has {len(tokens)} tokens, more than the context of {self.context}: give fewer, or load the model "
                "with a larger context"
            )
        if not last:
            return score.all_logits(self._engine, tokens)
        row: Outputs = score.read(self._engine, tokens, self._cache(len(tokens)))[0]
        return row

    def perplexity(self, text: str | ArrayLike, *, stride: int | None = None) -> Perplexity:
        """How well every token of ``text``, or of token ids, but the first is predicted by those before it.

        A text longer than the :attr:`context` is read in windows of so many tokens, each ``stride`` tokens behind the
        one before (None: half of the context); a token counts in the first window that holds it. The token that begins
        texts begins every window.

        Example:
            >>> loss = model.perplexity("The capital of France is Paris.").negative_log_likelihood  # doctest: +SKIP

        Raises ValueError for fewer than two tokens, or a stride that leaves no token before those that count.
        """
        ids = self._ids(text)
        if len(ids) < 2:
            raise ValueError(f"text has {len(ids)} token; it must have at least 2, the second is the first to count")
        begin = self._tokenizer().encode("").ids if self._engine.file.has_tokenizer else []
        head = len(begin) if ids[: len(begin)].tolist() == begin else 0
        most = self.context - head - 1
        if most < 1:
            raise ValueError(f"the context is {self.context}; perplexity needs at least {head + 2}")
        chosen = min(max(self.context // 2, 1), most) if stride is None else stride
        if isinstance(chosen, bool) or not isinstance(chosen, int) or not 1 <= chosen <= most:
            raise ValueError(
                f"stride is {stride!r}; it must be an integer in 1…{most}, which leaves a token before those that count"
            )
        return score.perplexity(self._engine, ids, head, self.context, chosen)

    def _ids(self, given: Any) -> Ids:
        return np.array(self.tokenize(given), np.int32) if isinstance(given, str) else _token_ids(given, self.width)

    def _write(
        self, writer: Writer, ids: Ids, max_tokens: int, sampler: Sampler, lookup: int
    ) -> PyGenerator[str, None, None]:
        for token in self._tokens(ids, max_tokens, sampler, lookup, writer.progress):
            piece = writer.add(token, sampler.logprob)
            if piece:
                yield piece
            if writer.progress.finish_reason:
                return
        piece = writer.end()
        if piece:
            yield piece

    def _tokens(self, ids: Ids, max_tokens: int, sampler: Sampler, lookup: int, progress: Progress) -> Iterator[int]:
        """Reads ``ids`` and yields what follows."""
        cache = self._kept.take(ids) or self._cache()
        seen, held = ids.tolist(), len(ids)  # the first `held` tokens of `seen` are what the cache may keep
        guesses: list[int] = []
        try:
            out = score.read(self._engine, ids, cache)
            text = Lookup(seen) if lookup else None
            most = 1 + min(lookup, cache.chunk - 1)
            out = out if most == 1 else np.concatenate([out, np.empty((most - 1, self.width), np.float32)])
            tokens, rows = np.empty(most, np.int32), np.arange(most, dtype=np.int64)
            left = max_tokens
            while True:
                for row in range(len(guesses) + 1):
                    seen.append(sampler.choose(out[row]))
                    left -= 1
                    if text:
                        text.add(seen[-1])
                    yield seen[-1]
                    if row == len(guesses) or seen[-1] != guesses[row] or left == 0:
                        break
                    held += 1
                if left == 0:
                    return
                if guesses:
                    cache.truncate(held)
                guesses = text.guess(min(most, left) - 1) if text else []
                tokens[: 1 + len(guesses)] = [seen[-1], *guesses]
                used = slice(1 + len(guesses))
                self._engine.run([tokens[used]], rows=rows[used], caches=[cache], out=out[used])
                held += 1
                progress.steps += 1
        finally:
            if cache.length > held:
                cache.truncate(held)
            self._kept.give(seen, cache)

    def _together(
        self, prompts: list[Ids], max_tokens: int, samplers: list[Sampler], writers: list[Writer]
    ) -> list[str]:
        """The text after each prompt; every token of those that are not finished comes from one run."""
        caches = self._forked(prompts)
        logits = [score.read(self._engine, ids, cache)[0] for ids, cache in zip(prompts, caches, strict=True)]
        texts, active = [""] * len(prompts), list(range(len(prompts)))
        for count in range(1, max_tokens + 1):
            tokens = [samplers[i].choose(row) for i, row in zip(active, logits, strict=True)]
            for i, token in zip(active, tokens, strict=True):
                texts[i] += writers[i].add(token, samplers[i].logprob)
            going = [place for place, i in enumerate(active) if not writers[i].progress.finish_reason]
            active = [active[place] for place in going]
            if not active or count == max_tokens:
                break
            steps = [np.array([tokens[place]], np.int32) for place in going]
            rows = np.arange(len(active), dtype=np.int64)
            logits = list(self._engine.run(steps, rows=rows, caches=[caches[i] for i in active]))
        for i in active:
            texts[i] += writers[i].end()
        return texts

    def _forked(self, prompts: list[Ids]) -> list[StateCache]:
        """A cache for each prompt, which holds what all begin with: that is read once."""
        least = min(len(ids) for ids in prompts) - 1
        same = np.logical_and.reduce([ids[:least] == prompts[0][:least] for ids in prompts])
        shared = least if same.all() else int(same.argmin())
        if len(prompts) == 1 or shared == 0:
            return [self._cache() for _ in prompts]
        cache = self._kept.take(prompts[0][: shared + 1]) or self._cache()
        score.fill(self._engine, prompts[0][:shared], cache)
        caches = [cache.fork() for _ in prompts]
        self._kept.give(prompts[0][:shared].tolist(), cache)
        return caches

    def _cache(self, capacity: int | None = None) -> StateCache:
        most = self.context if capacity is None else capacity
        return self._engine.cache(most, min(CHUNK, most))

    def _tokenizer(self) -> Tokenizer:
        return self._reader.tokenizer("never")


class _Kept:
    """The keys and values of one text, for the next that begins like it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids: list[int] = []
        self._cache: StateCache | None = None

    def take(self, ids: Ids) -> StateCache | None:
        """The cache cut to what ``ids`` share with it, but for their last, whose logits are wanted; or None."""
        with self._lock:
            cache, self._cache = self._cache, None
        if cache is None:
            return None
        limit = min(len(ids) - 1, cache.length)
        differ = np.flatnonzero(ids[:limit] != np.array(self._ids[:limit], np.int32))
        try:
            cache.truncate(int(differ[0]) if len(differ) else limit)
        except ValueError:  # a window has dropped what would be needed
            return None
        return cache

    def give(self, ids: list[int], cache: StateCache) -> None:
        """``cache`` holds the first of ``ids``."""
        with self._lock:
            self._ids, self._cache = ids, cache


def _generation(text: str, writer: Writer, ids: Ids, sampler: Sampler) -> Generation:
    done = writer.progress
    return Generation(text, done.ids, done.logprobs, done.finish_reason or "length", len(ids), sampler.seed)


def _token_ids(ids: ArrayLike | Iterable[int], vocabulary: int) -> Ids:
    array = np.asarray(ids)
    if array.ndim != 1 or not array.size or array.dtype.kind not in "iu":
        raise ValueError(f"ids are {array.dtype} of shape {list(array.shape)}; pass at least one integer, in one list")
    if array.min() < 0 or array.max() >= vocabulary:
        raise ValueError(f"ids hold {array.min()}…{array.max()}; they must lie in 0…{vocabulary - 1}")
    return array.astype(np.int32)
