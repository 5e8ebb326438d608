"""
The HTTP interface: paths, who may use them, and how a request becomes a call of the service.

docs/http-api.md describes it for people; a test compares its table with `endpoints`.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgetune.errors import ForbiddenError
from edgetune.serve.data_api import DataApi
from edgetune.serve.envelope import EXCEPTION_HANDLERS
from edgetune.serve.intake import Intake
from edgetune.serve.model_api import ModelApi
from edgetune.serve.observe_api import ObserveApi
from edgetune.serve.peer import Access, Caller
from edgetune.serve.service import ApiLimits, Service
from edgetune.serve.work_api import WorkApi

Endpoint = Callable[[Request], Awaitable[Response]]

_LOOPBACK_HOST = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiEndpoint:
    """One method of one path."""

    method: str
    path: str
    needs_admin: bool
    answer: Endpoint


def endpoints(service: Service, intake: Intake, closing: asyncio.Event) -> list[ApiEndpoint]:
    """Every method of every path; the busiest first, because they are searched in order."""
    work, observe, data = WorkApi(service, intake), ObserveApi(service, intake, closing), DataApi(service, intake)
    model = ModelApi(service, intake)
    member = [
        ("POST", "/v1/predict", work.predict),
        ("POST", "/v2/models/{name}/infer", work.infer),
        ("POST", "/v2/models/{name}/versions/{version}/infer", work.infer),
        ("POST", "/v1/predictions/{id}/label", work.label_prediction),
        ("POST", "/v1/samples", work.add_sample),
        ("GET", "/healthz", observe.healthz),
        ("GET", "/readyz", observe.readyz),
        ("GET", "/metrics", observe.metrics),
        ("GET", "/v1/status", observe.status),
        ("GET", "/v1/events", observe.events),
        ("GET", "/v1/rounds", observe.rounds),
        ("GET", "/v1/rounds/{id}", observe.round),
        ("GET", "/v1/models", observe.models),
        ("GET", "/v1/models/{version}", observe.model),
        ("GET", "/v1/config", observe.config),
        ("GET", "/v1/data/samples", data.samples),
        ("GET", "/v1/data/next", data.next),
        ("GET", "/v1/data/classes", data.classes),
        ("GET", "/v2", work.server_metadata),
        ("GET", "/v2/health/live", work.is_live),
        ("GET", "/v2/health/ready", work.is_ready),
        ("GET", "/v2/models/{name}", work.model_metadata),
        ("GET", "/v2/models/{name}/ready", work.is_model_ready),
        ("GET", "/v2/models/{name}/versions/{version}", work.model_metadata),
        ("GET", "/v2/models/{name}/versions/{version}/ready", work.is_model_ready),
    ]
    admin = [
        ("POST", "/v1/rounds", model.start_round),
        ("POST", "/v1/pause", model.pause),
        ("POST", "/v1/resume", model.resume),
        ("POST", "/v1/cancel", model.cancel),
        ("POST", "/v1/models/{version}/promote", model.promote),
        ("POST", "/v1/rollback", model.rollback),
        ("POST", "/v1/reload", model.reload),
        ("POST", "/v1/data/classes/{name}/accept", data.accept),
        ("POST", "/v1/data/classes/{name}/refuse", data.refuse),
        ("GET", "/v1/data/samples/{sample}/image", data.image),
        ("POST", "/v1/data/samples/{sample}/label", data.label),
        ("POST", "/v1/data/purge", data.purge),
        ("POST", "/v1/data/export", data.export),
        ("POST", "/v1/data/backup", data.backup),
    ]
    return [
        ApiEndpoint(method=method, path=path, needs_admin=needs_admin, answer=answer)
        for needs_admin, table in ((False, member), (True, admin))
        for method, path, answer in table
    ]


def build_app(service: Service, limits: ApiLimits) -> Starlette:
    """
    Make the application that `SocketServer` serves.

    Its `state` carries `intake` (the counters of what is in hand and was rejected), `closing` (set when the server
    stops, which ends event streams) and `access` (set by the server from its groups).
    """
    intake, closing = Intake(limits), asyncio.Event()
    by_path: dict[str, dict[str, ApiEndpoint]] = {}
    for endpoint in endpoints(service, intake, closing):
        by_path.setdefault(endpoint.path, {})[endpoint.method] = endpoint
    routes = [Route(path, _dispatch(methods), methods=list(methods)) for path, methods in by_path.items()]
    app = Starlette(routes=routes, exception_handlers=EXCEPTION_HANDLERS)
    app.router.redirect_slashes = False
    app.state.intake, app.state.closing = intake, closing
    app.state.access = Access(own_uid=os.geteuid(), group_gid=os.getegid())
    return app


def _dispatch(methods: dict[str, ApiEndpoint]) -> Endpoint:
    async def answer(request: Request) -> Response:
        endpoint = methods["GET" if request.method == "HEAD" else request.method]
        _authorise(request, endpoint)
        return await endpoint.answer(request)

    return answer


def _authorise(request: Request, endpoint: ApiEndpoint) -> None:
    access: Access = request.app.state.access
    caller: Caller = request.state.caller
    if caller.uid is None:
        _refuse_browsers(request)
    if endpoint.needs_admin and not access.is_admin(caller):
        raise ForbiddenError(f"{endpoint.method} {endpoint.path} is for root and the admin group")
    if not access.is_member(caller):
        hint = "add the user to the socket's group (serving.socket_group) and log in again"
        raise ForbiddenError("the caller is not a member of the socket's group", hint=hint)


def _refuse_browsers(request: Request) -> None:
    """A web page can make a browser on this board send requests to the loopback address; it cannot hide that."""
    host = request.headers.get("host", "")
    if "origin" in request.headers or not _LOOPBACK_HOST.fullmatch(host):
        hint = "use the address itself, without a browser: http://127.0.0.1:PORT"
        raise ForbiddenError("requests of web pages are refused", hint=hint)
