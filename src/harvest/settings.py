"""Settings, which are frozen dataclasses, as JSON and back."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from harvest.interfaces import HarvestError


def to_json(settings: Any) -> str:
    return json.dumps(dataclasses.asdict(settings), indent=1)


def read_settings(kind: Any, path: Path) -> Any:
    """A JSON file as settings of `kind`; an unknown key is an error that names the nearest known one."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise HarvestError(f"{path}: no such config file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise HarvestError(f"{path} is not valid JSON: {error}") from None
    return from_dict(kind, values, where=str(path))


def from_dict(kind: Any, values: Any, *, where: str, path: str = "") -> Any:
    """Structure plain JSON values as `kind`: dataclasses, unions of them, tuples, mappings and leaves."""
    if dataclasses.is_dataclass(kind):
        return _dataclass_from(kind, values, where=where, path=path)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if values is None and type(None) in arguments:
            return None
        choices = [a for a in arguments if a is not type(None)]
        if len(choices) > 1 and isinstance(values, Mapping):
            choices.sort(key=lambda choice: _fit(choice, values), reverse=True)
        return from_dict(choices[0], values, where=where, path=path)
    if origin is tuple:
        return _tuple_from(arguments, values, where=where, path=path)
    if origin is Mapping:
        if not isinstance(values, dict):
            raise HarvestError(f"{where}: {path} must be an object with settings, got {values!r}")
        return {k: from_dict(arguments[1], v, where=where, path=f"{path}.{k}") for k, v in values.items()}
    if kind is float and type(values) is int:
        return float(values)
    leaf = {float: float, int: int, str: str, bool: bool}.get(kind)
    if leaf is not None and type(values) is not leaf:
        raise HarvestError(f"{where}: {path} must be {leaf.__name__}, got {values!r}")
    if origin is Literal and values not in arguments:
        raise HarvestError(
            f"{where}: {path} must be one of {', '.join(map(repr, arguments))}, got {values!r}"
        )
    return values


def _fit(kind: Any, values: Mapping[str, Any]) -> tuple[int, int]:
    """How well a dataclass fits an object: it knows most of the keys, and of those that do it lacks the fewest."""
    known = {f.name for f in dataclasses.fields(kind)}
    return len(values.keys() & known), -len(known - values.keys())


def _tuple_from(kinds: tuple[Any, ...], values: Any, *, where: str, path: str) -> tuple[Any, ...]:
    if isinstance(values, list) and len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(values)
    if not isinstance(values, list) or len(values) != len(kinds):
        raise HarvestError(f"{where}: {path} must be a list of {len(kinds)} values, got {values!r}")
    return tuple(
        from_dict(kind, value, where=where, path=path) for kind, value in zip(kinds, values, strict=True)
    )


def _dataclass_from(kind: Any, values: Any, *, where: str, path: str) -> Any:
    if not isinstance(values, Mapping):
        raise HarvestError(f"{where}: {path or 'the file'} must be an object with settings, got {values!r}")
    hints = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise HarvestError(f"{where}: unknown setting {path + '.' if path else ''}{key}; {hint}")
    required = {
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - values.keys()):
        raise HarvestError(f"{where}: {path or 'the file'} lacks {', '.join(missing)}")
    return kind(
        **{
            key: from_dict(hints[key], value, where=where, path=f"{path}.{key}" if path else key)
            for key, value in values.items()
        }
    )


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
