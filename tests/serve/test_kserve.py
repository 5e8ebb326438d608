"""The Open Inference Protocol, and Prometheus' text."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_fakes import CLASSES, SIZE, Running

from edgetune.client import Client
from edgetune.errors import UsageError
from edgetune.serve import kserve, prometheus
from edgetune.serve.engine import Engine

SHAPE = [2, SIZE, SIZE, 3]
PIXELS = np.random.default_rng(5).integers(0, 256, SHAPE, dtype=np.uint8)


def tensor(**changes: Any) -> dict[str, Any]:
    """An input tensor as JSON, changed in the named fields."""
    fields = {"name": "images", "datatype": "UINT8", "shape": SHAPE, "data": PIXELS.ravel().tolist()} | changes
    return {name: value for name, value in fields.items() if value is not None}


def binary(tail: bytes = PIXELS.tobytes(), size: object = PIXELS.size, **request: Any) -> tuple[bytes, str]:
    """A request with the pixels behind the JSON, and the length of its head."""
    header = json.dumps({"inputs": [tensor(data=None, parameters={"binary_data_size": size})]} | request).encode()
    return header + tail, str(len(header))


def test_the_metadata_says_what_the_model_takes(running: Running) -> None:
    """A generic client learns names, types and shapes."""
    client = Client(running.path)
    assert client.get("/v2")["extensions"] == ["binary_tensor_data"]
    got = client.get("/v2/models/edgetune/versions/1")
    assert got["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, SIZE, SIZE, 3]}]
    assert got["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}]
    assert got["parameters"]["classes"] == list(CLASSES)
    assert client.get("/v2/models/edgetune/ready")["ready"] is True


@pytest.mark.parametrize("data", [PIXELS.tolist(), PIXELS.ravel().tolist()])
def test_json_tensors_come_back_as_the_engines_logits(running: Running, version_dir: Path, data: list[Any]) -> None:
    """Nested or flat, the answer is the engine's."""
    answer = Client(running.path).post("/v2/models/edgetune/infer", {"id": "a", "inputs": [tensor(data=data)]})
    (output,) = answer["outputs"]
    logits = Engine.load(version_dir, threads=1).predict(PIXELS)
    np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), logits, rtol=1e-6)
    assert (answer["id"], answer["model_version"], output["name"]) == ("a", "1", "logits")


@pytest.mark.parametrize("shape", [(2, 110, 110, 3), (1, 200, 200, 3), (22_000, 1, 1, 3)])
@pytest.mark.parametrize("is_flat", [True, False])
def test_long_json_is_read_to_the_same_tensor(shape: tuple[int, ...], *, is_flat: bool) -> None:
    """However many rows make a piece; one wrong value, or one row too short, anywhere in it is found."""
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def read(data: list[Any]) -> Any:
        request = {"inputs": [tensor(shape=list(shape), data=data)]}
        return kserve.parse_request(json.dumps(request).encode(), None).images

    data = pixels.ravel().tolist() if is_flat else pixels.tolist()
    np.testing.assert_array_equal(read(data), pixels)
    last = data if is_flat else data[-1][-1][-1]
    for wrong in (256, -1, 0.5, [1]):
        last[-1] = wrong
        with pytest.raises(UsageError, match=r"^data "):
            read(data)
    last.pop()
    with pytest.raises(UsageError, match=r"^data "):
        read(data)


def test_small_requests_are_answered_while_a_long_one_is_read(running: Running) -> None:
    """From the last byte of three million numbers until they are a tensor, one after another has its answer."""
    shape = [15_000, SIZE, SIZE, 3]
    body = json.dumps({"inputs": [tensor(shape=shape, data=[7] * int(np.prod(shape)))]}).encode()
    head = f"POST /v2/models/edgetune/infer HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n"
    client, is_read, answer = Client(running.path), threading.Event(), running.service.infer

    async def infer(version: int | None, images: Any) -> Any:
        is_read.set()
        return await answer(version, images)

    running.service.infer = infer
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(running.path))
        connection.sendall(head.encode() + body[:-1])
        while f"edgetune_http_body_bytes {len(body) - 1}\n" not in client.get("/metrics"):
            pass
        connection.sendall(body[-1:])
        answered = 0
        while not is_read.is_set():
            client.get("/healthz")
            answered += 1
        assert connection.recv(12) == b"HTTP/1.1 200"
    assert answered > 5


