"""Dataclasses of `types` to JSON and back, checked; pydantic does the work."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


@functools.cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast("type[Any]", kind))


def to_json(value: object, *, indent: int | None = None) -> bytes:
    """Write a dataclass of `types` as UTF-8 JSON."""
    return _adapter(cast("Hashable", type(value))).dump_json(value, indent=indent)


def to_plain(value: object) -> Any:
    """The same as nested dicts and lists that `json.dumps` takes."""
    return _adapter(cast("Hashable", type(value))).dump_python(value, mode="json")


def from_json(kind: type[T], data: bytes | str) -> T:
    """
    Read a dataclass of `types` from JSON.

    Raises:
        ValueError: the text is not JSON, or a field is missing or of the wrong type.
    """
    try:
        return cast(T, _adapter(cast("Hashable", kind)).validate_json(data))
    except ValidationError as error:
        raise ValueError(f"not a valid {kind.__name__}: {error.errors(include_url=False)[0]['msg']}") from error
