"""Parses the part of Go's text/template that Modelfiles are written in.  Evaluates nothing.

Anything else (pipes, `with`, `define`, method calls, floats) is refused, never skipped.
Source: https://pkg.go.dev/text/template (actions, variables, functions, trim markers).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from fastsft.errors import ExportError

FUNCTIONS = ("and", "or", "not", "eq", "ne", "lt", "le", "gt", "ge", "len", "index", "slice")
SPACE = " \t\r\n"
"""What a trim marker removes.  Source: text/template/parse/lex.go, spaceChars."""

_TOKEN = re.compile(
    r"""(?P<string>"(?:[^"\\\n]|\\.)*")|(?P<number>-?\d+)|(?P<variable>\$\w*(?:\.\w+)*)
    |(?P<field>(?:\.[A-Za-z_]\w*)+)|(?P<dot>\.)|(?P<word>[A-Za-z_]\w*)|(?P<mark>:=|[=,()])""",
    re.VERBOSE,
)
_END = re.compile(r"\s*?(?P<trim>\s-)?\}\}")
_ESCAPE = re.compile(r"\\(?:(?P<plain>[ntr\\\"])|u(?P<u4>[0-9a-fA-F]{4})|U(?P<u8>[0-9a-fA-F]{8}))")
_PLAIN = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"'}


@dataclass(frozen=True)
class Constant:
    """A string, a number, true or false."""

    value: str | int | bool


@dataclass(frozen=True)
class Path:
    """Fields of a variable, of the root (`$`) or of the current value (`.`)."""

    root: str
    fields: tuple[str, ...]


@dataclass(frozen=True)
class Call:
    """A function and its arguments."""

    name: str
    arguments: tuple[Expression, ...]


Expression = Constant | Path | Call


@dataclass(frozen=True)
class Text:
    """Text as it stands."""

    text: str


@dataclass(frozen=True)
class Output:
    """A value that is written."""

    value: Expression


@dataclass(frozen=True)
class Set:
    """A variable that gets a value; `is_new` declares it (`:=`)."""

    name: str
    value: Expression
    is_new: bool


@dataclass(frozen=True)
class If:
    """The first body whose condition is true; the last may have none (`else`)."""

    branches: tuple[tuple[Expression | None, tuple[Node, ...]], ...]


@dataclass(frozen=True)
class Range:
    """A body for each item of a list; the names may be absent."""

    index: str | None
    item: str | None
    over: Expression
    body: tuple[Node, ...]


Node = Text | Output | Set | If | Range


def fault(what: str) -> ExportError:
    """The error of everything that is wrong with a template."""
    return ExportError(
        f"the Go template {what}",
        where="TEMPLATE",
        hint="write the Modelfile again with `fastsft export RUN --to gguf --overwrite`",
    )


@lru_cache(maxsize=4)
def parse(template: str) -> tuple[Node, ...]:
    """The template's nodes.

    Raises: ExportError for whatever is not in the subset.
    """
    parser = _Parser(list(_pieces(template)))
    nodes, ended_by = parser.body()
    if ended_by:
        raise fault(f"has {ended_by!r} without a beginning")
    return nodes


Token = tuple[str, str]


def _pieces(template: str) -> Iterator[Text | list[Token]]:
    """Text and the tokens of each action, in turn; trim markers are applied."""
    position, trims = 0, False
    while (start := template.find("{{", position)) >= 0:
        text, position = template[position:start], start + 2
        text = text.lstrip(SPACE) if trims else text
        if re.match(r"-\s", template[position : position + 2]):
            text, position = text.rstrip(SPACE), position + 1
        yield Text(text)
        tokens, position, trims = _action(template, position)
        yield tokens
    rest = template[position:]
    yield Text(rest.lstrip(SPACE) if trims else rest)


def _action(template: str, position: int) -> tuple[list[Token], int, bool]:
    tokens: list[Token] = []
    while (end := _END.match(template, position)) is None:
        while template[position : position + 1].isspace():
            position += 1
        token = _TOKEN.match(template, position)
        if token is None:
            raise fault(f"has something unknown: {template[position : position + 40]!r}")
        tokens.append((str(token.lastgroup), token[0]))
        position = token.end()
    return tokens, end.end(), end["trim"] is not None


class _Parser:
    """Reads nodes off the pieces, front to back."""

    def __init__(self, pieces: list[Text | list[Token]]) -> None:
        self._pieces = iter(pieces)
        self._tokens: list[Token] = []

    def body(self) -> tuple[tuple[Node, ...], str]:
        """Nodes up to `else` or `end` (left in `_tokens`), or up to the template's end."""
        nodes: list[Node] = []
        for piece in self._pieces:
            if isinstance(piece, Text):
                nodes += [piece] if piece.text else []
                continue
            self._tokens = piece
            word = piece[0][1] if piece else ""
            if word in ("else", "end"):
                self._take()
                return tuple(nodes), word
            nodes.append(self._node(word))
        return tuple(nodes), ""

    def _node(self, word: str) -> Node:
        if word == "if":
            self._take()
            return self._if()
        if word == "range":
            self._take()
            return self._range()
        names = self._names()
        value = self._whole_expression()
        if not names:
            return Output(value)
        if len(names[0]) != 1:
            raise fault("sets two variables outside `range`")
        return Set(names[0][0], value, names[1] == ":=")

    def _if(self) -> If:
        branches: list[tuple[Expression | None, tuple[Node, ...]]] = []
        condition: Expression | None = self._whole_expression()
        while True:
            body, ended_by = self.body()
            branches.append((condition, body))
            if ended_by == "end":
                return If(tuple(branches))
            if not ended_by or condition is None:
                raise fault("has an `if` without its `end`")
            condition = None
            if self._tokens and self._take()[1] == "if":
                condition = self._whole_expression()

    def _range(self) -> Range:
        names, mark = self._names() or ((), ":=")
        if len(names) > 2 or mark != ":=":
            raise fault("has a `range` with other than one or two new variables")
        over = self._whole_expression()
        body, ended_by = self.body()
        if ended_by != "end":
            raise fault("has a `range` without its `end`, or with an `else`")
        index = names[0] if len(names) == 2 else None
        return Range(index, names[-1] if names else None, over, body)

    def _names(self) -> tuple[tuple[str, ...], str] | None:
        """The variables before `:=` or `=`, where there is one."""
        at = next((i for i, token in enumerate(self._tokens) if token[1] in (":=", "=")), None)
        if at is None:
            return None
        before, mark = self._tokens[:at], self._tokens[at][1]
        del self._tokens[: at + 1]
        names = tuple(text for kind, text in before if kind == "variable")
        commas = [text for _, text in before[1::2]]
        if len(before) != 2 * len(names) - 1 or any(text != "," for text in commas):
            raise fault(f"sets {''.join(text for _, text in before)!r}")
        return names, mark

    def _whole_expression(self) -> Expression:
        value = self._command()
        if self._tokens:
            raise fault(f"goes on with {self._tokens[0][1]!r} after an expression")
        return value

    def _command(self) -> Expression:
        if self._tokens and self._tokens[0][0] == "word" and self._tokens[0][1] in FUNCTIONS:
            name = self._take()[1]
            arguments = []
            while self._tokens and self._tokens[0][1] != ")":
                arguments.append(self._operand())
            return Call(name, tuple(arguments))
        return self._operand()

    def _operand(self) -> Expression:
        kind, text = self._take()
        if kind == "string":
            return Constant(_unquoted(text))
        if kind == "number":
            return Constant(int(text))
        if kind in ("field", "dot"):
            return Path(".", tuple(text.split(".")[1:]) if kind == "field" else ())
        if kind == "variable":
            root, *fields = text.split(".")
            return Path(root, tuple(fields))
        if text in ("true", "false"):
            return Constant(text == "true")
        if text == "(":
            value = self._command()
            if self._take()[1] != ")":
                raise fault("has a parenthesis that is not closed")
            return value
        raise fault(f"uses {text!r}, which is not in the subset")

    def _take(self) -> Token:
        if not self._tokens:
            raise fault("has an action that ends too early")
        return self._tokens.pop(0)


def _unquoted(literal: str) -> str:
    text = literal[1:-1]
    if re.search(r"\\(?![ntr\\\"uU])", re.sub(r"\\\\", "", text)):
        raise fault(f"has an escape in {literal} that is not in the subset")
    return _ESCAPE.sub(
        lambda found: (
            _PLAIN[found["plain"]] if found["plain"] else chr(int(found["u4"] or found["u8"], 16))
        ),
        text,
    )
