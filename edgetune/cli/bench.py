"""`edgetune bench`: the served version in the bare engine and through the socket, in turn."""

from __future__ import annotations

import http.client
import io
import json
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune.cli.base import SOCKET_META, columns, emit, with_json, with_socket
from edgetune.client import Client
from edgetune.errors import EdgetuneError, NoModelError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgetune.types import Latency

    Images = npt.NDArray[np.uint8]

_TIMEOUT_S = 60.0
_IMAGES = 8  # different ones, so that no cache answers for the model


@click.command()
@with_socket
@with_json
@click.option(
    "--runs",
    "-n",
    type=click.IntRange(min=5, max=100_000),
    default=100,
    show_default=True,
    help="Predictions of each kind.",
)
@click.pass_context
def bench(ctx: click.Context, client: Client, *, runs: int, as_json: bool) -> None:
    """
    Time the served version. In the bare engine, and through the socket as tensors and as PNG images.

    It has to be allowed to read the state directory; nothing is recorded.
    """
    import numpy as np

    from edgetune.config import Config, serving_threads
    from edgetune.serve.engine import Engine
    from edgetune.serve.timing import time_interleaved

    served, config = client.get("/v1/status")["served"], client.get("/v1/config")
    if served is None:
        raise NoModelError
    directory = Path(config["paths"]["state_dir"]) / "models" / f"v{served['version']:06}"
    threads = config["serving"]["threads"] or serving_threads(Config())
    engine = Engine.load(directory, threads=threads, spinning=config["serving"]["spinning"])
    connection = _Connection(ctx.meta[SOCKET_META])
    try:
        size = engine.manifest.preprocess
        images = np.random.default_rng(0).integers(0, 256, (_IMAGES, size.height, size.width, 3), dtype=np.uint8)
        ways: dict[str, Callable[[Images], object]] = {
            "in the engine": engine.predict,
            "socket, tensor": connection.infer,
            "socket, PNG": connection.png_sender(images),
        }
        timed = dict(zip(ways, time_interleaved(list(ways.values()), images, runs=runs), strict=True))
    finally:
        connection.close()
        engine.close()
    head = {"version": served["version"], "height": size.height, "width": size.width, "threads": threads, "runs": runs}
    answer = {
        **head,
        "ways": {name: {"median_ms": taken.median_ms, "p90_ms": taken.p90_ms} for name, taken in timed.items()},
    }
    emit(answer, _words(head, timed), as_json=as_json)


def _words(head: Mapping[str, int], timed: Mapping[str, Latency]) -> str:
    lines = [("", "median", "9 of 10 within", "a second")]
    lines += [
        (name, f"{taken.median_ms:.3f} ms", f"{taken.p90_ms:.3f} ms", f"{1000 / taken.median_ms:.0f}")
        for name, taken in timed.items()
    ]
    return (
        f"version {head['version']}, {head['height']}x{head['width']}, {head['threads']} threads,"
        f" {head['runs']} predictions each, one at a time\n\n{columns(lines, right=(1, 2, 3))}"
    )


class _Connection(http.client.HTTPConnection):
    """One connection to the socket that stays open, as an application's would; `Client` makes one a call."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        """Open the Unix socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)

    def infer(self, batch: Images) -> None:
        """Send uint8 [1, H, W, 3] in the binary form of the Open Inference Protocol."""
        header: dict[str, Any] = {
            "inputs": [
                {
                    "name": "images",
                    "datatype": "UINT8",
                    "shape": list(batch.shape),
                    "parameters": {"binary_data_size": batch.nbytes},
                }
            ],
            "outputs": [{"name": "logits", "parameters": {"binary_data": True}}],
        }
        text = json.dumps(header).encode()
        self._send(
            "/v2/models/edgetune/infer", text + batch.tobytes(), {"inference-header-content-length": str(len(text))}
        )

    def png_sender(self, images: Images) -> Callable[[Images], None]:
        """Make the files beforehand, so that encoding them is not timed."""
        from PIL import Image

        files = {}
        for image in images:
            file = io.BytesIO()
            Image.fromarray(image).save(file, "PNG", compress_level=1)
            files[image.tobytes()] = file.getvalue()
        return lambda batch: self._send("/v1/predict?top_k=1&record=false", files[batch.tobytes()], {})

    def _send(self, target: str, body: bytes, headers: Mapping[str, str]) -> None:
        self.request("POST", target, body, {"content-type": "application/octet-stream", **headers})
        response = self.getresponse()
        content = response.read()
        if response.status != http.client.OK:
            raise EdgetuneError(f"the daemon answered {response.status}: {content[:200].decode(errors='replace')}")
