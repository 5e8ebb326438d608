"""
The client's side of the Open Inference Protocol (KServe v2): what a model says it is, and tensors there and back.

A model file in its process speaks it too, so that there is one reader of descriptions and of answers.
Source: https://github.com/kserve/open-inference-protocol (required API, binary tensor data extension). Only models with
one image for an input, UINT8 or FP32, three channels first or last, and one FP32 output [N, classes].
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune.errors import TeacherError

HEADER_LENGTH = "inference-header-content-length"
BINARY = "binary_tensor_data"  # the extension that a server names
_CHANNELS = 3
_TYPES: dict[str, np.dtype[Any]] = {"UINT8": np.dtype("u1"), "FP32": np.dtype("<f4")}
_CLASSES_MAX = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelForm:
    """What a teacher takes and gives."""

    input_name: str
    datatype: str  # "UINT8" (0..255) | "FP32" (normalised)
    is_channels_last: bool
    height: int
    width: int
    output_name: str
    outputs: int  # classes in its answer
    classes: tuple[str, ...]  # their names; empty: it does not say
    version: str | None  # the newest that it offers; None: it has no versions

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image as it is sent."""
        size = (self.height, self.width)
        return (*size, _CHANNELS) if self.is_channels_last else (_CHANNELS, *size)


def read_form(metadata: Mapping[str, Any], *, size: int | None, otherwise: tuple[int, int]) -> ModelForm:
    """
    Read a model's description.

    Args:
        metadata: the answer to GET v2/models/NAME.
        size: the side that the operator configured; None: as described.
        otherwise: (height, width) where neither says it.

    Raises:
        TeacherError: it does not keep to the protocol, or is no image classifier that edgetune can ask.
    """
    given, answered = _only(metadata, "inputs"), _only(metadata, "outputs")
    if given["datatype"] not in _TYPES or answered["datatype"] != "FP32":
        raise TeacherError(
            f"the teacher takes {given['datatype']} and answers {answered['datatype']}; "
            "UINT8 or FP32, and FP32, can be used"
        )
    is_last, height, width = _image_sides(given, size, otherwise)
    outputs = answered["shape"][-1] if len(answered["shape"]) == 2 else None
    if type(outputs) is not int or not 2 <= outputs <= _CLASSES_MAX:
        raise TeacherError(f"the teacher's output has the shape {answered['shape']}; [N, classes] is wanted")
    return ModelForm(
        input_name=given["name"],
        datatype=given["datatype"],
        is_channels_last=is_last,
        height=height,
        width=width,
        output_name=answered["name"],
        outputs=outputs,
        classes=_names(metadata, outputs),
        version=_newest(metadata.get("versions")),
    )


def write_request(form: ModelForm, images: npt.NDArray[Any], *, is_binary: bool) -> tuple[bytes, bytes]:
    """
    Write an infer request: its JSON and, of a binary one, the tensor's bytes that follow it.

    Args:
        form: what the model takes.
        images: [N, *form.shape] of the form's data type.
        is_binary: as bytes, and answered in bytes; else both as JSON.
    """
    tensor: dict[str, Any] = {"name": form.input_name, "datatype": form.datatype, "shape": list(images.shape)}
    output: dict[str, Any] = {"name": form.output_name}
    data = b""
    if is_binary:
        data = np.ascontiguousarray(images, dtype=_TYPES[form.datatype]).tobytes()
        tensor["parameters"] = {"binary_data_size": len(data)}
        output["parameters"] = {"binary_data": True}
    else:
        tensor["data"] = images.ravel().tolist()
    return json.dumps({"inputs": [tensor], "outputs": [output]}).encode(), data


