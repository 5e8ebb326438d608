"""A small real model, a fake service around it, and the real server on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgetune.errors import ConflictError, ImageError, NotFoundError
from edgetune.serve.api import build_app
from edgetune.serve.engine import Engine, Served, rank
from edgetune.serve.server import SocketServer
from edgetune.serve.service import ApiLimits, Inferred
from edgetune.types import Answer, Cost, Manifest, Preprocess
from edgetune.wire import to_json

SIZE = 8
CLASSES = ("cat", "dog", "fish")


def model_bytes(
    *, seed: int = 0, classes: int = len(CLASSES), size: int = SIZE, kind: int = TensorProto.UINT8
) -> bytes:
    """uint8 [N, size, size, 3] -> float -> mean over the image -> linear -> logits [N, classes]."""
    weights = np.random.default_rng(seed).normal(size=(3, classes)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", kind, ["N", size, size, 3])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", classes])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def write_version(
    directory: Path, version: int = 1, *, model: bytes | None = None, marks: dict[str, str] | None = None, **record: Any
) -> Path:
    """A published version, with a self-test recorded from the very model."""
    directory.mkdir(parents=True)
    (directory / "model.onnx").write_bytes(model_bytes(seed=version) if model is None else model)
    manifest = Manifest(
        version=version, kind="factory", architecture="tiny", classes=CLASSES,
        preprocess=Preprocess(height=SIZE, width=SIZE), parent=None, generation=0, round_id=None,
        created_at="2026-01-01T00:00:00Z", files={}, cost=Cost(parameters=9, macs=9, onnx_bytes=1),
        marks=marks or {},
    )  # fmt: skip
    (directory / "manifest.json").write_bytes(to_json(manifest))
    if not record and model is None:
        images = np.random.default_rng(1).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
        record = {"images": images, "logits": Engine.load(directory, threads=1).predict(images)}
    np.savez(directory / "selftest.npz", **record)
    return directory


class FakeService:
    """The daemon's part, small: one engine behind `Served`, and a note of every call."""

    def __init__(self, engine: Engine | None) -> None:
        self.served = Served(engine)
        self.calls: list[tuple[str, Any]] = []
        self.log: list[dict[str, Any]] = []
        self.hold = asyncio.Event()  # predictions wait for it when `is_held`
        self.is_held = False
        self.rejected: tuple[int, ...] = ()  # rows that nobody is sure of

    async def predict(self, image: bytes, *, top_k: int, record: bool = True) -> Answer:
        self.calls.append(("predict", (len(image), top_k, record)))
        if self.is_held:
            await self.hold.wait()
        if image == b"boom":
            raise RuntimeError("secret detail")
        if image == b"not an image":
            raise ImageError("this is not an image", hint="send a JPEG")
        with self.served.use() as engine:
            pixels = np.frombuffer(image.ljust(SIZE * SIZE * 3, b"\0"), np.uint8)[: SIZE * SIZE * 3]
            logits = engine.predict(pixels.reshape(1, SIZE, SIZE, 3))[0]
            return Answer(
                prediction_id="p1",
                model_version=engine.version,
                top=rank(logits, engine.classes, top_k),
                latency_ms=1.0,
                marks=engine.manifest.marks,
                is_rejected=bool(self.rejected),
            )

    async def infer(self, model_version: int | None, images: Any) -> Inferred:
        def work() -> Inferred:
            with self.served.use() as engine:
                if model_version not in {None, engine.version}:
                    raise NotFoundError(f"version {model_version} is not served")
                return Inferred(engine.manifest, engine.predict(images), self.rejected)

        return await asyncio.to_thread(work)

    def manifest(self) -> Manifest | None:
        engine = self.served.engine
        return None if engine is None else engine.manifest

    def health(self) -> dict[str, Any]:
        return {"ok": True}

    def readiness(self) -> tuple[bool, str]:
        return (True, "") if self.served.engine else (False, "no model")

    async def events(self, after: int, limit: int) -> list[dict[str, Any]]:
        return [event for event in self.log if event["seq"] > after][:limit]

    async def wait_event(self, after: int) -> None:
        while not await self.events(after, 1):  # noqa: ASYNC110 - a fake, polled from another thread
            await asyncio.sleep(0.005)

    async def round(self, id: int) -> dict[str, Any]:  # noqa: A002 - the protocol's name
        raise NotFoundError(f"there is no round {id}")

    async def rollback(self) -> dict[str, Any]:
        raise ConflictError("there is nothing to go back to")

    async def data_image(self, sample: str) -> bytes:
        return f"the image of {sample}".encode()

    def metrics(self) -> list[Any]:
        return [("edgetune_x", "gauge", 'a "b"\nc\\', [({"class": 'a"b\\c\nd'}, 1.5), ({"class": "u"}, None)])]

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Everything else answers with what it was asked."""
        if name.startswith("_"):
            raise AttributeError(name)

        async def note(*args: Any, **fields: Any) -> dict[str, Any]:
            self.calls.append((name, (args, fields)))
            shown = [len(arg) if isinstance(arg, bytes) else arg for arg in args]
            return {"called": name, "args": shown, **fields}

        return note


class Running:
    """A server in an event loop of its own thread."""

    def __init__(self, path: Path, service: FakeService, loop: asyncio.AbstractEventLoop, server: SocketServer) -> None:
        self.path, self.service, self.loop, self.server = path, service, loop, server

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a function in the server's loop and wait for it."""

        async def run() -> Any:
            return function(*args)

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)


@contextlib.contextmanager
def serving(path: Path, engine: Engine | None, limits: ApiLimits | None = None, **options: Any) -> Iterator[Running]:
    """Start the real server; stop it at the end."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    limits = limits or ApiLimits()

    async def start() -> Running:
        service = FakeService(engine)
        rights = {"group": None, "admin_group": None} | options
        server = SocketServer(build_app(service, limits), path, limits=limits, **rights)
        await server.start()
        return Running(path, service, loop, server)

    try:
        running = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
        try:
            yield running
        finally:
            asyncio.run_coroutine_threadsafe(running.server.stop(grace_s=2), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
