"""config.yaml and docs/configuration.md, written from the model so that neither can rot."""

from __future__ import annotations

import json
import textwrap
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from edgetune import units
from edgetune.config import strict_yaml
from edgetune.config.load import sections
from edgetune.config.model import Config
from edgetune.config.quantities import Unit

_WIDTH = 116
_HEAD = """\
# edgetune: the configuration of one board. Installed as /etc/edgetune/config.yaml.
#
# Every key is here with its default; a key left out has the same value. Quantities are text with a unit ("1.5GiB",
# "30min", "75C", "10W", "20%", "1pp" for percentage points); null means that there is no such limit.
# Check it with `edgetune config check`; `edgetune reload` (or SIGHUP) takes it over whole, or keeps the old one when
# anything in it is wrong. Keys marked (restart) take effect when the service starts.
"""


def default_text() -> str:
    """config.yaml: every key with its default and a comment with its meaning and unit."""
    lines = [_HEAD]
    for name, section in sections():
        field = Config.model_fields[name]
        if section is None:
            lines += [*_comment(_meaning(field), ""), f"{name}: {_yaml(field.default)}", ""]
            continue
        lines += [*_comment((section.__doc__ or "").strip(), ""), f"{name}:"]
        for key, entry in section.model_fields.items():
            lines += [*_comment(_meaning(entry), "  "), f"  {key}: {_yaml(entry.default)}"]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def reference_text() -> str:
    """docs/configuration.md: every key with its type, default and meaning."""
    lines = [_DOC_HEAD]
    for name, section in sections():
        field = Config.model_fields[name]
        if section is None:
            lines += [f"## {name}\n", f"{_meaning(field)} Default: `{_yaml(field.default)}`.\n"]
            continue
        lines += [f"## {name}\n", f"{(section.__doc__ or '').strip()}\n"]
        lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
        lines += [_row(key, entry) for key, entry in section.model_fields.items()]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _row(key: str, field: FieldInfo) -> str:
    meaning = _meaning(field).replace("|", "\\|")
    return f"| `{key}` | {_kind(field)} | `{_yaml(field.default)}` | {meaning} |"


def _meaning(field: FieldInfo) -> str:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    example = f" For example {extra['example']}." if "example" in extra else ""
    restart = "" if extra.get("reloadable", True) else " (restart)"
    return f"{field.description}{example}{restart}"


def _kind(field: FieldInfo) -> str:
    """A key's type in words: 'duration such as 30min, or null'."""
    for mark in field.metadata:
        if isinstance(mark, Unit):
            return f"{mark.kind}, such as {units.EXAMPLES[mark.kind]}"
    words = [_type_words(part) for part in _members(field.annotation)]
    bounds = [_bound(mark) for mark in field.metadata]
    return ", ".join(part for part in (" or ".join(words), *bounds) if part)


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _type_words(kind: Any) -> str:
    if kind is NoneType:
        return "null"
    if get_origin(kind) is Literal:
        return ", ".join(f"`{option}`" for option in get_args(kind))
    for mark in getattr(kind, "__metadata__", ()):
        if isinstance(mark, Unit):
            return f"{mark.kind}, such as {units.EXAMPLES[mark.kind]},"
    kind = getattr(kind, "__origin__", kind) if hasattr(kind, "__metadata__") else kind
    if get_origin(kind) in (tuple, dict):
        return "list" if get_origin(kind) is tuple else "mapping"
    base = getattr(kind, "__origin__", kind)
    return {bool: "true or false", int: "whole number", float: "number", str: "name"}.get(base, "path")


def _bound(mark: Any) -> str:
    for name, words in (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than")):
        if getattr(mark, name, None) is not None:
            return f"{words} {getattr(mark, name)}"
    return ""


def _yaml(value: Any) -> str:
    if isinstance(value, BaseModel):
        raise TypeError("a section inside a section")
    text = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
    is_plain = isinstance(value, str) and strict_yaml.read(value).value == value
    return str(value) if is_plain else text


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ", break_on_hyphens=False
    )


_DOC_HEAD = """\
# Configuration

<!-- Written by `python -m edgetune.config`; change edgetune/config/model.py instead. -->

The service reads `/etc/edgetune/config.yaml` (another file with `edgetune run --config FILE`). A key left out has its
default. `edgetune config check` reports every problem at once, each with its line; `edgetune config show` prints what
is in force; `edgetune config schema` prints a JSON Schema for editors.

Quantities are text with a unit: `"512MiB"`, `"30min"`, `"75C"`, `"10W"`, `"20%"`, `"1pp"` (percentage points), `"50Mpx"`.
Bare numbers, NaN and negative quantities are refused; unknown and duplicate keys are errors that name the nearest known
key. YAML reads `no`, `on`, `yes` and `1` as booleans and numbers: write such names in quotes.

`edgetune reload` (or SIGHUP) checks the whole file first and keeps the old configuration when anything is wrong. Keys
marked (restart) take effect when the service starts; `status` names them while they wait.

A budget on a quantity that the board cannot measure is an error at start that names the key. For that reason
`temperature_max`, `power_max` and `round_energy_max` are null until you set them: `edgetune doctor` says what this board measures. With
`estimate: true` power is estimated from CPU use, and every number that rests on it says "estimated".
"""
