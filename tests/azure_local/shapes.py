"""Combinators that validate JSON bodies and report every problem, unknown keys included."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Shape = Callable[[Any, str], Iterable[str]]  # (value, its path) → problems


def text(pattern: str = r"(?s).*") -> Shape:
    def check(value: Any, where: str) -> Iterable[str]:
        if not isinstance(value, str):
            yield f"{where} must be a string, not {value!r}"
        elif not re.fullmatch(pattern, value):
            yield f"{where} has an illegal value {value!r}"

    return check


def one_of(*values: str) -> Shape:
    def check(value: Any, where: str) -> Iterable[str]:
        if value not in values:
            yield f"{where} must be one of {', '.join(values)}, not {value!r}"

    return check


def whole(minimum: int | None = None, maximum: int | None = None) -> Shape:
    def check(value: Any, where: str) -> Iterable[str]:
        if not isinstance(value, int) or isinstance(value, bool):
            yield f"{where} must be a whole number, not {value!r}"
        elif (minimum is not None and value < minimum) or (maximum is not None and value > maximum):
            yield f"{where} is {value}, outside {minimum}..{maximum}"

    return check


def number(value: Any, where: str) -> Iterable[str]:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        yield f"{where} must be a number, not {value!r}"


def boolean(value: Any, where: str) -> Iterable[str]:
    if not isinstance(value, bool):
        yield f"{where} must be true or false, not {value!r}"


def anything(value: Any, where: str) -> Iterable[str]:
    return ()


def duration(value: Any, where: str) -> Iterable[str]:
    """An ISO 8601 duration, such as PT2H30M."""
    return text(r"P(?=.)(\d+D)?(T(?=.)(\d+H)?(\d+M)?(\d+(\.\d+)?S)?)?")(value, where)


def list_of(shape: Shape) -> Shape:
    def check(value: Any, where: str) -> Iterable[str]:
        if not isinstance(value, list):
            yield f"{where} must be a list, not {value!r}"
            return
        for position, item in enumerate(value):
            yield from shape(item, f"{where}[{position}]")

    return check


def mapping_of(shape: Shape, names: str = r".+") -> Shape:
    def check(value: Any, where: str) -> Iterable[str]:
        if not isinstance(value, dict):
            yield f"{where} must be an object, not {value!r}"
            return
        for name, item in value.items():
            if not re.fullmatch(names, name):
                yield f"{where} has the illegal name {name!r}"
            yield from shape(item, f"{where}.{name}")

    return check


def record(required: str = "", /, **fields: Shape) -> Shape:
    """An object with these fields; `required` names the mandatory ones. null counts as absent."""

    def check(value: Any, where: str) -> Iterable[str]:
        if not isinstance(value, dict):
            yield f"{where} must be an object, not {value!r}"
            return
        for name in required.split():
            if value.get(name) is None:
                yield f"{where}.{name} is missing"
        for name, item in value.items():
            if name not in fields:
                yield f"{where}.{name} is unknown"
            elif item is not None:
                yield from fields[name](item, f"{where}.{name}")

    return check


def tagged(tag: str, shapes: Mapping[str, Shape]) -> Shape:
    """An object whose field `tag` selects one of the shapes (which need not list the field itself)."""

    def check(value: Any, where: str) -> Iterable[str]:
        if not isinstance(value, dict):
            yield f"{where} must be an object, not {value!r}"
        elif value.get(tag) not in shapes:
            yield f"{where}.{tag} must be one of {', '.join(shapes)}, not {value.get(tag)!r}"
        else:
            yield from shapes[value[tag]]({name: item for name, item in value.items() if name != tag}, where)

    return check
