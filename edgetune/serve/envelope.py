"""One shape for every error that leaves the service: {"error": {"code", "message", "hint"}}."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from edgetune.errors import BusyError, EdgetuneError

if TYPE_CHECKING:
    from starlette.types import ExceptionHandler

RETRY_AFTER_S = 1

_HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}
_HTTP_SENTENCES = {404: "there is no such path", 405: "this path does not take that method"}


def error_body(code: str, message: str, hint: str = "") -> bytes:
    """The envelope as JSON."""
    return json.dumps({"error": {"code": code, "message": message, "hint": hint}}, ensure_ascii=False).encode()


def error_response(error: EdgetuneError) -> Response:
    """The answer to a request that failed with an error of the tree."""
    headers = {"retry-after": str(RETRY_AFTER_S)} if isinstance(error, BusyError) else {}
    body = error_body(error.code, error.message, error.hint)
    return Response(body, error.http_status, headers, "application/json")


async def _from_tree(_request: Request, error: Exception) -> Response:
    assert isinstance(error, EdgetuneError)
    return error_response(error)


async def _from_starlette(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _HTTP_CODES.get(error.status_code, "usage")
    message = f"{request.method} {request.url.path}: {_HTTP_SENTENCES.get(error.status_code, error.detail)}"
    body = error_body(code, message, "see docs/http-api.md")
    return Response(body, error.status_code, error.headers, "application/json")


async def _from_nowhere(_request: Request, _error: Exception) -> Response:
    """Starlette raises the error again after this answer, and uvicorn writes it to the log with its traceback."""
    hint = "the log has the details: journalctl -u edgetune"
    return Response(error_body("internal", "edgetune failed at this request", hint), 500, media_type="application/json")


async def _from_a_gone_client(_request: Request, _error: Exception) -> Response:
    return JSONResponse(None)  # nobody reads it


EXCEPTION_HANDLERS: dict[int | type[Exception], ExceptionHandler] = {
    EdgetuneError: _from_tree,
    HTTPException: _from_starlette,
    ClientDisconnect: _from_a_gone_client,
    Exception: _from_nowhere,
}
