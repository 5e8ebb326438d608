"""
A server as a teacher: any that speaks the Open Inference Protocol. The only code of a round that opens a socket.

One named host: redirects are not followed, proxies of the environment are not used, certificates are verified, and
without TLS only this board itself is spoken to.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edgetune.config.quantities import split_server
from edgetune.errors import TeacherError, TeacherSilentError
from edgetune.teach.patience import Patience
from edgetune.teach.protocol import BINARY, HEADER_LENGTH, read_json

WAITS_S = (1.0, 2.0, 4.0, 8.0)  # before the second, third, ... try
_AGAIN = (408, 429, 500, 502, 503, 504)  # what may pass by itself
_ANSWER_BYTES_MAX = 64 * 2**20
_TURN_S = 0.5
_OFFLINE = (
    "is the network there, and the server up? What it has answered about these images is kept, and not asked again"
)


class ServerModel:
    """
    One model of one server.

    Attributes:
        sent_bytes: that left for the server: heads and bodies of all requests, tries that failed too; without TLS's own.
        received_bytes: of the answers' bodies.
        is_binary: whether the server takes tensors as bytes; known once `describe` was called.
    """

    def __init__(
        self,
        url: str,
        *,
        ca_file: Path | None,
        timeout_s: float,
        alive: Callable[[], None] = lambda: None,
        beat: Callable[[], None] = lambda: None,
        waits_s: Sequence[float] = WAITS_S,
    ) -> None:
        """
        Prepare; nothing is sent yet.

        Args:
            url: https://HOST[:PORT]/v2/models/NAME[/versions/VERSION]; http:// for this board itself.
            ca_file: certificates (PEM) that alone are trusted; None: those whom the system trusts.
            timeout_s: of one answer, from connecting to its last byte.
            alive: called from a thread while an answer is waited for.
            beat: called between tries; may raise.
            waits_s: before each further try.
        """
        self._address = split_server(url)
        self._tls = _tls(ca_file) if self._address.is_tls else None
        self._timeout_s, self._alive, self._beat, self._waits_s = timeout_s, alive, beat, waits_s
        self._connection: _Metered | None = None
        self._path = self._address.path
        self.is_binary = False
        self.sent_bytes = self.received_bytes = 0

    @property
    def held_mib(self) -> float:
        """Nothing of it is on this board."""
        return 0.0

    def describe(self) -> dict[str, Any]:
        """What the model is."""
        root = self._path[: self._path.rindex("/v2/models/") + len("/v2")]
        about = self._request("GET", root, may_be_missing=True)[1]  # some gateways lead to models alone
        extensions = read_json(about).get("extensions") if about else None
        self.is_binary = isinstance(extensions, list) and BINARY in extensions
        return read_json(self._request("GET", self._path)[1])

    def pin(self, version: str | None) -> None:
        """Ask this version from now on: a teacher that changes in the middle of a round is none."""
        if version is not None and "/versions/" not in self._path:
            self._path = f"{self._path}/versions/{version}"

    def ask(self, header: bytes, data: bytes) -> tuple[bytes, bytes]:
        """Send a request, again and again if need be: JSON and tensor bytes of its answer."""
        headers = {"content-type": "application/octet-stream" if data else "application/json"}
        if data:
            headers[HEADER_LENGTH] = str(len(header))
        json_bytes, body = self._request("POST", f"{self._path}/infer", header + data, headers)
        if not json_bytes:
            return body, b""
        if not (json_bytes.isascii() and json_bytes.isdigit() and int(json_bytes) <= len(body)):
            raise TeacherError(f"the teacher's answer has {len(body)} bytes and a head of {json_bytes!r}")
        return body[: int(json_bytes)], body[int(json_bytes) :]

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        may_be_missing: bool = False,
    ) -> tuple[str, bytes]:
        """The head's length and the body of the answer, after as many tries as it takes or are allowed."""
        why = ""
        for wait_s in (0.0, *self._waits_s):
            self._pause(wait_s)
            try:
                status, head_bytes, answer = self._once(method, path, body, headers or {})
            except ssl.SSLCertVerificationError as error:
                raise self._refused(f"its certificate is not trusted: {error.verify_message}") from error
            except (OSError, http.client.HTTPException) as error:
                why = str(error) or type(error).__name__
                self.close()
                continue
            if status == http.client.OK:
                return head_bytes, answer
            if may_be_missing and status == http.client.NOT_FOUND:
                return "", b""
            why = f"{status} {answer[:200].decode(errors='replace')}".strip()
            if status not in _AGAIN:
                raise self._refused(f"it answered {why}")
        tries = len(self._waits_s) + 1
        raise TeacherSilentError(
            f"the teacher at {self._address.where} gave no answer in {tries} tries: {why}", hint=_OFFLINE
        )

    def _pause(self, wait_s: float) -> None:
        ends_s = time.monotonic() + wait_s
        while (left_s := ends_s - time.monotonic()) > 0:
            self._beat()
            time.sleep(min(left_s, _TURN_S))

    def _refused(self, why: str) -> TeacherError:
        self.close()
        return TeacherError(f"the teacher at {self._address.where} cannot be used: {why}")

    def _once(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, str, bytes]:
        connection = self._connection = self._connection or self._connect()
        try:
            with self._deadline(connection):
                connection.request(method, path, body or None, headers)
                response = connection.getresponse()
                answer = response.read(_ANSWER_BYTES_MAX + 1)
        finally:
            self.sent_bytes, connection.sent_bytes = self.sent_bytes + connection.sent_bytes, 0
        self.received_bytes += len(answer)
        if len(answer) > _ANSWER_BYTES_MAX:
            raise self._refused(f"its answer has more than {_ANSWER_BYTES_MAX} bytes")
        if response.length:  # what was announced did not come
            raise http.client.IncompleteRead(answer, response.length)
        return response.status, response.headers.get(HEADER_LENGTH, ""), answer

    def _connect(self) -> _Metered:
        address = self._address
        if self._tls is None:
            return _Plain(address.host, address.port, timeout=self._timeout_s)
        return _Verified(address.host, address.port, timeout=self._timeout_s, context=self._tls)

    @contextlib.contextmanager
    def _deadline(self, connection: http.client.HTTPConnection) -> Iterator[None]:
        """A server that sends a byte now and then keeps each read alive; the whole answer has one time-out."""
        is_done, is_late = threading.Event(), threading.Event()

        def watch() -> None:
            turn_s = min(_TURN_S, self._timeout_s)
            patience = Patience(self._timeout_s, turn_s)
            while not is_done.wait(turn_s):
                self._alive()
                if patience.is_over():
                    is_late.set()
                    with contextlib.suppress(OSError):
                        if connection.sock is not None:
                            connection.sock.shutdown(socket.SHUT_RDWR)

        thread = threading.Thread(target=watch, name="teacher", daemon=True)
        thread.start()
        late = TimeoutError(f"no whole answer within {self._timeout_s:g} s")
        try:
            yield
            if is_late.is_set():  # what was read ends where the connection was cut
                raise late
        except (OSError, http.client.HTTPException) as error:
            if is_late.is_set() or isinstance(error, TimeoutError):
                raise late from error
            raise
        finally:
            is_done.set()
            thread.join()


class _Metered(http.client.HTTPConnection):
    """Counts what it sends."""

    sent_bytes = 0

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()  # which may fail: then nothing was sent
        self.sent_bytes += len(data)
        super().send(data)


class _Plain(_Metered):
    """To this board itself."""


class _Verified(_Metered, http.client.HTTPSConnection):
    """To anywhere else."""


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    """Verify certificate and name, always."""
    try:
        return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise TeacherError(f"training.teacher_ca: {ca_file} cannot be used: {error}") from error
