"""Versions that need no training and no torch: a model of three nodes, written as ONNX by hand, and its manifest."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune.store.models import Models, publish
from edgetune.types import Cost, Latency, Manifest, Preprocess

SIDE = 8
Weights = npt.NDArray[np.float32]  # [3, classes]

_FLOAT, _UINT8 = 1, 2  # TensorProto.DataType
_VARINT, _LENGTH = 0, 2  # protobuf wire types


def tiny_model(classes: int, seed: int, weights: Weights | None = None) -> bytes:
    """
    ONNX: uint8 [N, 8, 8, 3] -> mean colour -> linear -> logits [N, classes]; ready in a millisecond.

    Written as protobuf by hand (field numbers of onnx.proto, opset 13, IR 8), so that no library is needed for it.
    """
    if weights is None:
        weights = np.random.default_rng(seed).normal(size=(3, classes)).astype(np.float32)
    graph = b"".join(
        (
            _message(1, _node("Cast", ["images"], "float", _attribute("to", 2, _number(3, _FLOAT)))),
            _message(1, _node("ReduceMean", ["float"], "mean", *_AXES)),
            _message(1, _node("MatMul", ["mean", "weights"], "logits")),
            _text(2, "tiny"),
            _message(5, _tensor("weights", weights)),
            _message(11, _value("images", _UINT8, ["N", SIDE, SIDE, 3])),
            _message(12, _value("logits", _FLOAT, ["N", classes])),
        )
    )
    return _number(1, 8) + _message(7, graph) + _message(8, _text(1, "") + _number(2, 13))


def tiny_files(classes: int, seed: int, weights: Weights | None = None) -> dict[str, bytes]:
    """The files of a version, with a self-test of what the model must answer."""
    if weights is None:
        weights = np.random.default_rng(seed).normal(size=(3, classes)).astype(np.float32)
    images = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3), dtype=np.uint8)
    record = io.BytesIO()
    np.savez(record, images=images, logits=images.astype(np.float32).mean(axis=(1, 2)) @ weights)
    return {"model.onnx": tiny_model(classes, seed, weights), "selftest.npz": record.getvalue()}


def manifest(classes: tuple[str, ...], **changes: Any) -> Manifest:
    """Of a tiny model."""
    fields: dict[str, Any] = {
        "version": 0, "kind": "factory", "architecture": "tiny", "classes": classes,
        "preprocess": Preprocess(height=SIDE, width=SIDE), "parent": None, "generation": 0, "round_id": None,
        "created_at": "2026-01-01T00:00:00+00:00", "files": {}, "cost": Cost(parameters=100, macs=100, onnx_bytes=100),
        "latency": Latency(median_ms=2.0, p90_ms=2.1, runs=10, threads=1),
    }  # fmt: skip
    return Manifest(**{**fields, **changes})


def publish_factory(
    state_dir: Path, classes: tuple[str, ...] = ("cat", "dog"), weights: Weights | None = None, **changes: Any
) -> None:
    """A first model, served and named the factory model; `changes` are of its manifest."""
    models = Models(state_dir / "models", quarantine=state_dir / "quarantine" / "models")
    models.recover()
    publish(state_dir / "models", 1, tiny_files(len(classes), 1, weights), manifest(classes, **changes))
    models.set_factory(1)
    models.promote(1)


# ---------------------------------------------------------------------------------------------------- protobuf


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _number(field: int, number: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(number)


def _message(field: int, body: bytes) -> bytes:
    return _varint(field << 3 | _LENGTH) + _varint(len(body)) + body


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode())


def _attribute(name: str, kind: int, value: bytes) -> bytes:
    """AttributeProto; `kind` 2 is one integer, 7 are several."""
    return _message(5, _text(1, name) + value + _number(20, kind))


_AXES = (_attribute("axes", 7, _number(8, 1) + _number(8, 2)), _attribute("keepdims", 2, _number(3, 0)))


def _node(operator: str, inputs: Sequence[str], output: str, *attributes: bytes) -> bytes:
    return b"".join(_text(1, name) for name in inputs) + _text(2, output) + _text(4, operator) + b"".join(attributes)


def _tensor(name: str, values: Weights) -> bytes:
    dims = b"".join(_number(1, size) for size in values.shape)
    return dims + _number(2, _FLOAT) + _text(8, name) + _message(9, values.astype("<f4").tobytes())


def _value(name: str, kind: int, shape: Sequence[int | str]) -> bytes:
    sizes = (_text(2, size) if isinstance(size, str) else _number(1, size) for size in shape)
    dims = b"".join(_message(1, size) for size in sizes)
    return _text(1, name) + _message(2, _message(1, _number(1, kind) + _message(2, dims)))
