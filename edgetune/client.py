"""The client of the daemon's socket, on `http.client`: it has to be there at once on a Raspberry Pi."""

from __future__ import annotations

import errno
import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from edgetune.errors import BusyError, DaemonNotRunningError, EdgetuneError, ForbiddenError

# The daemon says something on a silent stream every 15 s.
_STREAM_TIMEOUT_S = 60.0


class Client:
    """
    Talks to the daemon; one connection a call, so that a client can be kept for ever and used by many threads.

    Every method raises the `EdgetuneError` that the daemon named, `DaemonNotRunningError` when it does not answer,
    and `ForbiddenError` when the socket may not be opened.
    """

    def __init__(self, socket_path: Path | str, timeout_s: float = 60.0) -> None:
        self._path, self._timeout_s = Path(socket_path), timeout_s

    def patient(self, timeout_s: float) -> Client:
        """The same with another patience, for an answer that takes work."""
        return Client(self._path, timeout_s)

    def get(self, path: str, **query: object) -> Any:
        """Read; JSON comes back decoded, other text as it is, bytes as bytes. A query of None is left out."""
        return self._ask("GET", path, None, {"accept": "application/json"}, query)

    def post(self, path: str, body: bytes | Mapping[str, object] | None = None, **query: object) -> Any:
        """Send bytes, a JSON object, or nothing."""
        headers = {"accept": "application/json"}
        if isinstance(body, Mapping):
            headers["content-type"] = "application/json"
            body = json.dumps(body).encode()
        elif body is not None:
            headers["content-type"] = "application/octet-stream"
        return self._ask("POST", path, body or b"", headers, query)

    def stream_events(self, after: int = 0) -> Iterator[dict[str, Any]]:
        """Events with a "seq" above `after`, and then each as it happens; ends when the daemon stops."""
        connection = _UnixConnection(self._path, max(self._timeout_s, _STREAM_TIMEOUT_S))
        try:
            response = self._exchange(
                connection, "GET", f"/v1/events?after={after}", None, {"accept": "text/event-stream"}
            )
            if response.status >= 400:
                raise _error(response.status, response.read())
            for line in _lines(response):
                if line.startswith(b"data:"):
                    yield json.loads(line[5:])
        finally:
            connection.close()

    def _ask(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], query: Mapping[str, object]
    ) -> Any:
        connection = _UnixConnection(self._path, self._timeout_s)
        try:
            response = self._exchange(connection, method, path + _query(query), body, headers)
            content = _read(response)
        finally:
            connection.close()
        if response.status >= 400 and path != "/readyz":  # whose 503 is its answer
            raise _error(response.status, content)
        if response.headers.get_content_type() == "application/json":
            return json.loads(content)
        return content if response.headers.get_content_type() == "application/octet-stream" else content.decode()

    def _exchange(
        self, connection: _UnixConnection, method: str, target: str, body: bytes | None, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        try:
            try:
                connection.request(method, target, body, dict(headers))
            except (BrokenPipeError, ConnectionResetError):
                # The daemon has answered before it took the whole body (too large, too busy): read what it said. After
                # a failed send http.client would not let us, hence the response object of our own.
                if connection.sock is None:
                    raise
                response = http.client.HTTPResponse(connection.sock, method=method)
                response.begin()
                return response
            return connection.getresponse()
        except TimeoutError as error:
            raise DaemonNotRunningError(
                f"the edgetune daemon did not answer within {self._timeout_s:g} s",
                hint="see what it does: journalctl -u edgetune",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise _not_answered(self._path, error) from error


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(self.timeout)
            connection.connect(str(self._path))
        except BaseException:
            connection.close()
            raise
        self.sock = connection


def _query(query: Mapping[str, object]) -> str:
    given = {name: str(value).lower() if isinstance(value, bool) else value for name, value in query.items()}
    text = urlencode({name: value for name, value in given.items() if value is not None})
    return f"?{text}" if text else ""


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read()
    except (OSError, http.client.HTTPException) as error:
        raise DaemonNotRunningError("the edgetune daemon closed the connection in the middle of its answer") from error


def _lines(response: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while line := response.readline():
            yield line
    except (OSError, http.client.HTTPException) as error:
        raise DaemonNotRunningError("the edgetune daemon closed the stream of events") from error


def _not_answered(path: Path, error: Exception) -> EdgetuneError:
    number = getattr(error, "errno", None)
    if number == errno.EACCES:
        return ForbiddenError(
            f"you may not open the socket {path}",
            hint="join its group (sudo usermod -aG edgetune $USER) and log in again, or use sudo",
        )
    if number == errno.EAGAIN:
        return BusyError(f"too many connections wait on {path}")
    if number in {errno.ENOENT, errno.ECONNREFUSED}:
        return DaemonNotRunningError(f"the edgetune daemon does not answer on {path}")
    return DaemonNotRunningError(f"the connection to {path} broke: {str(error) or type(error).__name__}")


def _error(status: int, content: bytes) -> EdgetuneError:
    """The error of the tree that the daemon named by its code."""
    try:
        fields = json.loads(content)["error"]
        code, message, hint = str(fields["code"]), str(fields["message"]), str(fields["hint"])
    except (ValueError, KeyError, TypeError):
        return EdgetuneError(f"the daemon answered {status} without saying why")
    return _by_code().get(code, EdgetuneError)(message, hint=hint)


def _by_code() -> dict[str, type[EdgetuneError]]:
    kinds = [EdgetuneError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    # A subclass that adds no code of its own must not stand for the class that has it.
    return {kind.code: kind for kind in reversed(kinds)}
