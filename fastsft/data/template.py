"""Renders a chat template as transformers would, in a sandbox.  No files, no tokenizer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.environment import Environment
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fastsft.errors import BadRow, DataError

MAX_OUTPUT_CHARS = 64 * 1024 * 1024
MAX_RENDER_S = 20.0
MAX_REPEAT = 1_000_000
LLAMA_DATE = "%d %b %Y"
"""How Llama 3's templates write `date_string`.  Source: meta-llama/Llama-3.2-3B-Instruct."""


class RefusedByTemplate(TemplateError):
    """The template itself called `raise_exception`."""


class ChatTemplate:
    """A compiled chat template and the special tokens that it may name."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], *, where: str) -> None:
        self.source = source
        self.where = where
        self._special_tokens = dict(special_tokens)
        try:
            self._compiled = _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise DataError(
                f"the chat template does not compile: {error.message} (line {error.lineno})",
                where=where,
                hint="restore the template of the model's original repository",
            ) from error

    @property
    def reads_clock(self) -> bool:
        """Whether the text may depend on today's date."""
        return "strftime_now" in self.source

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = False,
        where: str | None = None,
        tools: Sequence[Mapping[str, object]] | None = None,
        **pinned: object,
    ) -> str:
        """The text that transformers' `apply_chat_template(tokenize=False)` gives.

        Source: transformers 5.17 utils/chat_template_utils.py: the environment's settings,
        its globals and filters, `documents` None, special tokens as variables.

        Raises `DataError` for whatever the template raises; `BadRow` where the row may be to
        blame, with its place.
        """
        variables = {
            **self._special_tokens,
            "messages": [dict(message) for message in messages],
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **pinned,
        }
        try:
            return self._bounded(variables)
        except RefusedByTemplate as error:
            raise BadRow(
                f"the chat template refuses this conversation: {error.message}",
                reason="template_refused",
                where=where or self.where,
                hint="change the row to what the template accepts",
            ) from error
        except SecurityError as error:
            raise DataError(
                f"the chat template tried something that the sandbox forbids: {error.message}",
                where=self.where,
                hint="do not trust this model folder; take the original repository's template",
            ) from error
        except Exception as error:  # a template can raise whatever Python can
            raise BadRow(
                f"the chat template failed: {type(error).__name__}: {error}",
                reason="template_refused",
                where=where or self.where,
                hint="check the row, then the template, against the original repository",
            ) from error

    def _bounded(self, variables: Mapping[str, object]) -> str:
        """Bounds the output's size and, between two pieces of output, the time."""
        deadline = time.monotonic() + MAX_RENDER_S
        blocks: list[str] = []
        size = 0
        for block in self._compiled.generate(variables):
            blocks.append(block)
            size += len(block)
            if size > MAX_OUTPUT_CHARS or time.monotonic() > deadline:
                raise SecurityError(f"output of {size} characters or more than {MAX_RENDER_S} s")
        return "".join(blocks)


def pin_date(day: str | None) -> dict[str, Any]:
    """Template variables that stop the clock.

    An ISO date (2024-07-26) is written in the form that each template asks for; any other
    text stands as it is.
    """
    if day is None:
        return {}
    try:
        moment = date.fromisoformat(day)
    except ValueError:
        return {"date_string": day, "strftime_now": lambda _format: day}
    return {"date_string": moment.strftime(LLAMA_DATE), "strftime_now": moment.strftime}


class _Sandbox(ImmutableSandboxedEnvironment):
    """Also refuses `"a" * 10**9` and `9**9**9`, which no piece of output would bound."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or any(_is_huge(x, y) for x, y in ((left, right), (right, left))):
            raise SecurityError(f"the operator {operator} with {left!r:.40} and {right!r:.40}")
        return super().call_binop(context, operator, left, right)


def _is_huge(repeated: object, times: object) -> bool:
    if not isinstance(repeated, str | list | tuple) or not isinstance(times, int):
        return False
    return len(repeated) * times > MAX_REPEAT


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks text for training and changes none of it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_same")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _same(self, caller: Macro) -> str:
        return str(caller())


def _environment() -> Environment:
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    globals_: dict[str, Callable[..., object]] = {
        "raise_exception": _raise,
        "strftime_now": lambda form: datetime.now().strftime(form),
    }
    environment.globals.update(globals_)
    return environment


def _raise(message: str) -> NoReturn:
    raise RefusedByTemplate(message)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: jinja's own filter escapes HTML, transformers' does not."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
