"""
YAML that remembers lines and guesses nothing.

Every value keeps the line and the characters it was written with, so that a complaint can say
`config.yaml:12: YAML reads no as false`. Duplicate keys, anchors, tags and further documents are problems.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """SafeLoader without anchors, merge keys, dates and base-60 numbers, and with 5e-4 as a number."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call] # the stubs have no types for the parser
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.composer.ComposerError(
                None, None, "anchors and aliases (& and *) are not used here", event.start_mark
            )
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in entries
        if tag not in {f"{_TAG}{name}" for name in ("merge", "timestamp", "int", "float")}
    ]
    for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_TAG}int", re.compile(r"^[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(r"^([-+]?([0-9][0-9_]*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"),
    list("-+.0123456789"),
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and where."""

    line: int
    text: str


@dataclass(slots=True)
class Document:
    """A YAML file as plain values, with where each came from."""

    value: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    written: dict[KeyPath, str] = field(default_factory=dict)  # scalars not in quotes, as they stand in the file
    problems: list[Problem] = field(default_factory=list)

    def line(self, path: KeyPath) -> int:
        """The line of a value, or of the nearest thing around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def read(text: str) -> Document:
    """
    Read one YAML document.

    Args:
        text: the file.

    Returns:
        The values and every problem found; `value` is None when the text is not YAML at all, or is empty.
    """
    document = Document()
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(part for part in (error.context, error.problem) if part)
        document.problems.append(Problem(mark.line + 1 if mark else 1, f"not valid YAML: {what}"))
    except yaml.YAMLError as error:
        document.problems.append(Problem(1, f"not valid YAML: {' '.join(str(error).split())}"))
    except RecursionError:
        document.problems.append(Problem(1, "not valid YAML: nested too deeply"))
    else:
        document.value = None if node is None else _build(node, (), document)
    return document


def _build(node: yaml.Node, path: KeyPath, document: Document) -> Any:
    document.lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        return _build_mapping(node, path, document)
    if isinstance(node, yaml.SequenceNode):
        return [_build(child, (*path, index), document) for index, child in enumerate(node.value)]
    assert isinstance(node, yaml.ScalarNode)
    return _build_scalar(node, path, document)


def _build_mapping(node: yaml.MappingNode, path: KeyPath, document: Document) -> dict[Any, Any]:
    built: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            document.problems.append(Problem(line, "a key must be a plain word"))
            continue
        key = str(key_node.value)  # as written: `no:` is the key "no", whatever YAML makes of it
        here = (*path, key)
        if key in built:
            first = document.lines[here]
            document.problems.append(
                Problem(line, f"key {dotted(here)!r} is given twice; the first is on line {first}")
            )
            continue
        document.lines[here] = line
        built[key] = _build(value_node, here, document)
    return built


def _build_scalar(node: yaml.ScalarNode, path: KeyPath, document: Document) -> Any:
    text, kind = str(node.value), node.tag.removeprefix(_TAG)
    if node.style is None:
        document.written[path] = text
    if kind == "str":
        return text
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in {"yes", "true", "on"}
    try:
        if kind == "int":
            return int(text.replace("_", ""))
        if kind == "float":
            return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        pass
    document.problems.append(Problem(node.start_mark.line + 1, f"{dotted(path)}: cannot read {text!r} as {node.tag}"))
    return text


def dotted(path: KeyPath) -> str:
    """A path as people write it: budgets.hours[0]."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
