"""A daemon that is an HTTP server over a Unix socket with prepared answers, and remembers what it was asked."""

from __future__ import annotations

import copy
import json
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cli_status import STATUS


class FakeDaemon:
    """Answers `answers[(method, path)]`: a JSON value, bytes, or (status, JSON value)."""

    def __init__(self, path: Path, state_dir: Path) -> None:
        self.socket, self.state_dir = path, state_dir
        self.status = copy.deepcopy(STATUS)
        self.asked: list[tuple[str, str, bytes]] = []
        self.answers: dict[tuple[str, str], Any] = {
            ("GET", "/v1/status"): lambda: self.status,
            ("GET", "/v1/config"): {"paths": {"state_dir": str(state_dir)}},
            ("GET", "/readyz"): {"ready": True, "why": "serving version 7"},
        }

    def answer(self, method: str, target: str, body: bytes) -> tuple[int, Any]:
        """What a request gets."""
        path = urlsplit(target).path
        self.asked.append((method, target, body))
        found = self.answers.get(
            (method, path), (404, {"error": {"code": "not_found", "message": f"no {path}", "hint": ""}})
        )
        found = found() if callable(found) else found
        return found if isinstance(found, tuple) else (200, found)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    """A fake daemon, answering."""
    fake = FakeDaemon(tmp_path / "s.sock", tmp_path / "state")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            status, value = fake.answer(self.command, self.path, body)
            is_raw = isinstance(value, bytes)
            content = value if is_raw else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/octet-stream" if is_raw else "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815 - http.server's names

        def address_string(self) -> str:
            return "client"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
            pass

    with socketserver.ThreadingUnixStreamServer(str(fake.socket), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield fake
        server.shutdown()
        thread.join()