def test_binary_tensors_go_in_and_come_out(running: Running, version_dir: Path) -> None:
    """The binary extension over the real socket, bit for bit."""
    body, length = binary(parameters={"binary_data_output": True})
    head = (
        f"POST /v2/models/edgetune/versions/1/infer HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
        f"content-length: {len(body)}\r\ninference-header-content-length: {length}\r\n\r\n"
    )
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(running.path))
        connection.sendall(head.encode() + body)
        raw = b"".join(iter(lambda: connection.recv(65536), b""))
    answer_head, _, content = raw.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in answer_head.split(b"\r\n")[1:])
    size = int(fields[b"inference-header-content-length"])
    (output,) = json.loads(content[:size])["outputs"]
    assert output["parameters"]["binary_data_size"] == len(content) - size == 2 * len(CLASSES) * 4
    got = np.frombuffer(content[size:], "<f4").reshape(output["shape"])
    np.testing.assert_array_equal(got, Engine.load(version_dir, threads=1).predict(PIXELS))


def test_a_binary_tensor_is_a_view_of_the_body() -> None:
    """No copy is made of what was received."""
    body, length = binary()
    images = kserve.parse_request(body, length).images
    assert np.shares_memory(images, np.frombuffer(body, np.uint8))
    np.testing.assert_array_equal(images, PIXELS)


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (b"", None),
        (b"null", None),
        (b"{}", None),
        (json.dumps({"inputs": [tensor(), tensor()]}).encode(), None),
        *[
            (json.dumps({"inputs": [tensor(**change)]}).encode(), None)
            for change in (
                {"name": "image"}, {"datatype": "FP32"}, {"shape": [2, SIZE, SIZE]}, {"shape": [-1, SIZE, SIZE, 3]},
                {"shape": [True, SIZE, SIZE, 3]}, {"shape": None}, {"data": None}, {"data": [1, 2]}, {"data": "abc"},
                {"data": [[1], [1, 2]]}, {"data": [256] * PIXELS.size}, {"data": [-1] * PIXELS.size},
                {"data": [0.5] * PIXELS.size}, {"data": [True] * PIXELS.size}, {"parameters": 3},
                {"data": [2**70] * PIXELS.size}, {"shape": [2**60, SIZE, SIZE, 3]}, {"data": PIXELS[:1].tolist()},
                {"data": PIXELS.tolist(), "shape": [2, SIZE, 3, SIZE]}, {"data": [PIXELS[0].tolist(), [1]]},
            )
        ],
        (json.dumps({"inputs": [tensor()], "outputs": [{"name": "x"}]}).encode(), None),
        (json.dumps({"inputs": [tensor()], "outputs": 3}).encode(), None),
        (json.dumps({"inputs": [tensor()], "id": 3}).encode(), None),
        (json.dumps({"inputs": [tensor()], "parameters": {"binary_data_output": 1}}).encode(), None),
        binary(tail=b"short"),
        binary(tail=PIXELS.tobytes() + b"x"),
        binary(size="384"),
        binary(size=-1),
        (binary()[0], "999999999999999999999"),
        (binary()[0], "-1"),
        (binary()[0], "x"),
        (binary()[0], None),
    ],
)  # fmt: skip
def test_what_is_not_the_protocol_is_refused(body: bytes, length: str | None) -> None:
    """A wrong request is the client's mistake, never a crash."""
    with pytest.raises(UsageError):
        kserve.parse_request(body, length)


def test_the_output_says_how_it_wants_to_be_sent() -> None:
    """An output's own binary_data wins over the request's."""
    body, length = binary(
        parameters={"binary_data_output": True}, outputs=[{"name": "logits", "parameters": {"binary_data": False}}]
    )
    assert not kserve.parse_request(body, length).wants_binary


def test_metrics_escape_and_leave_out_the_unknown(running: Running) -> None:
    """Help and labels survive quotes, backslashes and line breaks; a value that is not known is not zero."""
    text = Client(running.path).get("/metrics")
    assert text.startswith(
        '# HELP edgetune_x a "b"\\nc\\\\\n# TYPE edgetune_x gauge\nedgetune_x{class="a\\"b\\\\c\\nd"} 1.5\n# HELP'
    )
    assert "edgetune_http_in_hand 0\n" in text


def test_numbers_are_written_as_prometheus_reads_them() -> None:
    """Whole numbers, infinities and NaN; a metric without a known sample is left out; a bad name is our mistake."""
    values = [
        ({"i": str(i)}, value) for i, value in enumerate([1, 2.5, float("inf"), float("-inf"), float("nan"), 1e300])
    ]
    lines = prometheus.render([("a_total", "counter", "h", values), ("b", "gauge", "h", [({}, None)])]).splitlines()
    assert [line.split()[-1] for line in lines[2:]] == ["1", "2.5", "+Inf", "-Inf", "NaN", "1e+300"]
    for bad in [("1a", "gauge", "h", []), ("a", "odd", "h", []), ("a", "gauge", "h", [({"x-y": "1"}, 1.0)])]:
        with pytest.raises(ValueError, match="not a"):
            prometheus.render([bad])
