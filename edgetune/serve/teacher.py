"""
A teacher's process: `python -m edgetune.serve.teacher FILE [--threads N]` loads an ONNX file and answers on its stdout.

It speaks the Open Inference Protocol's JSON and tensors in frames: two little-endian uint32, the lengths of JSON and of
tensor bytes, then both. It begins by describing the model; then each frame on stdin is answered by one on stdout. A fault
is a frame {"error": "..."}. It ends when stdin does: with the trainer, however that dies.

Images are run one at a time: an answer depends on its image alone, whatever is asked about with it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from edgetune.errors import ModelError
from edgetune.serve.engine import open_session

_LENGTHS = struct.Struct("<II")
_NAMES = {"tensor(uint8)": "UINT8", "tensor(float)": "FP32"}
_TYPES: dict[str, np.dtype[Any]] = {"UINT8": np.dtype("u1"), "FP32": np.dtype("<f4")}


def main(argv: list[str] | None = None) -> int:
    """Run the teacher; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m edgetune.serve.teacher", description="Answer for an ONNX file.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the trainer's: it checkpoints, and ends us
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print
    try:
        session = open_session(arguments.file, arguments.threads, spinning=False)
    except ModelError as error:
        _write(output, {"error": error.message})
        return 1
    _write(output, describe(session))
    source = sys.stdin.buffer
    while (lengths := source.read(_LENGTHS.size)) and len(lengths) == _LENGTHS.size:
        header, data = (source.read(size) for size in _LENGTHS.unpack(lengths))
        _write(output, *_answer(session, header, data))
    return 0


def describe(session: Any) -> dict[str, Any]:
    """The model's description; types that the protocol's reader does not know keep ONNX's names."""
    inputs, outputs = (
        [
            {"name": t.name, "datatype": _NAMES.get(t.type, t.type), "shape": [_side(s) for s in t.shape]}
            for t in tensors
        ]
        for tensors in (session.get_inputs(), session.get_outputs())
    )
    return {"name": "teacher", "platform": "onnxruntime_onnx", "inputs": inputs, "outputs": outputs}


def _side(size: object) -> int:
    return size if isinstance(size, int) else -1


def _answer(session: Any, header: bytes, data: bytes) -> tuple[dict[str, Any], bytes]:
    """Run the images of one request, each alone."""
    request = json.loads(header)
    (tensor,), (wanted,) = request["inputs"], request["outputs"]
    images = np.frombuffer(data, dtype=_TYPES[tensor["datatype"]]).reshape(tensor["shape"])
    try:
        rows = [session.run([wanted["name"]], {tensor["name"]: images[i : i + 1]})[0] for i in range(len(images))]
        logits = np.concatenate(rows).astype("<f4")
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base of their own
        return {"error": f"the model failed: {' '.join(str(error).split())}"}, b""
    answer = {"name": wanted["name"], "datatype": "FP32", "shape": list(logits.shape)}
    return {"outputs": [{**answer, "parameters": {"binary_data_size": logits.nbytes}}]}, logits.tobytes()


def _write(output: BinaryIO, value: dict[str, Any], data: bytes = b"") -> None:
    header = json.dumps(value).encode()
    output.write(_LENGTHS.pack(len(header), len(data)) + header + data)
    output.flush()


if __name__ == "__main__":
    sys.exit(main())
