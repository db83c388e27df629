# SPDX-License-Identifier: Apache-2.0
"""Things chosen by name and written as a call: ``"dirichlet(alpha=0.3)"``, ``"fedsgd(server_lr=0.1)"``.

Only literals are read, by ``ast.literal_eval``: no expression is ever evaluated.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fedweave.errors import UnknownName, UsageError

T = TypeVar("T")


def normalise(name: str) -> str:
    """``"Heart_Disease"`` and ``"heart-disease"`` are one name."""
    return name.strip().lower().replace("_", "-")


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Split ``"name(key=value, ...)"`` into the normalised name and its keyword arguments.

    Raises:
        UsageError: if the text is not a name or a call with literal keyword arguments.
    """
    head, bracket, tail = text.strip().partition("(")
    if not bracket:
        return normalise(head), {}
    problem = UsageError(f"Cannot read {text!r}: write it like name(key=1, other='text'), with plain values only.")
    try:
        call = ast.parse(f"f({tail}", mode="eval").body
    except SyntaxError:
        raise problem from None
    if not isinstance(call, ast.Call) or call.args or not head.strip():
        raise problem
    values: dict[str, Any] = {}
    for keyword in call.keywords:
        try:
            if keyword.arg is None:
                raise ValueError
            values[keyword.arg] = ast.literal_eval(keyword.value)
        except ValueError:
            raise problem from None
    return normalise(head), values


def build(kind: str, registry: Mapping[str, Callable[..., T]], text: str) -> T:
    """Look the name up in ``registry`` and call what is found there.

    Raises:
        UnknownName: the name is not in the registry.
        UsageError: an argument is unknown or missing, or its value is refused.
    """
    name, values = parse(text)
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
    return make(**values)


def spell(name: str, value: Any) -> str:
    """The text that ``build`` turns back into ``value``, a dataclass; fields at their default are left out."""
    parts = []
    for field in dataclasses.fields(value):
        given = getattr(value, field.name)
        default = field.default
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if given != default:
            parts.append(f"{field.name}={given!r}")
    return f"{name}({', '.join(parts)})" if parts else name


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
