"""Metrics in Prometheus' text format, version 0.0.4."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from edgetune.serve.service import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_TYPES = ("counter", "gauge", "untyped")


def render(metrics: Iterable[Metric]) -> str:
    """
    Write metrics for a scrape.

    Args:
        metrics: (name, type, help, samples); a sample whose value is None is unknown and left out, and a metric
            without a known sample is left out whole.

    Raises:
        ValueError: a name, a type or a label's name is not one that Prometheus takes.
    """
    lines: list[str] = []
    for name, kind, text, samples in metrics:
        if not _NAME.fullmatch(name) or kind not in _TYPES:
            raise ValueError(f"not a metric: {name!r} of type {kind!r}")
        known = [f"{name}{_labels(labels)} {_number(value)}" for labels, value in samples if value is not None]
        if known:
            lines += [f"# HELP {name} {_escape(text)}", f"# TYPE {name} {kind}", *known]
    return "".join(line + "\n" for line in lines)


def _labels(labels: Mapping[str, str]) -> str:
    for label in labels:
        if not _LABEL.fullmatch(label):
            raise ValueError(f"not a label: {label!r}")
    pairs = ",".join(
        '{}="{}"'.format(label, _escape(str(value)).replace('"', '\\"')) for label, value in labels.items()
    )
    return f"{{{pairs}}}" if pairs else ""


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _number(value: float) -> str:
    number = float(value)
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "+Inf" if number > 0 else "-Inf"
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else repr(number)
