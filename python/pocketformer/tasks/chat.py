"""A conversation as the text that a model was trained on, by the checkpoint's own template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

MOST_CHARACTERS = 1 << 24
"""Of a rendered conversation; no context is as long."""


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """Raises ValueError unless ``messages`` is a list of ``{"role": …, "content": …}``, both texts, and not empty."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError(f"messages is {messages!r:.60}; it must be a list of {{'role': …, 'content': …}}")
    for i, message in enumerate(messages):
        texts = isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in ("role", "content"))
        if not texts:
            raise ValueError(f"messages[{i}] is {message!r:.60}; it must have 'role' and 'content', both texts")
    return [dict(message) for message in messages]


def render(template: str, messages: Sequence[Mapping[str, Any]], special: Mapping[str, str], **values: Any) -> str:
    """``template`` filled in as transformers does: with ``messages``, the ``special`` tokens by name, and ``values``.

    It runs in jinja2's sandbox: it sees what is passed and nothing else.

    Raises:
        ImportError: jinja2 is absent (``pip install 'pocketformer[generate]'``).
        ValueError: the template is damaged, refuses these messages, or reaches for what it may not.
    """
    import_jinja()
    from jinja2 import TemplateError

    try:
        text = _compiled(template).render(messages=messages, **special, add_generation_prompt=True, **values)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        raise ValueError(f"the chat template refuses these messages ({type(error).__name__}: {error})") from None
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"the chat template makes {len(text)} characters of these messages; at most {MOST_CHARACTERS}")
    return str(text)


def import_jinja() -> None:
    try:
        import jinja2
    except ImportError:
        raise ImportError("chat needs jinja2; pip install 'pocketformer[generate]'") from None
    version = tuple(int(part) for part in jinja2.__version__.split(".")[:3] if part.isdecimal())
    if version < (3, 1, 6):  # whose sandbox has holes
        raise ImportError(
            f"chat needs jinja2 3.1.6, this is {jinja2.__version__}; pip install 'pocketformer[generate]'"
        )


@lru_cache(8)
def _compiled(template: str) -> Any:
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Marks what an assistant said, for training; here its content stands for itself."""

        tags = {"generation"}  # noqa: RUF012  # jinja2 declares it so

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)
