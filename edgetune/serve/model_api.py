"""What changes rounds and models: for root and the admin group."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgetune.errors import UsageError
from edgetune.serve.intake import Intake, json_fields, whole_number
from edgetune.serve.service import Service
from edgetune.types import RoundKind


class ModelApi:
    """Rounds, promotion, the operator's pause, and reload."""

    def __init__(self, service: Service, intake: Intake) -> None:
        self._service, self._intake = service, intake

    async def start_round(self, request: Request) -> Response:
        """POST /v1/rounds: 202, because a round takes minutes; 200 for a dry run."""
        async with self._intake.body(request) as body:
            fields = json_fields(body, {"kind": str, "force": bool, "dry_run": bool})
        kind, dry_run = fields.get("kind"), fields.get("dry_run", False)
        kinds = [known.value for known in RoundKind if known is not RoundKind.IMPRINT]  # that one is no one's wish
        if kind is not None and kind not in kinds:
            raise UsageError(f"kind is {kind!r}; it has to be one of {', '.join(kinds)}")
        answer = await self._service.start_round(kind=kind, force=fields.get("force", False), dry_run=dry_run)
        return JSONResponse(answer, 200 if dry_run else 202)

    async def pause(self, _request: Request) -> Response:
        """POST /v1/pause."""
        return JSONResponse(await self._service.pause())

    async def resume(self, _request: Request) -> Response:
        """POST /v1/resume."""
        return JSONResponse(await self._service.resume())

    async def cancel(self, _request: Request) -> Response:
        """POST /v1/cancel."""
        return JSONResponse(await self._service.cancel())

    async def promote(self, request: Request) -> Response:
        """POST /v1/models/{version}/promote."""
        return JSONResponse(await self._service.promote(whole_number(request.path_params["version"], "version")))

    async def rollback(self, _request: Request) -> Response:
        """POST /v1/rollback."""
        return JSONResponse(await self._service.rollback())

    async def reload(self, _request: Request) -> Response:
        """POST /v1/reload."""
        return JSONResponse(await self._service.reload())
