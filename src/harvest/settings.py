"""Settings, which are frozen dataclasses, as JSON and back."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import math
import types
import typing
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from harvest.errors import HarvestError
from harvest.files import check_file

MOST_JSON = 256 << 20
"""Bytes of a file with settings or a vocabulary; the largest vocabularies take 40 million."""


def to_json(settings: Any) -> str:
    return json.dumps(dataclasses.asdict(settings), indent=1)


def parse(kind: Any, text: str | bytes, *, where: str) -> Any:
    """JSON, in UTF-8, as values of `kind`; HarvestError, which begins with `where`, for anything else."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HarvestError(f"{where} is not JSON: {error}") from None
    return from_dict(kind, values, where=where)


def read_settings(kind: Any, path: Path) -> Any:
    """A JSON file as settings of `kind`; an unknown key is an error that names the nearest known one."""
    check_file(path, most=MOST_JSON)
    try:
        return parse(kind, path.read_bytes(), where=str(path))
    except OSError as error:
        raise HarvestError(f"{path} cannot be read: {error.strerror or error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is no file."""
    values: dict[str, Any] = read_settings(dict[str, Any], path) if path.is_file() else {}
    return values


def from_dict(kind: Any, values: Any, *, where: str, path: str = "") -> Any:
    """Structure plain JSON values as `kind`: dataclasses, named tuples, unions, lists, tuples, mappings and leaves.

    A key that is not written takes its default. Numbers must be finite, and in the range that a dataclass sets.
    """
    if kind is Any:
        return values
    if dataclasses.is_dataclass(kind) or hasattr(kind, "_fields"):
        return _record_from(kind, values, where=where, path=path)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _one_of(arguments, values, where=where, path=path)
    if origin is typing.Annotated:
        return from_dict(arguments[0], values, where=where, path=path)
    name = path or "the file"
    if origin is tuple:
        return _tuple_from(arguments, values, where=where, path=name)
    if origin is list:
        return list(_tuple_from((arguments[0], ...), values, where=where, path=name))
    if origin in (Mapping, dict):
        if not isinstance(values, dict):
            raise HarvestError(f"{where}: {name} must be an object with settings, got {values!r:.100}")
        return {k: from_dict(arguments[1], v, where=where, path=f"{path}.{k}") for k, v in values.items()}
    if kind is float and type(values) is int:
        values = float(values) if abs(values) < 2**1000 else math.inf
    leaf = {float: float, int: int, str: str, bool: bool}.get(kind)
    if leaf is not None and type(values) is not leaf:
        raise HarvestError(f"{where}: {name} must be {leaf.__name__}, got {values!r:.100}")
    if leaf is float and not math.isfinite(values):
        raise HarvestError(f"{where}: {name} must be a finite number, got {values!r}")
    if origin is Literal and values not in arguments:
        raise HarvestError(
            f"{where}: {name} must be one of {', '.join(map(repr, arguments))}, got {values!r:.100}"
        )
    return values


def _one_of(kinds: tuple[Any, ...], values: Any, *, where: str, path: str) -> Any:
    """By the first of a union's kinds that the values fit; for an object the dataclass that knows its keys best."""
    if values is None and type(None) in kinds:
        return None
    choices = [kind for kind in kinds if kind is not type(None)]
    if isinstance(values, Mapping):
        records = [kind for kind in choices if dataclasses.is_dataclass(kind)]
        choices = [max(records, key=lambda kind: _fit(kind, values))] if records else choices
    for choice in choices[:-1]:
        with suppress(HarvestError):
            return from_dict(choice, values, where=where, path=path)
    return from_dict(choices[-1], values, where=where, path=path)


def _fit(kind: Any, values: Mapping[str, Any]) -> tuple[int, int]:
    """How well a dataclass fits an object: it knows most of the keys, and of those that do it lacks the fewest."""
    known = {f.name for f in dataclasses.fields(kind)}
    return len(values.keys() & known), -len(known - values.keys())


def _tuple_from(kinds: tuple[Any, ...], values: Any, *, where: str, path: str) -> tuple[Any, ...]:
    if isinstance(values, list) and len(kinds) == 2 and kinds[1] is Ellipsis:
        if kinds[0] in (int, str) and all(type(value) is kinds[0] for value in values):
            return tuple(values)
        kinds = (kinds[0],) * len(values)
    if not isinstance(values, list) or len(values) != len(kinds):
        raise HarvestError(f"{where}: {path} must be a list of {len(kinds)} values, got {values!r:.100}")
    return tuple(
        from_dict(kind, value, where=where, path=path) for kind, value in zip(kinds, values, strict=True)
    )


def _record_from(kind: Any, values: Any, *, where: str, path: str) -> Any:
    if not isinstance(values, Mapping):
        raise HarvestError(
            f"{where}: {path or 'the file'} must be an object with settings, got {values!r:.100}"
        )
    hints, known = typing.get_type_hints(kind), inspect.signature(kind).parameters
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise HarvestError(f"{where}: unknown setting {path + '.' if path else ''}{key}; {hint}")
    required = {name for name, parameter in known.items() if parameter.default is parameter.empty}
    if missing := sorted(required - values.keys()):
        raise HarvestError(f"{where}: {path or 'the file'} lacks {', '.join(missing)}")
    given = {
        key: from_dict(hints[key], value, where=where, path=f"{path}.{key}" if path else key)
        for key, value in values.items()
    }
    try:
        return kind(**given)
    except HarvestError as error:  # of its ranges
        raise HarvestError(f"{where}: {error}") from error


def differences(a: Any, b: Any, *, free: Collection[str] = ()) -> list[str]:
    """Settings in which `a` and `b` differ, but for those that are `free` to, as `name: a there, b asked for`."""
    flat_a, flat_b = _flat(dataclasses.asdict(a)), _flat(dataclasses.asdict(b))
    return [
        f"{key}: {flat_a.get(key)!r} there, {flat_b.get(key)!r} asked for"
        for key in sorted(flat_a.keys() | flat_b.keys())
        if flat_a.get(key) != flat_b.get(key) and key not in free
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
