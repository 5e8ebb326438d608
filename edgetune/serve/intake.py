"""How requests come in: bodies within their limits, and only so many in hand at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Any, TypeVar

from starlette.requests import Request

from edgetune.errors import BusyError, TooLargeError, UsageError
from edgetune.serve.service import ApiLimits

T = TypeVar("T")

_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


class Intake:
    """
    Counts what is in hand and refuses what would be too much. Lives on the event loop.

    Attributes:
        in_hand: predictions, tensors and samples being worked on.
        bytes_in_hand: bytes of bodies that are held for them.
        rejected: requests answered with 503 since the start.
    """

    def __init__(self, limits: ApiLimits) -> None:
        self.limits = limits
        self.in_hand = 0
        self.bytes_in_hand = 0
        self.rejected = 0

    @contextlib.asynccontextmanager
    async def admit(self, request: Request) -> AsyncIterator[bytes]:
        """
        Hold a place in the queue, and the request's body with it.

        Raises:
            BusyError: the queue, or the memory for bodies, is full; nothing was read.
            TooLargeError: the body is larger than one may be.
        """
        if self.in_hand >= self.limits.queue_max:
            self.rejected += 1
            raise BusyError(f"{self.in_hand} predictions are in hand already, and no more may wait")
        self.in_hand += 1
        try:
            async with self.body(request) as body:
                yield body
        finally:
            self.in_hand -= 1

    @contextlib.asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Read a body and account for its memory until the request is done; raises like `admit`."""
        limits = self.limits
        announced = int(request.headers.get("content-length", 0))
        if announced > limits.body_max_bytes:
            raise _too_large(limits)
        chunks: list[bytes] = []
        held = 0
        try:
            async for chunk in request.stream():
                held += len(chunk)
                self.bytes_in_hand += len(chunk)
                if held > limits.body_max_bytes:
                    raise _too_large(limits)
                if self.bytes_in_hand > max(limits.bodies_max_bytes, limits.body_max_bytes):
                    self.rejected += 1
                    raise BusyError("the requests in hand hold as much memory as they may")
                chunks.append(chunk)
            filled = [chunk for chunk in chunks if chunk]
            chunks.clear()
            yield filled[0] if len(filled) == 1 else b"".join(filled)
        finally:
            self.bytes_in_hand -= held

    async def in_time(self, work: Awaitable[T]) -> T:
        """
        Wait for an answer as long as a request may take.

        Raises:
            BusyError: it took longer.
        """
        try:
            return await asyncio.wait_for(work, self.limits.request_timeout_s)
        except asyncio.TimeoutError:
            self.rejected += 1
            raise BusyError(f"no answer within {self.limits.request_timeout_s:g} s") from None


def _too_large(limits: ApiLimits) -> TooLargeError:
    return TooLargeError(
        f"a request may hold {limits.body_max_bytes} bytes", hint="raise serving.body_max, or send less"
    )


def json_fields(
    body: bytes, kinds: Mapping[str, type | tuple[type, ...]], required: tuple[str, ...] = ()
) -> dict[str, Any]:
    """
    Read a small JSON object strictly.

    Args:
        body: the request's; empty means {}.
        kinds: the fields it may have, and the type of each; null is as good as absent.
        required: those it must have.

    Raises:
        UsageError: it is not JSON, not an object, or has an unknown, missing or mistyped field.
    """
    try:
        fields = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the body is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise UsageError("the body has to be a JSON object")
    unknown = sorted(set(fields) - set(kinds))
    if unknown:
        raise UsageError(f"unknown field {unknown[0]!r}; known: {', '.join(kinds)}")
    fields = {name: value for name, value in fields.items() if value is not None}
    for name, value in fields.items():
        kind = kinds[name]
        is_number_for_bool = isinstance(value, bool) and kind is not bool
        if is_number_for_bool or not isinstance(value, kind):
            raise UsageError(f"field {name!r} is not of the right type: {value!r}")
    for name in required:
        if name not in fields or fields[name] == "":
            raise UsageError(f"field {name!r} is missing")
    return fields


class Query:
    """The query string of a request, read strictly; what it names is checked against `known`."""

    def __init__(self, request: Request, known: tuple[str, ...]) -> None:
        self._values: dict[str, str] = {}
        for name, value in request.query_params.multi_items():
            if name not in known:
                raise UsageError(f"unknown query parameter {name!r}; known: {', '.join(known)}")
            if name in self._values:
                raise UsageError(f"query parameter {name!r} is given twice")
            self._values[name] = value

    def text(self, name: str) -> str | None:
        """A text, or None when it is absent or empty."""
        return self._values.get(name) or None

    def number(self, name: str, default: int, *, least: int = 0, most: int = 2**53) -> int:
        """A whole number between `least` and `most`."""
        text = self._values.get(name)
        if text is None:
            return default
        number = whole_number(text, name)
        if not least <= number <= most:
            raise UsageError(f"{name} is {number}; it has to lie between {least} and {most}")
        return number

    def flag(self, name: str) -> bool | None:
        """Yes, no, or None when it is absent."""
        text = self._values.get(name)
        if text is None:
            return None
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        raise UsageError(f"{name} is {text!r}; it has to be true or false")


def whole_number(text: str, name: str) -> int:
    """Read a number of a path or a query; raises UsageError."""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        raise UsageError(f"{name} has to be a whole number, not {text!r}")
    return int(text)
