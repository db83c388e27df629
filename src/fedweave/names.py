# SPDX-License-Identifier: Apache-2.0
"""Things chosen by name and written as a call: ``"dirichlet(alpha=0.3)"``, ``"fedavg(reduce=krum(f=2))"``.

Only literals and such calls are read, from the syntax tree: no expression is ever evaluated.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from fedweave.errors import UnknownName, UsageError

T = TypeVar("T")


def normalise(name: str) -> str:
    """``"Heart_Disease"`` and ``"heart-disease"`` are one name."""
    return name.strip().lower().replace("_", "-")


@dataclasses.dataclass(frozen=True)
class Named:
    """A value that is itself chosen by name, as in ``reduce=krum(f=2)``; inside, words are joined by underscores."""

    name: str
    values: dict[str, Any]


Parts = Mapping[str, tuple[str, Mapping[str, Callable[..., Any]]]]
"""For parameters whose values are chosen by name: parameter -> (kind, registry)."""


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Split ``"name(key=value, ...)"`` into the normalised name and its keyword arguments.

    Raises:
        UsageError: if the text is not a name or a call with keyword arguments, each a literal or again a name or a call.
    """
    head, bracket, tail = text.strip().partition("(")
    if not bracket:
        return normalise(head), {}
    problem = UsageError(f"Cannot read {text!r}: write it like name(key=1, other='text'), with plain values only.")
    try:
        call = ast.parse(f"f({tail}", mode="eval").body
    except SyntaxError:
        raise problem from None
    if not isinstance(call, ast.Call) or not head.strip():
        raise problem
    try:
        return normalise(head), _arguments(call)
    except ValueError:
        raise problem from None


def _arguments(call: ast.Call) -> dict[str, Any]:
    if call.args or any(keyword.arg is None for keyword in call.keywords):
        raise ValueError
    return {str(keyword.arg): _value(keyword.value) for keyword in call.keywords}


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return Named(normalise(node.id), {})
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return Named(normalise(node.func.id), _arguments(node))
    if isinstance(node, ast.List):
        return [_value(item) for item in node.elts]
    return ast.literal_eval(node)


def build(kind: str, registry: Mapping[str, Callable[..., T]], text: str, parts: Parts | None = None) -> T:
    """Look the name up in ``registry`` and call what is found there.

    Args:
        parts: the parameters whose values are chosen by name themselves.

    Raises:
        UnknownName: the name is not in the registry.
        UsageError: an argument is unknown or missing, or its value is refused.
    """
    name, values = parse(text)
    return _build(kind, registry, name, values, parts or {})


def _build(kind: str, registry: Mapping[str, Callable[..., T]], name: str, values: Mapping[str, Any], parts: Parts) -> T:
    known = {normalise(key): key for key in registry}
    if name not in known:
        raise UnknownName(kind, name, registry)
    make = registry[known[name]]
    parameters = inspect.signature(make).parameters
    if unknown := [key for key in values if key not in parameters]:
        raise UnknownName(f"parameter of {name}", unknown[0], parameters)
    needed = [key for key, p in parameters.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if missing := [key for key in needed if key not in values]:
        raise UsageError(f"The {kind} {name!r} needs {', '.join(missing)}: write {name}({missing[0]}=...).")
    given: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, str) and key in parts:
            value = Named(*parse(value))
        given[key] = _made(name, key, value, parts)
    return make(**given)


def _made(name: str, key: str, value: Any, parts: Parts) -> Any:
    """A parameter's value, with all that is named in it built."""
    if isinstance(value, list):
        return [_made(name, key, item, parts) for item in value]
    if not isinstance(value, Named):
        return value
    if key not in parts:
        raise UsageError(f"{key} of {name} is {value.name!r}; give a plain value, and a text in quotes.")
    return _build(*parts[key], value.name, value.values, parts)


def spell(name: str, value: Any, parts: Parts | None = None) -> str:
    """The text that ``build`` turns back into ``value``, a dataclass; fields at their default, and those that are not given to
    its constructor, are left out."""
    written = []
    for field in dataclasses.fields(value):
        if not field.init:
            continue
        given = getattr(value, field.name)
        default = field.default
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if given != default:
            written.append(f"{field.name}={_text(field.name, given, parts or {})}")
    return f"{name}({', '.join(written)})" if written else name


def _text(key: str, value: Any, parts: Parts) -> str:
    if isinstance(value, (list, tuple)) and key in parts:
        return f"[{', '.join(_text(key, item, parts) for item in value)}]"
    for inner, kind in parts.get(key, ("", {}))[1].items():
        if type(value) is kind:
            return spell(inner.replace("-", "_"), value, parts)
    return repr(value)


def chosen(kind: str, registry: Mapping[str, type[T]], base: type[Any], choice: Any, parts: Parts | None = None) -> T:
    """The value itself, or the one named: one of the registry's, or one's own as ``"package.module:Class(field=1)"``.

    Raises:
        UnknownName: there is none of that name.
        UsageError: it is of another type, or an argument is unknown or out of its range.
    """
    if isinstance(choice, base):
        return cast(T, choice)
    article = "an" if kind[0] in "aeiou" else "a"
    if not isinstance(choice, str):
        raise UsageError(f"{kind} is {choice!r}; give {article} {base.__name__} or a name such as {next(iter(registry))!r}.")
    head, _, _ = choice.partition("(")
    if ":" not in head:
        return build(kind, registry, choice, parts)
    found = imported(kind, head)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UsageError(f"{head!r} is not a fedweave {base.__name__}; name a class that is one.")
    return cast(T, build(kind, {head: found}, choice, parts))


def spelled(registry: Mapping[str, type], value: object, parts: Parts | None = None) -> str:
    """The text that ``chosen`` turns back into a dataclass value."""
    for name, kind in registry.items():
        if type(value) is kind:
            return spell(name, value, parts)
    return spell(address(type(value)) or type(value).__name__, value, parts)


def imported(kind: str, path: str) -> Any:
    """What ``"package.module:name"`` stands for, imported from what is installed on this machine.

    Raises:
        UsageError: there is no such module or name.
    """
    module, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"The {kind} {path!r} cannot be imported: {error}. Is its folder on PYTHONPATH?") from None
    return found


def address(thing: Any) -> str | None:
    """The text that ``imported`` turns back into a function or class; None for lambdas, inner functions and instances."""
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    return f"{module}:{name}" if module and name and "<" not in name else None
