"""uvicorn's HTTP/1.1 protocol with what it lacks: the caller's identity, time-outs, a limit that answers in JSON."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from edgetune.serve.envelope import RETRY_AFTER_S, error_body
from edgetune.serve.peer import Access, Caller, read_caller
from edgetune.serve.service import ApiLimits

_log = logging.getLogger("edgetune.serve")

# Root and the admin group may open this many connections more than `connections_max`, and as many again are told
# that the service is full before further ones are simply closed.
RESERVED_CONNECTIONS = 8

_REASONS = {400: b"Bad Request", 408: b"Request Timeout", 503: b"Service Unavailable"}


class CallerProtocol(H11Protocol):
    """
    One connection.

    The caller is read once, at connect, and stands in the ASGI scope's `state["caller"]` of each request. A request's
    head must be complete `header_timeout_s` after its first byte (or after the connect), its body `body_timeout_s`
    after its head: deadlines, which a byte now and then does not move. A client that stops reading its answer is
    dropped after `request_timeout_s`.
    """

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any], *, limits: ApiLimits, access: Access
    ) -> None:
        super().__init__(config, server_state, app_state)
        self._limits, self._access = limits, access
        self._awaited = ""  # "head", "body", or nothing
        self._deadline: asyncio.TimerHandle | None = None
        self._write_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's own
        """Read who calls, and refuse what is one connection too many."""
        super().connection_made(transport)
        try:
            caller = read_caller(transport.get_extra_info("socket"))
        except OSError as error:  # gone already
            _log.debug("peer credentials: %s", error)
            transport.abort()
            return
        self.app_state = {**self.app_state, "caller": caller}
        self._refuse_surplus(caller, transport)
        self._await("head", self._limits.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave no timer behind."""
        self._await("", 0.0)
        self._cancel_write_deadline()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def handle_events(self) -> None:
        """Let uvicorn work off what has arrived, then see what is still awaited."""
        super().handle_events()
        state = self.conn.their_state
        if state is h11.SEND_BODY:
            self._await("body", self._limits.body_timeout_s)
        elif state is h11.IDLE and self.conn.trailing_data[0]:
            self._await("head", self._limits.header_timeout_s)
        else:
            self._await("", 0.0)

    def pause_writing(self) -> None:
        """The client does not read: give it so long and no longer."""
        super().pause_writing()
        if self._write_deadline is None:
            self._write_deadline = self.loop.call_later(self._limits.request_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        self._cancel_write_deadline()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, in the envelope."""
        self._answer_and_close(400, "usage", msg)

    def shutdown(self) -> None:
        """The server stops: let a request in flight finish, and close what waits."""
        if not self.transport.is_closing():
            super().shutdown()

    def _refuse_surplus(self, caller: Caller, transport: asyncio.Transport) -> None:
        allowed = self._limits.connections_max
        if self._access.is_admin(caller):
            allowed += RESERVED_CONNECTIONS
        surplus = len(self.connections) - allowed
        if surplus > RESERVED_CONNECTIONS:
            transport.abort()
        elif surplus > 0:
            self._answer_and_close(503, "busy", f"{allowed} connections are open already", "close some, or try again")

    def _await(self, what: str, timeout_s: float) -> None:
        if what == self._awaited:
            return
        self._awaited = what
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if what:
            self._deadline = self.loop.call_later(timeout_s, self._time_out)

    def _time_out(self) -> None:
        self._answer_and_close(408, "too_slow", f"the request's {self._awaited} did not arrive in time")

    def _cancel_write_deadline(self) -> None:
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None

    def _answer_and_close(self, status: int, code: str, message: str, hint: str = "") -> None:
        """Answer outside of a request, unless an answer has begun already."""
        if self.transport.is_closing():
            return
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.abort()
            return
        body = error_body(code, message, hint)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        if status == 503:
            headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
        for event in (
            h11.Response(status_code=status, headers=headers, reason=_REASONS[status]),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None:
            self.cycle.disconnected = True  # its application may not answer a second time
            self.cycle.message_event.set()
        self.transport.close()
