"""The HTTP interface over the real socket: requests, errors, limits, events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
from serving_fakes import CLASSES, SIZE, FakeService, Running, serving, write_version

from edgetune.client import Client
from edgetune.errors import BusyError, EdgetuneError, ForbiddenError, NotFoundError, TooLargeError
from edgetune.serve.api import endpoints
from edgetune.serve.engine import Engine
from edgetune.serve.intake import Intake
from edgetune.serve.peer import Access
from edgetune.serve.service import ApiLimits

IMAGE = bytes(range(192))


def talk(path: Path, request: bytes, *, end: bool = False) -> tuple[int, dict[str, str], bytes]:
    """Send raw bytes on a new connection and read until the server closes it."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        connection.sendall(request)
        if end:
            connection.shutdown(socket.SHUT_WR)
        raw = b""
        while chunk := connection.recv(65536):
            raw += chunk
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return int(status.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


def ask(path: Path, method: str, target: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """One request on a connection of its own."""
    fields = {"host": "localhost", "connection": "close", "content-length": str(len(body))}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return talk(path, f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode() + body)


def error_of(body: bytes) -> dict[str, str]:
    """The error of an answer, which has all three fields."""
    error = json.loads(body)["error"]
    assert set(error) == {"code", "message", "hint"}
    assert error["message"]
    return error


def test_a_prediction_names_its_version_and_classes(running: Running) -> None:
    """An answer says which model gave it, and the best classes first."""
    answer = Client(running.path).post("/v1/predict", IMAGE, top_k=2, record=False)
    assert answer["model_version"] == 1
    assert [set(entry) for entry in answer["top"]] == [{"class", "probability"}] * 2
    assert answer["top"][0]["class"] in CLASSES
    assert running.service.calls == [("predict", (192, 2, False))]


def test_an_answer_says_which_of_its_classes_has_a_mark(tmp_path: Path) -> None:
    """A class with a mark carries it in every answer that names it, in both dialects; the others carry nothing."""
    engine = Engine.load(write_version(tmp_path / "v1", marks={"fish": "provisional"}), threads=1)
    with serving(tmp_path / "s", engine) as running:
        client = Client(running.path)
        top = client.post("/v1/predict", IMAGE, top_k=3)["top"]
        assert {entry["class"]: entry.get("mark") for entry in top} == {"cat": None, "dog": None, "fish": "provisional"}
        assert client.get("/v2/models/edgetune")["parameters"]["marks"] == {"fish": "provisional"}
        tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": [0] * 192}
        for is_binary in (False, True):
            request = {"inputs": [tensor], "parameters": {"binary_data_output": is_binary}}
            _, _, raw = ask(running.path, "POST", "/v2/models/edgetune/infer", json.dumps(request).encode())
            output = json.JSONDecoder().raw_decode(raw.decode("latin-1"))[0]["outputs"][0]
            assert output["parameters"]["mark.fish"] == "provisional"
            assert "mark.cat" not in output["parameters"]


def test_what_nobody_is_sure_of_has_no_label(running: Running) -> None:
    """In both dialects it is said by name; the guesses are told all the same. Else the best class is the label."""
    client = Client(running.path)
    tensor = {"name": "images", "datatype": "UINT8", "shape": [2, 8, 8, 3], "data": [0] * 384}
    answer = client.post("/v1/predict", IMAGE, top_k=2)
    assert (answer["label"], answer["rejected"]) == (answer["top"][0]["class"], False)
    assert "parameters" not in client.post("/v2/models/edgetune/infer", {"inputs": [tensor]})["outputs"][0]
    running.service.rejected = (1,)
    answer = client.post("/v1/predict", IMAGE, top_k=2)
    assert (answer["label"], answer["rejected"], len(answer["top"])) == (None, True, 2)
    output = client.post("/v2/models/edgetune/infer", {"inputs": [tensor]})["outputs"][0]
    assert output["parameters"] == {"rejected.1": True}
    assert len(output["data"]) == 2 * len(CLASSES)


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "code"),
    [
        ("GET", "/nowhere", b"", 404, "not_found"),
        ("GET", "/v1/status/", b"", 404, "not_found"),
        ("PUT", "/v1/rounds", b"", 405, "method_not_allowed"),
        ("GET", "/v1/predict", b"", 405, "method_not_allowed"),
        ("POST", "/v1/predict", b"", 400, "usage"),
        ("POST", "/v1/predict", b"not an image", 400, "bad_image"),
        ("POST", "/v1/predict", b"boom", 500, "internal"),
        ("POST", "/v1/predict?top_k=0", IMAGE, 400, "usage"),
        ("POST", "/v1/predict?top_k=many", IMAGE, 400, "usage"),
        ("POST", "/v1/predict?topk=1", IMAGE, 400, "usage"),
        ("POST", "/v1/predict?record=maybe", IMAGE, 400, "usage"),
        ("POST", "/v1/predict?top_k=1&top_k=2", IMAGE, 400, "usage"),
        ("GET", "/v1/rounds/7", b"", 404, "not_found"),
        ("GET", "/v1/rounds/seven", b"", 400, "usage"),
        ("GET", "/v1/rounds?limit=0", b"", 400, "usage"),
        ("POST", "/v1/rollback", b"", 409, "conflict"),
        ("POST", "/v1/rounds", b'{"kind": "odd"}', 400, "usage"),
        ("POST", "/v1/rounds", b'{"force": 1}', 400, "usage"),
        ("POST", "/v1/rounds", b'{"forse": true}', 400, "usage"),
        ("POST", "/v1/rounds", b"[1", 400, "usage"),
        ("POST", "/v1/rounds", b"[" * 100_000, 400, "usage"),
        ("POST", "/v1/rounds", b"\xff\xfe", 400, "usage"),
        ("POST", "/v1/predictions/p1/label", b"{}", 400, "usage"),
        ("POST", "/v1/data/purge", b"{}", 400, "usage"),
        ("POST", "/v1/data/purge", b'{"sample_id": 99999999999999999999}', 400, "usage"),
        ("POST", "/v1/data/purge", b'{"everything": true, "label": "cat"}', 400, "usage"),
        ("POST", "/v1/data/export", b'{"directory": "here"}', 400, "usage"),
        ("GET", "/v1/data/next?count=101", b"", 400, "usage"),
        ("GET", "/v1/data/samples?split=test", b"", 400, "usage"),
        ("GET", "/v2/models/other", b"", 404, "not_found"),
        ("GET", "/v2/models/edgetune/versions/9", b"", 404, "not_found"),
    ],
)
def test_every_error_has_the_same_shape(  # noqa: PLR0917 - one column of the table each
    running: Running, method: str, target: str, body: bytes, status: int, code: str
) -> None:
    """Whatever goes wrong, a client reads a code, a sentence and a hint, and never a traceback."""
    got, headers, content = ask(running.path, method, target, body)
    assert (got, error_of(content)["code"]) == (status, code)
    assert headers["content-type"] == "application/json"
    assert b"secret" not in content
    assert b"Traceback" not in content
    if status == 405:
        assert headers["allow"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00 this is TLS\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: many\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
        b"POST /v1/predict HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 2_000_000,
    ],
)
def test_what_is_not_http_is_told_so(running: Running, request_bytes: bytes) -> None:
    """Garbage, contradictory lengths and endless heads get a 400 in the envelope, and the service goes on."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(running.path))
        with contextlib.suppress(BrokenPipeError):  # answered before all of it was taken
            connection.sendall(request_bytes)
        content = b""
        try:
            while chunk := connection.recv(65536):
                content += chunk
        except ConnectionResetError:
            pass  # unread bytes were left when the server closed
    assert content.startswith(b"HTTP/1.1 400 ")
    assert error_of(content.partition(b"\r\n\r\n")[2])["code"] == "usage"
    assert Client(running.path).get("/healthz") == {"ok": True}


def test_a_chunked_body_is_one_image(running: Running) -> None:
    """A client need not know the length before."""
    head = b"POST /v1/predict HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    status, _, content = talk(running.path, head + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    assert status == 200, content
    assert running.service.calls[0] == ("predict", (5, 5, True))


def test_a_client_that_hangs_up_in_the_middle_costs_nothing(running: Running) -> None:
    """Half a body and goodbye: nothing is predicted, nothing stays in hand."""
    head = b"POST /v1/predict HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nabc"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(running.path))
        connection.sendall(head)
    intake = running.server._app.state.intake
    Client(running.path).post("/v1/predict", IMAGE)
    for _ in range(200):
        if not running.call(lambda: (intake.in_hand, intake.bytes_in_hand) != (0, 0)):
            break
    assert (intake.in_hand, intake.bytes_in_hand) == (0, 0)
    assert len(running.service.calls) == 1


def test_a_body_over_the_limit_is_refused_announced_or_not(tmp_path: Path, version_dir: Path) -> None:
    """Neither a large Content-Length nor endless chunks are read to their end."""
    with serving(tmp_path / "s", Engine.load(version_dir, threads=1), ApiLimits(body_max_bytes=1000)) as running:
        with pytest.raises(TooLargeError):
            Client(running.path).post("/v1/predict", b"x" * 5_000_000)
        head = b"POST /v1/predict HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        status, _, content = talk(running.path, head + b"7d0\r\n" + b"x" * 2000 + b"\r\n")
        assert (status, error_of(content)["code"]) == (413, "too_large")
        assert Client(running.path).post("/v1/predict", b"x" * 1000)["model_version"] == 1


def test_a_full_queue_answers_503_with_retry_after_and_the_rest_goes_on(tmp_path: Path, version_dir: Path) -> None:
    """Beyond the queue a prediction is refused at once; status is not."""
    with serving(tmp_path / "s", Engine.load(version_dir, threads=1), ApiLimits(queue_max=2)) as running:
        running.service.is_held = True
        held = [threading.Thread(target=Client(running.path).post, args=("/v1/predict", IMAGE)) for _ in range(2)]
        for thread in held:
            thread.start()
        while len(running.service.calls) < 2:
            Client(running.path).get("/healthz")
        status, headers, content = ask(running.path, "POST", "/v1/predict", IMAGE)
        assert (status, headers["retry-after"], error_of(content)["code"]) == (503, "1", "busy")
        assert Client(running.path).get("/v1/status")["called"] == "status"
        running.call(running.service.hold.set)
        for thread in held:
            thread.join()
        Client(running.path).post("/v1/predict", IMAGE)
        assert "edgetune_http_rejected_total 1\n" in Client(running.path).get("/metrics")


def test_an_answer_that_takes_too_long_is_given_up(tmp_path: Path, version_dir: Path) -> None:
    """A prediction that never ends does not hold its place for ever."""
    with serving(tmp_path / "s", Engine.load(version_dir, threads=1), ApiLimits(request_timeout_s=0.05)) as running:
        running.service.is_held = True
        with pytest.raises(BusyError, match="no answer within"):
            Client(running.path).post("/v1/predict", IMAGE)
        assert running.server._app.state.intake.in_hand == 0


@pytest.mark.parametrize(
    "sent", [b"", b"GET /healthz HT", b"POST /v1/predict HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nab"]
)
def test_a_slow_client_is_cut_off(tmp_path: Path, version_dir: Path, sent: bytes) -> None:
    """A request must arrive within its time, head and body."""
    limits = ApiLimits(header_timeout_s=0.05, body_timeout_s=0.05)
    with serving(tmp_path / "s", Engine.load(version_dir, threads=1), limits) as running:
        status, _, content = talk(running.path, sent)
        assert (status, error_of(content)["code"]) == (408, "too_slow")
        assert running.service.calls == []


def test_a_dribbling_head_does_not_move_its_deadline(tmp_path: Path, version_dir: Path) -> None:
    """A byte now and then does not keep a connection open."""
    with serving(tmp_path / "s", Engine.load(version_dir, threads=1), ApiLimits(header_timeout_s=0.2)) as running:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(running.path))
            connection.settimeout(0.02)
            content = b""
            while not content:
                connection.send(b"a")
                try:
                    content = connection.recv(1000)
                except TimeoutError:
                    continue
        assert content.startswith(b"HTTP/1.1 408 ")


def test_one_connection_too_many_is_told_and_the_reserve_lets_root_in(tmp_path: Path, version_dir: Path) -> None:
    """Idle connections cannot lock an operator out before the reserve is used up as well."""
    with serving(tmp_path / "s", Engine.load(version_dir, threads=1), ApiLimits(connections_max=2)) as running:
        idle = []
        for _ in range(10):  # 2, and 8 in reserve, since the test runs as the server's own user
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(running.path))
            connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
            idle.append(connection)
        with pytest.raises(BusyError, match="10 connections are open"):
            Client(running.path).get("/healthz")
        for connection in idle:
            connection.close()
        while running.call(lambda: running.server.connections):
            pass
        assert Client(running.path).get("/healthz") == {"ok": True}


def test_without_a_model_predictions_say_what_to_do(tmp_path: Path) -> None:
    """The service is up, not ready, and names the command."""
    with serving(tmp_path / "s", None) as running:
        status, _, content = ask(running.path, "POST", "/v1/predict", IMAGE)
        assert (status, error_of(content)["code"]) == (503, "no_model")
        assert "models import" in error_of(content)["hint"]
        assert ask(running.path, "GET", "/readyz")[0] == 503
        assert Client(running.path).get("/readyz") == {"ready": False, "why": "no model"}
        assert ask(running.path, "GET", "/v2/health/ready")[0] == 503
        assert ask(running.path, "GET", "/v2/models/edgetune")[0] == 503
        assert ask(running.path, "GET", "/healthz")[0] == 200


def test_calls_carry_what_the_request_says(running: Running) -> None:
    """Paths, queries and bodies reach the service under their names."""
    client = Client(running.path)
    assert client.post("/v1/rounds", {"kind": "adapt", "dry_run": True}) == {
        "called": "start_round", "args": [], "kind": "adapt", "force": False, "dry_run": True,
    }  # fmt: skip
    assert ask(running.path, "POST", "/v1/rounds")[0] == 202
    assert client.post("/v1/samples", IMAGE, label="Küche & Bad", group="g")["args"] == [192, "Küche & Bad", "g"]
    assert client.post("/v1/models/3/promote")["args"] == [3]
    assert client.post("/v1/data/classes/K%C3%BCche/accept")["args"] == ["Küche"]
    assert client.post("/v1/data/samples/12/label", {"label": "cat"})["args"] == ["12", "cat"]
    assert client.get("/v1/data/samples/12/image") == b"the image of 12"
    assert client.post("/v1/predictions/p/label", {"label": "dog"})["args"] == ["p", "dog"]
    assert client.post("/v1/data/purge", {"label": "cat"})["label"] == "cat"
    assert client.get("/v1/data/next", count=3) == {"called": "data_next", "args": [], "count": 3}
    assert client.get("/v1/data/samples", label="cat", labelled=True, limit=3) == {
        "called": "data_samples", "args": [], "label": "cat", "split": None, "labelled": True, "limit": 3, "offset": 0,
    }  # fmt: skip


def test_events_stream_and_end_with_the_server(tmp_path: Path, version_dir: Path) -> None:
    """A follower gets what was, then what happens, and an end when the daemon stops."""
    seen: list[int] = []
    first = threading.Event()

    def follow() -> None:
        for event in Client(tmp_path / "s").stream_events(after=1):
            seen.append(event["seq"])
            first.set()

    with serving(tmp_path / "s", Engine.load(version_dir, threads=1)) as running:
        running.service.log += [{"seq": n, "kind": "k", "text": "line\nbreak ü"} for n in (1, 2)]
        follower = threading.Thread(target=follow)
        follower.start()
        assert first.wait(10)
        running.call(running.service.log.append, {"seq": 3, "kind": "bad\nkind", "text": ""})
        while seen != [2, 3]:
            assert follower.is_alive()
        assert [event["seq"] for event in Client(running.path).get("/v1/events", after=2)] == [3]
    follower.join(10)
    assert not follower.is_alive()


def test_only_admins_change_things(running: Running) -> None:
    """A member of the group reads, predicts and labels; a stranger does nothing; every admin path refuses both."""
    intake = Intake(ApiLimits())
    table = endpoints(FakeService(None), intake, asyncio.Event())
    member = Access(own_uid=99_999, group_gid=os.getegid())
    if os.geteuid() == 0:
        pytest.skip("root is always an admin; test_server runs this with a process of another user")
    running.server._app.state.access = member
    for endpoint in table:
        target = re.sub(r"{name}", "edgetune", endpoint.path)
        status = ask(running.path, endpoint.method, re.sub(r"{\w+}", "1", target))[0] if "events" not in target else 200
        assert (status == 403) == endpoint.needs_admin, endpoint.path


def test_the_docs_name_every_endpoint_and_no_other() -> None:
    """docs/http-api.md and the table of endpoints agree."""
    text = (Path(__file__).parents[2] / "docs" / "http-api.md").read_text()
    documented = set(re.findall(r"^\| `(GET|POST) (/[^ `?]*)", text, re.MULTILINE))
    table = endpoints(FakeService(None), Intake(ApiLimits()), asyncio.Event())
    assert documented == {(endpoint.method, endpoint.path) for endpoint in table}


def test_swaps_fail_no_request(tmp_path: Path) -> None:
    """Clients that ask without pause while models change get an answer each time, from a version that exists."""
    directories = [write_version(tmp_path / str(v), v) for v in (1, 2)]
    batch = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8)
    request = {
        "inputs": [{"name": "images", "datatype": "UINT8", "shape": list(batch.shape), "data": batch.ravel().tolist()}]
    }
    stop, failures, answers = threading.Event(), [], [[] for _ in range(4)]
    with serving(tmp_path / "s", Engine.load(directories[0], threads=1)) as running:
        wanted = {v: Engine.load(directories[v - 1], threads=1).predict(batch)[0] for v in (1, 2)}

        def client(number: int) -> None:
            while not stop.is_set():
                try:
                    answer = Client(running.path).post("/v2/models/edgetune/infer", request)
                except EdgetuneError as error:
                    failures.append(error)
                    continue
                version = int(answer["model_version"])
                np.testing.assert_allclose(answer["outputs"][0]["data"], wanted[version], rtol=1e-4, atol=1e-3)
                answers[number].append(version)

        threads = [threading.Thread(target=client, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for swap in range(60):
            running.service.served.swap(Engine.load(directories[(swap + 1) % 2], threads=1))
        while min(len(got) for got in answers) < 5 and not failures:
            pass
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert {version for got in answers for version in got} == {1, 2}


def test_tcp_is_a_members_right_and_not_for_web_pages(tmp_path: Path, version_dir: Path) -> None:
    """Over the loopback address nobody is an admin, and a browser's request is refused."""
    import http.client

    with serving(tmp_path / "s", Engine.load(version_dir, threads=1), tcp=("127.0.0.1", 0)) as running:

        def status(method: str, path: str, **headers: str) -> int:
            connection = http.client.HTTPConnection("127.0.0.1", running.server.tcp_port, timeout=10)
            connection.request(method, path, headers=headers)
            try:
                return connection.getresponse().status
            finally:
                connection.close()

        assert status("GET", "/v1/status") == 200
        assert status("POST", "/v1/pause") == 403
        assert status("GET", "/v1/status", Origin="http://evil.example") == 403
        for host in (
            "evil.example",
            "localhost.evil.example",
            "127.evil.example:80",
            "127.0.0.1.evil.example",
            "[::1]x",
        ):
            assert status("GET", "/v1/status", Host=host) == 403, host
        for host in ("localhost", "127.0.0.1:8090", "127.1.2.3", "[::1]:80"):
            assert status("GET", "/v1/status", Host=host) == 200, host


def test_errors_come_back_as_themselves(running: Running) -> None:
    """The client raises what the daemon raised, with its hint."""
    with pytest.raises(NotFoundError, match="no round 5"):
        Client(running.path).get("/v1/rounds/5")
    assert ForbiddenError.code == "forbidden"
