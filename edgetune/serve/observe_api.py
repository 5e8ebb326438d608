"""What can be looked at: health, status, events, rounds, models, metrics."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from edgetune.serve import prometheus
from edgetune.serve.intake import Intake, Query, whole_number
from edgetune.serve.service import Metric, Service

# A silent stream says this often that it is alive; clients and proxies give up after a minute at the earliest.
KEEP_ALIVE_S = 15.0
_EVENTS_AT_ONCE = 100
_LIST_MAX = 1000


class ObserveApi:
    """Reads, and the stream of events."""

    def __init__(self, service: Service, intake: Intake, closing: asyncio.Event) -> None:
        self._service, self._intake, self._closing = service, intake, closing

    async def healthz(self, _request: Request) -> Response:
        """GET /healthz."""
        return JSONResponse(self._service.health())

    async def readyz(self, _request: Request) -> Response:
        """GET /readyz: 503 while predictions cannot be answered."""
        is_ready, why = self._service.readiness()
        return JSONResponse({"ready": is_ready, "why": why}, 200 if is_ready else 503)

    async def metrics(self, _request: Request) -> Response:
        """GET /metrics."""
        text = prometheus.render([*self._service.metrics(), *self._own_metrics()])
        return Response(text, media_type=prometheus.CONTENT_TYPE)

    async def status(self, _request: Request) -> Response:
        """GET /v1/status."""
        return JSONResponse(await self._service.status())

    async def rounds(self, request: Request) -> Response:
        """GET /v1/rounds?limit=."""
        limit = Query(request, ("limit",)).number("limit", 20, least=1, most=_LIST_MAX)
        return JSONResponse(await self._service.rounds(limit))

    async def round(self, request: Request) -> Response:
        """GET /v1/rounds/{id}."""
        return JSONResponse(await self._service.round(whole_number(request.path_params["id"], "round")))

    async def models(self, _request: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse(await self._service.models())

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{version}."""
        return JSONResponse(await self._service.model(whole_number(request.path_params["version"], "version")))

    async def config(self, _request: Request) -> Response:
        """GET /v1/config."""
        return JSONResponse(await self._service.config())

    async def events(self, request: Request) -> Response:
        """GET /v1/events?after=&limit=: server-sent events, or a list where application/json is asked for."""
        query = Query(request, ("after", "limit"))
        last = request.headers.get("last-event-id")  # what a browser's EventSource sends when it comes back
        after = query.number("after", 0 if last is None else whole_number(last, "Last-Event-ID"))
        limit = query.number("limit", _EVENTS_AT_ONCE, least=1, most=_LIST_MAX)
        if "application/json" in request.headers.get("accept", ""):
            return JSONResponse(await self._service.events(after, limit))
        headers = {"cache-control": "no-store"}
        return StreamingResponse(self._stream(after), media_type="text/event-stream", headers=headers)

    async def _stream(self, after: int) -> AsyncIterator[bytes]:
        yield b": edgetune\n\n"  # the head goes out at once, also when nothing has happened yet
        closing: asyncio.Task[Any] = asyncio.create_task(self._closing.wait())
        try:
            while not closing.done():
                batch = await self._service.events(after, _EVENTS_AT_ONCE)
                if batch:
                    after = int(batch[-1]["seq"])
                    yield b"".join(_sse(event) for event in batch)
                elif not await self._wait(after, closing):
                    yield b": alive\n\n"
        finally:
            closing.cancel()

    async def _wait(self, after: int, closing: asyncio.Task[Any]) -> bool:
        """Wait for an event or the server's end; False when neither came for `KEEP_ALIVE_S`."""
        news: asyncio.Task[Any] = asyncio.create_task(self._service.wait_event(after))
        try:
            done, _ = await asyncio.wait({news, closing}, timeout=KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED)
            if news in done:
                news.result()
            return bool(done)
        finally:
            news.cancel()
            await asyncio.wait({news})

    def _own_metrics(self) -> list[Metric]:
        intake = self._intake
        return [
            ("edgetune_http_in_hand", "gauge", "Predictions, tensors and samples in hand.", [({}, intake.in_hand)]),
            ("edgetune_http_body_bytes", "gauge", "Bytes of request bodies in hand.", [({}, intake.bytes_in_hand)]),
            ("edgetune_http_rejected_total", "counter", "Requests answered with 503 for want of room or time.",
             [({}, intake.rejected)]),
        ]  # fmt: skip


def _sse(event: dict[str, Any]) -> bytes:
    text = json.dumps(event, ensure_ascii=False)  # one line: JSON escapes line breaks
    kind = str(event.get("kind", "message")).replace("\r", " ").replace("\n", " ")
    return f"id: {event['seq']}\nevent: {kind}\ndata: {text}\n\n".encode()
