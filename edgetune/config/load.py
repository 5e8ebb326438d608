"""A YAML file to a `Config`, or to every problem in it at once, each with its line."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from edgetune.config import strict_yaml
from edgetune.config.model import Config
from edgetune.config.section import Contradictions
from edgetune.config.strict_yaml import Document, KeyPath, Problem, dotted
from edgetune.errors import ConfigError

_FILE_BYTES_MAX = 2**20
_EXPECTED = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a name",
    "tuple_type": "a list such as [a, b]",
}


def load(path: Path) -> Config:
    """
    Read a configuration file.

    Raises:
        ConfigError: the file cannot be read or is not valid; `problems` has one line for each fault.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        hint = (
            ""
            if path.exists()
            else f"make one with the defaults: {_making(path)}edgetune config show --default > {path}"
        )
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint=hint) from error
    if len(data) > _FILE_BYTES_MAX:
        raise ConfigError(f"{path} is larger than 1 MiB; is it a configuration file?")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text") from error
    return parse(text, name=str(path))


def _making(path: Path) -> str:
    return "" if path.parent.is_dir() else f"mkdir -p {path.parent} && "


def parse(text: str, *, name: str = "config.yaml") -> Config:
    """
    Read a configuration from text.

    Args:
        text: YAML.
        name: what to call it in complaints.

    Raises:
        ConfigError: it is not valid.
    """
    document = strict_yaml.read(text)
    problems = list(document.problems)
    config = None
    if not (document.value is None and problems):
        try:
            config = Config.model_validate(_without_empty_sections(document.value))
        except ValidationError as error:
            problems += [each for detail in error.errors(include_url=False) for each in _problems(detail, document)]
    if problems or config is None:
        problems.sort(key=lambda problem: problem.line)
        raise ConfigError([f"{name}:{problem.line}: {problem.text}" for problem in problems])
    return config


def _without_empty_sections(value: Any) -> Any:
    """A section whose keys are all commented out is YAML null, and means its defaults; so does an empty file."""
    if value is None:
        return {}
    if isinstance(value, dict):
        return {key: {} if entry is None and key in Config.model_fields else entry for key, entry in value.items()}
    return value


def _problems(detail: ErrorDetails, document: Document) -> list[Problem]:
    """The problems of one complaint of pydantic's; keys that contradict each other are named one by one."""
    error = detail.get("ctx", {}).get("error")
    if not isinstance(error, Contradictions):
        return [_problem(detail, document)]
    paths = [((*detail["loc"], *key.split(".")), text) for key, text in error.found]
    return [Problem(document.line(path), f"{dotted(path)}: {text}") for path, text in paths]


def _problem(detail: ErrorDetails, document: Document) -> Problem:
    path: KeyPath = tuple(part for part in detail["loc"] if part != "[key]")
    where, kind = dotted(path), detail["type"]
    line = document.line(path)
    if kind == "extra_forbidden":
        return Problem(line, f"unknown key {where!r}{_did_you_mean(path)}")
    if kind in {"model_type", "dict_type"} and not path:
        return Problem(line, "the file must be a mapping of sections, such as 'budgets:'")
    if kind in {"model_type", "dict_type"}:
        return Problem(line, f"{where}: this is a section; its keys go below it, indented")
    return Problem(line, f"{where}: {_sentence(detail, document.written.get(path))}")


def _sentence(detail: ErrorDetails, written: str | None) -> str:
    """Say what is wrong with a value, in words for somebody who never heard of pydantic."""
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    reading = _misread(kind, value, written)
    if reading:
        return reading
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return f"expected {context['expected']}, not {value!r}{_near(value, context['expected'])}"
    if value is None:
        return "null is not allowed here; leave the key out for its default"
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, not {written or repr(value)}"
    text = detail["msg"].removeprefix("Input should be ")
    return f"must be {text}, not {value!r}" if text != detail["msg"] else text


def _misread(kind: str, value: object, written: str | None) -> str:
    """YAML's own ideas of what a word means, where a name was expected."""
    if isinstance(value, bool) and written is not None and kind in {"string_type", "literal_error", "value_error"}:
        return f'YAML reads {written} as {str(value).lower()}; if it is a name, write it in quotes: "{written}"'
    if isinstance(value, (int, float)) and kind == "string_type":
        return f'YAML reads {written} as a number; if it is a name, write it in quotes: "{written}"'
    return ""


def _near(value: object, expected: str) -> str:
    options = [option.strip("' ") for option in expected.replace(" or ", ", ").split(",")]
    close = difflib.get_close_matches(str(value), options, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _did_you_mean(path: KeyPath) -> str:
    """The nearest key of the same section, else the same key of another section, else all keys there are here."""
    name, here = str(path[-1]), dotted(path[:-1])
    known = [key for key in known_keys() if key.rpartition(".")[0] == here] if here else list(Config.model_fields)
    close = difflib.get_close_matches(dotted(path), known, n=1, cutoff=0.75)
    elsewhere = [key for key in known_keys() if key.rpartition(".")[2] == name]
    close = close or elsewhere[:1] or difflib.get_close_matches(name, [k.rpartition(".")[2] for k in known], n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known here: {', '.join(key.rpartition('.')[2] for key in known)}" if known else ""


def sections() -> Iterator[tuple[str, type[BaseModel] | None]]:
    """The sections of the configuration in order; None for a mapping that the operator fills (`builders`)."""
    for name, field in Config.model_fields.items():
        kind = field.annotation
        yield name, kind if isinstance(kind, type) and not get_args(kind) and issubclass(kind, BaseModel) else None


def known_keys() -> list[str]:
    """Every key, dotted: 'budgets.power_max'."""
    found = []
    for name, section in sections():
        found += [name] if section is None else [f"{name}.{key}" for key in section.model_fields]
    return found
