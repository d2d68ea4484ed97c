"""Evaluates a Modelfile's Go template as Ollama would.  Strict: what is unknown is an error.

Source: https://github.com/ollama/ollama/blob/main/template/template.go (`Execute`, `collate`) and
server/routes.go (the Modelfile's SYSTEM goes in front of messages that begin with another role).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from fastsft.export.go_syntax import (
    Call,
    Constant,
    Expression,
    If,
    Node,
    Output,
    Path,
    Range,
    Set,
    Text,
    fault,
    parse,
)


@dataclass(frozen=True)
class Message:
    """One message as a template sees it: `.Role` and `.Content`."""

    role: str
    content: str


Value = str | int | bool | Message | list[Message]
Scope = dict[str, Value]

_FIELDS: Mapping[str, Callable[[Message], str]] = {
    "Role": lambda message: message.role,
    "Content": lambda message: message.content,
}


def render(
    template: str, messages: Sequence[Mapping[str, str]], *, system: str | None = None
) -> str:
    """The prompt that Ollama would make of a chat: `role` and `content` of each message.

    `system` is the Modelfile's SYSTEM.  No tools, no images.  A template that does not name
    `.Messages` gets the one user message as `.Prompt`.

    Raises: ExportError for a template outside the subset.
    """
    chat = [Message(message["role"], message["content"]) for message in messages]
    if system and chat and chat[0].role != "system":
        chat.insert(0, Message("system", system))
    joined, collated = collate(chat)
    nodes = parse(template)
    root: dict[str, Value] = {"System": joined, "Response": ""}
    if _reads(nodes, "Messages"):
        root |= {"Messages": collated, "Tools": []}
    else:
        root["Prompt"] = _only_user_message(collated)
    return _Evaluation(root).run(nodes)


def collate(chat: Sequence[Message]) -> tuple[str, list[Message]]:
    """All system texts in one, and the messages with neighbours of one role joined.

    Both by a blank line.  System messages stay among the messages too.
    """
    merged: list[Message] = []
    for message in chat:
        if merged and merged[-1].role == message.role != "tool":
            before = merged.pop()
            message = Message(message.role, before.content + "\n\n" + message.content)
        merged.append(message)
    return "\n\n".join(m.content for m in chat if m.role == "system"), merged


def _only_user_message(chat: Sequence[Message]) -> str:
    asked = [message for message in chat if message.role != "system"]
    if len(asked) != 1 or asked[0].role != "user":
        raise fault("names no .Messages, so it can render one user message only")
    return asked[0].content


def _reads(nodes: Sequence[Node], field: str) -> bool:
    """Whether any action names a field."""
    return any(_names(node, field) for node in nodes)


def _names(node: Node | Expression | None, field: str) -> bool:
    match node:
        case Path(_, fields):
            return field in fields
        case Call(_, arguments):
            return any(_names(argument, field) for argument in arguments)
        case Output(value) | Set(_, value, _):
            return _names(value, field)
        case If(branches):
            return any(_names(test, field) or _reads(body, field) for test, body in branches)
        case Range(_, _, over, body):
            return _names(over, field) or _reads(body, field)
        case _:
            return False


class _Evaluation:
    """One run of a template."""

    def __init__(self, root: Mapping[str, Value]) -> None:
        self._root = root
        self._written: list[str] = []

    def run(self, nodes: Sequence[Node]) -> str:
        """The text of the whole template."""
        self._body(nodes, None, [{}])
        return "".join(self._written)

    def _body(self, nodes: Sequence[Node], dot: Message | None, scopes: list[Scope]) -> None:
        """`scopes` has the variables, innermost last; `dot` is None for the root."""
        for node in nodes:
            match node:
                case Text(text):
                    self._written.append(text)
                case Output(value):
                    self._written.append(_printed(self._value(value, dot, scopes)))
                case Set(name, value, is_new):
                    _holder(scopes, name, is_new)[name] = self._value(value, dot, scopes)
                case If(branches):
                    self._if(branches, dot, scopes)
                case Range():
                    self._range(node, dot, scopes)

    def _if(
        self,
        branches: Sequence[tuple[Expression | None, Sequence[Node]]],
        dot: Message | None,
        scopes: list[Scope],
    ) -> None:
        for condition, body in branches:
            if condition is None or _is_true(self._value(condition, dot, scopes)):
                self._body(body, dot, [*scopes, {}])
                return

    def _range(self, node: Range, dot: Message | None, scopes: list[Scope]) -> None:
        items = self._value(node.over, dot, scopes)
        if not isinstance(items, list):
            raise fault("ranges over what is no list")
        for index, item in enumerate(items):
            variables: Scope = {node.item: item} if node.item else {}
            variables |= {node.index: index} if node.index else {}
            self._body(node.body, item, [*scopes, variables])

    def _value(self, expression: Expression, dot: Message | None, scopes: list[Scope]) -> Value:
        match expression:
            case Constant(value):
                return value
            case Path(root, fields):
                return self._path(root, fields, dot, scopes)
            case Call(name, arguments):
                later = [partial(self._value, a, dot, scopes) for a in arguments]
                return self._call(name, later)

    def _path(
        self, root: str, fields: Sequence[str], dot: Message | None, scopes: list[Scope]
    ) -> Value:
        if root == "$" or (root == "." and dot is None):
            if not fields or fields[0] not in self._root:
                raise fault(f"reads {root}{'.'.join(fields)}, which Ollama does not give here")
            value, fields = self._root[fields[0]], fields[1:]
        elif root == "." and dot is not None:
            value = dot
        else:
            value = _holder(scopes, root, is_new=False)[root]
        for field in fields:
            if not isinstance(value, Message) or field not in _FIELDS:
                raise fault(f"reads .{field} of what has none")
            value = _FIELDS[field](value)
        return value

    def _call(self, name: str, arguments: Sequence[Callable[[], Value]]) -> Value:
        if name in ("and", "or") and arguments:
            value = arguments[0]()
            for argument in arguments[1:]:  # the first that decides; the rest is not evaluated
                if _is_true(value) == (name == "or"):
                    break
                value = argument()
            return value
        return _function(name, [argument() for argument in arguments])


def _function(name: str, values: Sequence[Value]) -> Value:
    match name, values:
        case "not", [value]:
            return not _is_true(value)
        case "len", [str() | list() as value]:
            return len(value.encode()) if isinstance(value, str) else len(value)
        case "index", [list() as value, int() as at] if 0 <= at < len(value):
            return value[at]
        case "slice", [list() as value, int() as at] if 0 <= at <= len(value):
            return value[at:]
        case "slice", [list() as value, int() as at, int() as end] if 0 <= at <= end <= len(value):
            return value[at:end]
        case "eq", [first, second, *more]:
            return any(_equal(first, other) for other in (second, *more))
        case "ne", [first, second]:
            return not _equal(first, second)
        case (("lt" | "le" | "gt" | "ge"), [int() as first, int() as second]):
            order = {"lt": first < second, "le": first <= second, "gt": first > second}
            return order.get(name, first >= second)
        case _:
            raise fault(f"calls {name} with what it does not take")


def _equal(first: Value, second: Value) -> bool:
    if type(first) is not type(second) or isinstance(first, list | Message):
        raise fault(f"compares {type(first).__name__} with {type(second).__name__}")
    return first == second


def _is_true(value: Value) -> bool:
    return isinstance(value, Message) or bool(value)


def _printed(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int):
        return str(value)
    raise fault("writes out what is no text")


def _holder(scopes: list[Scope], name: str, is_new: bool) -> Scope:
    """The scope that has a variable; the innermost for a new one."""
    if is_new:
        return scopes[-1]
    for scope in reversed(scopes):
        if name in scope:
            return scope
    raise fault(f"uses {name}, which it has not set")