def read_answer(header: bytes, data: bytes, *, count: int, form: ModelForm) -> npt.NDArray[np.float32]:
    """
    Read the answer to `count` images.

    Returns:
        logits: float32 [count, form.outputs].

    Raises:
        TeacherError: another shape, another count, no numbers, or not the protocol at all.
    """
    output = _only(read_json(header), "outputs")
    wanted = [count, form.outputs]
    if output["datatype"] != "FP32" or output["shape"] != wanted:
        raise TeacherError(f"the teacher answered {output['datatype']} {output['shape']}; FP32 {wanted} was asked for")
    if output["parameters"].get("binary_data_size") is not None:
        if len(data) != 4 * count * form.outputs:
            raise TeacherError(f"the teacher announced FP32 {wanted} and sent {len(data)} bytes")
        logits = np.frombuffer(data, dtype="<f4")
    else:
        try:
            logits = np.asarray(output.get("data"), dtype=np.float32)
        except (ValueError, TypeError, OverflowError) as error:
            raise TeacherError(f"the teacher's answer is no tensor: {error}") from error
    if logits.size != count * form.outputs:
        raise TeacherError(f"the teacher announced {wanted} and answered {logits.size} numbers")
    return check_logits(logits.reshape(count, form.outputs))


def check_logits(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """
    Refuse what cannot be learnt from; [N, classes].

    Raises:
        TeacherError: NaN, infinity, or probabilities.
    """
    if not np.isfinite(logits).all():
        raise TeacherError("the teacher answered NaN or infinity")
    if (logits >= 0).all() and np.allclose(logits.sum(axis=1), 1.0, atol=1e-3):
        raise TeacherError(
            "the teacher answers probabilities; logits are wanted", hint="export it without the softmax at its end"
        )
    return logits.astype(np.float32, copy=False)


def read_json(data: bytes) -> dict[str, Any]:
    """
    Read a JSON object.

    Raises:
        TeacherError: it is none.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TeacherError(f"the teacher's answer is not JSON: {data[:60]!r}") from error
    if not isinstance(value, dict):
        raise TeacherError(f"the teacher's answer is no JSON object: {data[:60]!r}")
    return value


def _only(holder: Mapping[str, Any], role: str) -> dict[str, Any]:
    """The one tensor of a list of them, with the parts that every tensor has."""
    tensors = holder.get(role)
    if not isinstance(tensors, list) or len(tensors) != 1 or not isinstance(tensors[0], dict):
        count = len(tensors) if isinstance(tensors, list) else "no list of"
        raise TeacherError(f"the teacher has {count} {role}; one is wanted")
    tensor = {"parameters": {}, **tensors[0]}
    is_whole = isinstance(tensor["parameters"], dict) and isinstance(tensor.get("shape"), list)
    if not is_whole or not all(isinstance(tensor.get(key), str) for key in ("name", "datatype")):
        raise TeacherError(f"the teacher's {role} lack a name, a datatype or a shape: {tensors[0]!r:.200}")
    return tensor


def _image_sides(tensor: Mapping[str, Any], size: int | None, otherwise: tuple[int, int]) -> tuple[bool, int, int]:
    """Whether channels come last, height and width; a side that the model leaves open is what the operator says."""
    shape = tensor["shape"]
    is_last = len(shape) == 4 and shape[3] == _CHANNELS
    if not is_last and (len(shape) != 4 or shape[1] != _CHANNELS):
        raise TeacherError(f"the teacher's input has the shape {shape}; [N, 3, H, W] or [N, H, W, 3] is wanted")
    sides = [
        side if type(side) is int and side > 0 else size or other
        for side, other in zip(shape[1:3] if is_last else shape[2:4], otherwise, strict=True)
    ]
    if size is not None and sides != [size, size]:
        raise TeacherError(
            f"the teacher takes images of {sides[0]} x {sides[1]}, not of {size} x {size}",
            hint="leave training.teacher_size out: it says so itself",
        )
    return is_last, sides[0], sides[1]


def _names(metadata: Mapping[str, Any], outputs: int) -> tuple[str, ...]:
    """The names of its classes, as edgetune's own endpoint tells them."""
    parameters = metadata.get("parameters")
    classes = parameters.get("classes") if isinstance(parameters, dict) else None
    if classes is None:
        return ()
    is_list = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if not is_list or len(classes) != outputs or len(set(classes)) != outputs:
        raise TeacherError(f"the teacher has {outputs} outputs and does not name as many classes")
    return tuple(classes)


def _newest(versions: object) -> str | None:
    if not isinstance(versions, Sequence) or isinstance(versions, str) or not versions:
        return None
    return str(max(versions, key=lambda v: (int(v) if str(v).isdecimal() else -1, str(v))))
