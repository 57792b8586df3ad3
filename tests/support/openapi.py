"""Validates request bodies against an OpenAPI description (Swagger 2.0); reports every problem, unknown keys included.

`allOf` and `$ref` are followed, across files too; a discriminator selects the definition that its value names. Open
enums (`modelAsString`: a newer service may accept more) are treated as closed, as what we send must be described, and
are compared case-insensitively, as Azure does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

DURATION = r"P(?=.)(\d+D)?(T(?=.)(\d+H)?(\d+M)?(\d+(\.\d+)?S)?)?"
TYPES = {"string": str, "boolean": bool, "integer": int, "number": (int, float), "array": list, "object": dict}


class Documents:
    """The files of a description, each read once."""

    def __init__(self) -> None:
        self.read: dict[Path, dict[str, Any]] = {}

    def at(self, path: Path) -> dict[str, Any]:
        if path not in self.read:
            self.read[path] = json.loads(path.read_bytes())
        return self.read[path]


@dataclass
class Shape:
    """A schema with everything it inherits."""

    types: list[str] = field(default_factory=list)
    properties: dict[str, tuple[Path, dict[str, Any]]] = field(default_factory=dict)
    required: list[str] = field(default_factory=list)
    others: tuple[Path, Any] | None = None  # the schema of additional properties
    discriminator: str = ""


class Description:
    """The operations of some files; `complaints` lists the problems of a request."""

    def __init__(self, *files: Path) -> None:
        self.documents = Documents()
        self.files = [file.resolve() for file in files]

    @cached_property
    def bodies(self) -> list[tuple[str, re.Pattern[str], Path, dict[str, Any] | None]]:
        """Method, path and body schema (None: no body) of each operation."""
        found = []
        for file in self.files:
            for path, operations in self.documents.at(file)["paths"].items():
                pattern = re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path)), re.IGNORECASE)
                for method, operation in operations.items():
                    parameters = [self._target(file, one) for one in operation.get("parameters", [])]
                    schemas = [(at, one["schema"]) for at, one in parameters if one.get("in") == "body"]
                    found.append((method.upper(), pattern, *(schemas[0] if schemas else (file, None))))
        return found

    def complaints(self, method: str, path: str, body: Any) -> list[str]:
        """All problems of a request; empty if it is valid."""
        for known, pattern, file, schema in self.bodies:
            if known == method and pattern.fullmatch(path):
                if schema is None:
                    return [] if body is None else ["body: there is none in the description"]
                return list(self._check(file, schema, body, "body"))
        return [f"{method} {path}: is not in the description"]

    # --- Schemas ------------------------------------------------------------------------------------------------------

    def _target(self, file: Path, schema: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
        """The target of a `$ref` and its file; the keys beside the `$ref` count too."""
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        while "$ref" in schema:
            place, _, pointer = schema["$ref"].partition("#")
            file = (file.parent / place).resolve() if place else file
            schema = self.documents.at(file)
            for key in pointer.strip("/").split("/"):
                schema = schema[key]
        return file, {**schema, **beside}

    def _shape(self, file: Path, schema: dict[str, Any]) -> Shape:
        shape = Shape()
        for parent in schema.get("allOf", []):
            inherited = self._shape(*self._target(file, parent))
            shape.properties |= inherited.properties
            shape.required += inherited.required
            shape.others = shape.others or inherited.others
            shape.discriminator = shape.discriminator or inherited.discriminator
        shape.properties |= {name: (file, one) for name, one in schema.get("properties", {}).items()}
        shape.required += schema.get("required", [])
        if schema.get("additionalProperties"):
            shape.others = (file, schema["additionalProperties"])
        elif schema.get("type") == "object" and not shape.properties and "additionalProperties" not in schema:
            shape.others = (file, {})  # an object without further constraints
        shape.discriminator = schema.get("discriminator", shape.discriminator)
        return shape

    def _named(self, file: Path, base: dict[str, Any], value: str) -> dict[str, Any] | None:
        """The definition that inherits `base` and is named by a discriminator's value."""
        for name, schema in self.documents.at(file)["definitions"].items():
            called = schema.get("x-ms-discriminator-value", name)
            if called == value and any(parent == base for parent in self._parents(file, schema)):
                return dict(schema)
        return None

    def _parents(self, file: Path, schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for parent in schema.get("allOf", []):
            at, found = self._target(file, parent)
            yield found
            yield from self._parents(at, found)

    # --- Values -------------------------------------------------------------------------------------------------------

    def _check(self, file: Path, schema: dict[str, Any], value: Any, where: str) -> Iterator[str]:
        nullable = schema.get("x-nullable")
        bare_file, bare = self._target(file, {"$ref": schema["$ref"]} if "$ref" in schema else schema)
        if bare.get("readOnly") or schema.get("readOnly"):
            yield f"{where}: is read-only"
        elif value is None:
            if not (nullable or bare.get("x-nullable")):
                yield f"{where}: may not be null"
        elif not _has_type(value, bare):
            yield f"{where}: must be of type {bare.get('type', 'object')}, not {value!r}"
        elif isinstance(value, dict):
            yield from self._check_object(bare_file, bare, value, where)
        elif isinstance(value, list):
            for position, item in enumerate(value):
                yield from self._check(bare_file, bare.get("items", {}), item, f"{where}[{position}]")
        else:
            yield from _check_text_or_number(bare, value, where)

    def _check_object(self, file: Path, schema: dict[str, Any], value: dict[str, Any], where: str) -> Iterator[str]:
        if "discriminator" in schema:
            tag = schema["discriminator"]
            named = self._named(file, schema, value.get(tag, ""))
            if named is None:
                yield f"{where}.{tag}: {value.get(tag)!r} names nothing"
                return
            schema = named
        shape = self._shape(file, schema)
        for name in shape.required:
            if value.get(name) is None:
                yield f"{where}.{name}: is missing"
        for name, item in value.items():
            if name in shape.properties:
                yield from self._check(*shape.properties[name], item, f"{where}.{name}")
            elif shape.others is None:
                yield f"{where}.{name}: is unknown"
            elif shape.others[1] is not True:
                yield from self._check(*shape.others, item, f"{where}.{name}")


def _has_type(value: Any, schema: dict[str, Any]) -> bool:
    named = schema.get("type") or ("object" if "properties" in schema or "allOf" in schema else "")
    if not named:
        return True
    return isinstance(value, TYPES[named]) and (isinstance(value, bool) == (named == "boolean"))


def _check_text_or_number(schema: dict[str, Any], value: Any, where: str) -> Iterator[str]:
    if "enum" in schema and str(value).lower() not in [str(one).lower() for one in schema["enum"]]:
        yield f"{where}: must be one of {', '.join(map(str, schema['enum']))}, not {value!r}"
    if isinstance(value, str):
        if len(value) < schema.get("minLength", 0):
            yield f"{where}: is too short"
        if "pattern" in schema and not re.search(schema["pattern"], value):
            yield f"{where}: {value!r} does not match {schema['pattern']}"
        if schema.get("format") == "duration" and not re.fullmatch(DURATION, value):
            yield f"{where}: {value!r} is no duration of ISO 8601"
    elif value < schema.get("minimum", value):
        yield f"{where}: {value} is below {schema['minimum']}"
