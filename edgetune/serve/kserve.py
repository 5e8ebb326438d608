"""
The Open Inference Protocol (KServe v2) for tensors: JSON, and the binary tensor extension.

One model, "edgetune", with one input, "images" UINT8 [-1, H, W, 3], and one output, "logits" FP32 [-1, classes].
Source: https://github.com/kserve/open-inference-protocol (required API, binary tensor data extension). Left out: all
data types but these two, string tensors, and the shared memory, trace and repository extensions.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune.errors import ModelError, UsageError
from edgetune.types import Manifest

MODEL_NAME = "edgetune"
INPUT_NAME = "images"
OUTPUT_NAME = "logits"
HEADER_LENGTH = "inference-header-content-length"
_BRIEF_BYTES = 65_536  # of JSON: read in a millisecond or two
_PIECE = 65_536  # numbers that become an array at once, in a few milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """What a client asks for."""

    images: npt.NDArray[np.uint8]  # [N, H, W, 3]; may be a read-only view of the request's body
    request_id: str | None
    wants_binary: bool


def server_metadata(version: str) -> dict[str, Any]:
    """GET /v2."""
    return {"name": MODEL_NAME, "version": version, "extensions": ["binary_tensor_data"]}


def model_metadata(manifest: Manifest) -> dict[str, Any]:
    """GET /v2/models/edgetune."""
    size = manifest.preprocess
    return {
        "name": MODEL_NAME,
        "versions": [str(manifest.version)],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": INPUT_NAME, "datatype": "UINT8", "shape": [-1, size.height, size.width, 3]}],
        "outputs": [{"name": OUTPUT_NAME, "datatype": "FP32", "shape": [-1, len(manifest.classes)]}],
        "parameters": {"classes": list(manifest.classes), "marks": dict(manifest.marks)},
    }


async def read_request(body: bytes, header_length: str | None) -> InferRequest:
    """Do what `parse_request` does, beside the event loop where there is much JSON to read."""
    if _header_bytes(body, header_length) <= _BRIEF_BYTES:
        return parse_request(body, header_length)
    return await asyncio.to_thread(parse_request, body, header_length)


def parse_request(body: bytes, header_length: str | None) -> InferRequest:
    """
    Read an infer request; a binary tensor is used where it lies, without a copy.

    Args:
        body: JSON, or JSON followed by the tensor's bytes.
        header_length: the value of Inference-Header-Content-Length: how much of the body is JSON; None means all.

    Raises:
        UsageError: it does not keep to the protocol, or asks for what this model has not.
    """
    json_bytes = _header_bytes(body, header_length)
    try:
        request = _read_json(body[:json_bytes])
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the inference header is not JSON: {error}") from error
    if not isinstance(request, dict):
        raise UsageError("the inference header has to be a JSON object")
    tensor = _only_input(request)
    shape = _shape(tensor)
    tail = memoryview(body)[json_bytes:]
    binary_bytes = _parameters(tensor).get("binary_data_size")
    images = _from_json(tensor, shape) if binary_bytes is None else _from_binary(tail, binary_bytes, shape)
    if len(tail) != (binary_bytes or 0):
        raise UsageError(f"{len(tail)} bytes follow the inference header; binary_data_size says {binary_bytes or 0}")
    request_id = request.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise UsageError("id has to be a string")
    return InferRequest(images=images, request_id=request_id, wants_binary=_wants_binary(request))


def write_response(
    request: InferRequest,
    version: int,
    logits: npt.NDArray[np.float32],
    marks: Mapping[str, str] | None = None,
    rejected: Sequence[int] = (),
) -> tuple[bytes, dict[str, str]]:
    """
    Write the answer in the form that was asked for.

    A class with a mark is a parameter of the output, "mark.CLASS", and a row that nobody is sure of another, "rejected.ROW":
    a parameter has to be a string, a number or a boolean.

    Returns:
        The body and its headers.

    Raises:
        ModelError: a logit is not a finite number and JSON was asked for, which has no word for it.
    """
    output: dict[str, Any] = {"name": OUTPUT_NAME, "datatype": "FP32", "shape": list(logits.shape)}
    parameters: dict[str, Any] = {f"mark.{label}": mark for label, mark in (marks or {}).items()}
    parameters |= {f"rejected.{row}": True for row in rejected}
    answer = {"model_name": MODEL_NAME, "model_version": str(version), "outputs": [output]}
    if request.request_id is not None:
        answer["id"] = request.request_id
    if not request.wants_binary:
        if not np.isfinite(logits).all():
            raise ModelError(f"version {version} answered NaN or infinity")
        output |= {"parameters": parameters} if parameters else {}
        output["data"] = logits.ravel().tolist()
        return json.dumps(answer).encode(), {"content-type": "application/json"}
    data = np.ascontiguousarray(logits, dtype="<f4").tobytes()
    output["parameters"] = {**parameters, "binary_data_size": len(data)}
    header = json.dumps(answer).encode()
    return header + data, {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(header))}


def _read_json(text: bytes) -> Any:
    """
    Read JSON; a long one so that other threads get their turn.

    The standard library's reader does not let the interpreter go before its end, on whatever thread. It does so where a
    number is a Python function's to read; that takes three times as long.
    """
    if len(text) <= _BRIEF_BYTES:
        return json.loads(text)
    return json.loads(text, parse_int=lambda digits: int(digits), parse_float=lambda digits: float(digits))  # noqa: PLW0108


def _header_bytes(body: bytes, header_length: str | None) -> int:
    if header_length is None:
        return len(body)
    if not (header_length.isascii() and header_length.isdigit() and int(header_length[:18]) <= len(body)):
        raise UsageError(f"Inference-Header-Content-Length is {header_length!r}; the body has {len(body)} bytes")
    return int(header_length)


def _only_input(request: Mapping[str, Any]) -> Mapping[str, Any]:
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise UsageError(f"there has to be one input, {INPUT_NAME!r}")
    tensor: dict[str, Any] = inputs[0]
    if tensor.get("name") != INPUT_NAME:
        raise UsageError(f"unknown input {tensor.get('name')!r}; the only one is {INPUT_NAME!r}")
    if tensor.get("datatype") != "UINT8":
        raise UsageError(f"input {INPUT_NAME!r} is UINT8, not {tensor.get('datatype')!r}")
    return tensor


def _shape(tensor: Mapping[str, Any]) -> tuple[int, ...]:
    shape = tensor.get("shape")
    if not isinstance(shape, list) or len(shape) != 4 or not all(type(size) is int and size > 0 for size in shape):
        raise UsageError(f"shape has to be [N, height, width, 3], not {shape!r}")
    return tuple(shape)


def _from_json(tensor: Mapping[str, Any], shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    data = tensor.get("data")
    is_nested = isinstance(data, list) and bool(data) and isinstance(data[0], list)
    pieces = []
    for values in _pieces(data, shape if is_nested else (math.prod(shape),)):
        if values.dtype.kind not in "iu" or values.min(initial=0) < 0 or values.max(initial=0) > 255:
            raise UsageError("data has to be whole numbers between 0 and 255")
        pieces.append(values.astype(np.uint8))
    return np.concatenate(pieces, axis=None).reshape(shape)


def _pieces(data: object, shape: tuple[int, ...]) -> Iterator[npt.NDArray[Any]]:
    """Nested lists of this shape as arrays, a few rows at a time: making one does not let other threads go on either."""
    if not isinstance(data, list) or len(data) != shape[0]:
        found = f"{len(data)} in the place of {shape[0]}" if isinstance(data, list) else type(data).__name__
        raise UsageError(f"data has not the shape that is announced: {found}")
    of_row = math.prod(shape[1:])
    if of_row > _PIECE:
        for row in data:
            yield from _pieces(row, shape[1:])
        return
    rows = _PIECE // of_row
    for start in range(0, len(data), rows):
        part = data[start : start + rows]
        try:
            values = np.asarray(part)
        except ValueError as error:
            raise UsageError(f"data is not a tensor: {error}") from error
        if values.shape != (len(part), *shape[1:]):
            raise UsageError(f"data has rows of the shape {list(values.shape[1:])}, not {list(shape[1:])}")
        yield values


def _from_binary(tail: memoryview, binary_bytes: object, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    expected = math.prod(shape)
    if type(binary_bytes) is not int or binary_bytes != expected or len(tail) != expected:
        raise UsageError(
            f"a tensor of shape {list(shape)} has {expected} bytes; "
            f"binary_data_size says {binary_bytes!r}, and {len(tail)} follow the header",
        )
    return np.frombuffer(tail, dtype=np.uint8).reshape(shape)


def _parameters(holder: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = holder.get("parameters", {})
    if not isinstance(parameters, dict):
        raise UsageError("parameters has to be a JSON object")
    return parameters


def _wants_binary(request: Mapping[str, Any]) -> bool:
    """An output's own binary_data wins over the request's binary_data_output."""
    wants = _parameters(request).get("binary_data_output", False)
    outputs = request.get("outputs", [])
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        raise UsageError("outputs has to be a list of objects")
    for output in outputs:
        if output.get("name") != OUTPUT_NAME:
            raise UsageError(f"unknown output {output.get('name')!r}; the only one is {OUTPUT_NAME!r}")
        parameters = _parameters(output)
        if "classification" in parameters:
            raise UsageError("the classification extension is not offered; POST /v1/predict names the classes")
        wants = parameters.get("binary_data", wants)
    if not isinstance(wants, bool):
        raise UsageError("binary_data_output and binary_data have to be true or false")
    return wants
