"""The types of values in the configuration: quantities with units, hours of the day, paths, addresses, references."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, PlainSerializer
from pydantic_core import CoreSchema, core_schema

from edgetune import units
from edgetune.types import CRITERIA


@dataclass(frozen=True)
class Unit:
    """Marks a number that is written as text with a unit, in JSON and YAML alike."""

    kind: str  # a key of units.UNITS
    is_positive: bool = False  # zero makes no sense
    is_whole: bool = False

    def read(self, text: object) -> float:
        """Read what the operator wrote; ValueError says what was expected."""
        number = units.parse(text, self.kind)
        if self.is_positive and number == 0:
            raise ValueError(f"{text!r} must be more than zero")
        return round(number) if self.is_whole else number

    def write(self, number: float) -> str:
        """Write it back the way people do."""
        return units.show(number, self.kind)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Take text only: not a bare number."""
        writer = core_schema.plain_serializer_function_ser_schema(self.write, return_schema=core_schema.str_schema())
        return core_schema.no_info_plain_validator_function(self.read, serialization=writer)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Tell an editor which texts are valid."""
        names = "|".join(re.escape(name) for name in units.UNITS[self.kind])
        return {
            "type": "string",
            "pattern": rf"^\s*\+?([0-9_]+(\.[0-9]+)?|\.[0-9]+)\s*({names})\s*$",
            "examples": [units.EXAMPLES[self.kind]],
        }


Bytes = Annotated[int, Unit("bytes", is_positive=True, is_whole=True)]
Duration = Annotated[float, Unit("duration")]
PositiveDuration = Annotated[float, Unit("duration", is_positive=True)]
Joules = Annotated[float, Unit("energy", is_positive=True)]
Watts = Annotated[float, Unit("power", is_positive=True)]
Celsius = Annotated[float, Unit("temperature", is_positive=True)]
Share = Annotated[float, Unit("share")]
PositiveShare = Annotated[float, Unit("share", is_positive=True)]
Points = Annotated[float, Unit("points")]
Pixels = Annotated[int, Unit("pixels", is_positive=True, is_whole=True)]
Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(ge=1)]

_MODEL_PATH = re.compile(r"(/[\w.~%-]+)*/v2/models/[\w.~%-]+(/versions/[\w.~%-]+)?", re.ASCII)
_HOURS = re.compile(r"^(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})$")


def _read_hours(text: object) -> tuple[int, int]:
    match = _HOURS.match(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"expected hours of the day such as '22:00-06:00', not {text!r}")
    h1, m1, h2, m2 = (int(part) for part in match.groups())
    start, end = h1 * 60 + m1, h2 * 60 + m2
    if m1 > 59 or m2 > 59 or start >= 24 * 60 or end > 24 * 60:
        raise ValueError(f"{text!r} is not a time of the day; they go from 00:00 to 24:00")
    if start == end:
        raise ValueError(f"{text!r} is empty; leave the list empty for all day long")
    return start, end


def _show_hours(hours: tuple[int, int]) -> str:
    (h1, m1), (h2, m2) = (divmod(minute, 60) for minute in hours)
    return f"{h1:02}:{m1:02}-{h2:02}:{m2:02}"


Hours = Annotated[
    tuple[int, int],
    BeforeValidator(
        _read_hours, json_schema_input_type=Annotated[str, Field(pattern=r"^\d{1,2}:\d{2}-\d{1,2}:\d{2}$")]
    ),
    PlainSerializer(_show_hours, return_type=str),
]


def _read_path(text: object) -> Path:
    if not isinstance(text, str) or not text.startswith("/"):
        raise ValueError(f"expected an absolute path such as '/var/lib/edgetune', not {text!r}")
    if "\0" in text:
        raise ValueError("a path cannot contain a NUL byte")
    return Path(text)


AbsolutePath = Annotated[
    Path, BeforeValidator(_read_path, json_schema_input_type=str), PlainSerializer(str, return_type=str)
]


def split_address(address: str) -> tuple[str, int]:
    """
    Split 'host:port'.

    Raises:
        ValueError: not an address, or not a loopback one.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"expected host:port such as '127.0.0.1:8090', not {address!r}")
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError as error:
        raise ValueError(f"{host!r} is not an IP address; use '127.0.0.1:{port}'") from error
    if not is_loopback:
        raise ValueError(
            f"{host!r} is not a loopback address; edgetune has no passwords, so put a proxy in front of '127.0.0.1:{port}'"
        )
    return host, int(port)


def _read_address(text: object) -> str:
    if not isinstance(text, str):
        raise ValueError(f"expected host:port such as '127.0.0.1:8090', not {text!r}")
    split_address(text)
    return text


LoopbackAddress = Annotated[str, BeforeValidator(_read_address, json_schema_input_type=str)]


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """A model on a server."""

    host: str
    port: int
    path: str  # /v2/models/NAME, perhaps behind a prefix
    is_tls: bool

    @property
    def where(self) -> str:
        """Host and port, for people."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def split_server(url: str) -> ServerAddress:
    """
    Split the address of a model that speaks the Open Inference Protocol.

    Raises:
        ValueError: it is none, or would send images in the clear to another machine.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.query or parts.fragment or "@" in url:
        raise ValueError(f"expected https://HOST:PORT/v2/models/NAME, not {url!r}")
    if not _MODEL_PATH.fullmatch(parts.path):
        raise ValueError(f"{url!r} does not name a model; such addresses end in /v2/models/NAME")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise ValueError(f"{url!r} would send images in the clear; use https:// (http:// is for this board itself)")
    return ServerAddress(parts.hostname, port, parts.path, parts.scheme == "https")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read_server(text: object) -> str:
    if not isinstance(text, str):
        raise ValueError(f"expected https://HOST:PORT/v2/models/NAME, not {text!r}")
    split_server(text)
    return text


ServerUrl = Annotated[str, BeforeValidator(_read_server, json_schema_input_type=str)]


def _check_reference(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", text):
        raise ValueError(f"expected package.module:function, not {text!r}")
    return text


def _check_name(text: str) -> str:
    if not text.strip() or text != text.strip() or "/" in text or text.startswith("."):
        raise ValueError(f"{text!r} cannot be a name: it is empty, begins with a dot or a space, or has a '/' in it")
    return text


def _check_criterion(text: str) -> str:
    if text not in CRITERIA and not re.fullmatch(r"\w+(\.\w+)*:\w+", text):
        raise ValueError(f"unknown criterion {text!r}: use {', '.join(CRITERIA)}, or package.module:Class of your own")
    return text


Criterion = Annotated[str, BeforeValidator(lambda text: _check_criterion(text) if isinstance(text, str) else text)]
Reference = Annotated[str, BeforeValidator(lambda text: _check_reference(text) if isinstance(text, str) else text)]
Name = Annotated[str, BeforeValidator(lambda text: _check_name(text) if isinstance(text, str) else text)]
