"""Small real teachers: ONNX files that judge an image by its mean colour, and a stand-in server that can misbehave."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

COLOURS = 10.0 * np.eye(3, dtype=np.float32)  # logits red, green, blue of an image's mean in 0..1


def colour_model(
    path: Path,
    *,
    weights: np.ndarray[Any, Any] = COLOURS,
    sides: tuple[int | str, int | str] = (16, 16),
    is_channels_last: bool = False,
    kind: int = TensorProto.FLOAT,
    ending: str = "",
) -> Path:
    """[N, 3, H, W] or [N, H, W, 3] -> mean over the image -> weights -> logits; `ending` is one node more."""
    channels = weights.shape[0]
    shape = ["N", *sides, channels] if is_channels_last else ["N", channels, *sides]
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["mean"], axes=[1, 2] if is_channels_last else [2, 3], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["product"]),
        helper.make_node(ending or "Identity", ["product"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("image", kind, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", weights.shape[1]])],
        [numpy_helper.from_array(weights.astype(np.float32), "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def describe(shape: list[int], outputs: int, datatype: str = "FP32") -> dict[str, Any]:
    """A model's description."""
    return {
        "name": "colours",
        "versions": ["3"],
        "inputs": [{"name": "image", "datatype": datatype, "shape": shape}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, outputs]}],
    }


Fault = Callable[[BaseHTTPRequestHandler], bool]


class StandIn:
    """A server of one model that answers in JSON; `faults` are tried first, each request one."""

    def __init__(self) -> None:
        self.metadata: dict[str, Any] = describe([-1, 3, 16, 16], 3)
        self.extensions: list[str] = []
        self.faults: list[Fault | None] = []  # None: answer this one as it should be
        self.always: Fault | None = None
        self.paths: list[str] = []
        self.asked: list[list[int]] = []  # shapes
        self.port = 0
        self.change: Callable[[dict[str, Any]], None] = lambda _: None

    @property
    def url(self) -> str:
        """Of its model."""
        return f"http://127.0.0.1:{self.port}/v2/models/colours"

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        """What a healthy server says."""
        self.paths.append(path)
        if path == "/v2":
            return {"name": "stand-in", "version": "1", "extensions": self.extensions}
        if not path.endswith("/infer"):
            return self.metadata
        (tensor,) = json.loads(body)["inputs"]
        self.asked.append(tensor["shape"])
        images = np.asarray(tensor["data"], np.float32).reshape(tensor["shape"])
        logits = images.mean(axis=(2, 3)) @ COLOURS
        output = {"name": "logits", "datatype": "FP32", "shape": list(logits.shape), "data": logits.ravel().tolist()}
        answer = {"model_name": "colours", "outputs": [output]}
        self.change(answer)
        return answer


def send(handler: BaseHTTPRequestHandler, status: int, content: bytes, **headers: str) -> None:
    """An answer as it should be sent."""
    handler.send_response(status)
    for name, value in {"content-length": str(len(content)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(content)


@contextlib.contextmanager
def stand_in(tls: ssl.SSLContext | None = None) -> Iterator[StandIn]:
    """Start it on a free port of the loopback address."""
    server = StandIn()
    done = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        is_over = done

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            fault = server.faults.pop(0) if server.faults else server.always
            if fault is not None and fault(self):
                return
            send(self, 200, json.dumps(server.answer(self.path, body)).encode())

        do_POST = do_GET  # noqa: N815 - http.server's names

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that went away is what some tests are about."""

    with Server(("127.0.0.1", 0), Handler) as listening:
        if tls is not None:
            listening.socket = tls.wrap_socket(listening.socket, server_side=True)
        server.port = listening.server_address[1]
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            done.set()
            listening.shutdown()
            thread.join()


def status(code: int) -> Fault:
    """Answers with a status and says nothing useful."""

    def fail(handler: BaseHTTPRequestHandler) -> bool:
        send(handler, code, b"not now")
        return True

    return fail


def hang(handler: BaseHTTPRequestHandler) -> bool:
    """Gives no answer before the test is over."""
    handler.is_over.wait(60)  # type: ignore[attr-defined]
    return True


def trickle(handler: BaseHTTPRequestHandler) -> bool:
    """Keeps each read alive and never comes to an end."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
    while not handler.is_over.wait(0.05):  # type: ignore[attr-defined]
        handler.wfile.write(b" ")
    return True


def break_off(handler: BaseHTTPRequestHandler) -> bool:
    """Announces more than it sends and closes."""
    handler.wfile.write(b'HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{"outputs"')
    handler.close_connection = True
    return True
