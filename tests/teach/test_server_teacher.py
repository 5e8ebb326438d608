"""A server as a teacher: edgetune's own API, and a stand-in that misbehaves; real sockets, real certificates."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))
sys.path.insert(0, str(Path(__file__).parent))

from serving_fakes import CLASSES, SIZE, serving, write_version
from teacher_models import COLOURS, StandIn, break_off, describe, hang, send, stand_in, status, trickle

from edgetune.config.quantities import split_server
from edgetune.errors import TeacherError
from edgetune.learn.control import SilentControl, StopAskedError
from edgetune.learn.teachers import OutsideTeacher, open_teacher
from edgetune.serve.engine import Engine
from edgetune.teach.server import ServerModel
from edgetune.types import Preprocess, TeacherSource

PREPROCESS = Preprocess(height=16, width=16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
IMAGES = np.random.default_rng(3).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
NAMES = {"red": 0, "green": 1, "blue": 2}


@pytest.fixture
def server() -> Iterator[StandIn]:
    """The stand-in, without TLS on the loopback address."""
    with stand_in() as started:
        yield started


def opened(url: str, answers: Path, preprocess: Preprocess = PREPROCESS, **source: object) -> OutsideTeacher:
    """A teacher of red, green and blue."""
    fields: dict[str, Any] = {"kind": "server", "server": url, "classes": NAMES, "timeout_s": 20.0, **source}
    return open_teacher(
        TeacherSource(**fields), preprocess=preprocess, classes=("red", "green", "blue"), answers_dir=answers,
        threads=1, control=SilentControl(),
    )  # fmt: skip


def model(url: str, **options: Any) -> ServerModel:
    """A model that does not wait between its tries."""
    return ServerModel(url, **{"ca_file": None, "timeout_s": 20.0, "waits_s": (0, 0), **options})


def test_another_edgetune_is_a_teacher(tmp_path: Path) -> None:
    """The real API over TCP: bytes both ways, its own size, its class names, the logits of its engine; all is metered."""
    engine = Engine.load(write_version(tmp_path / "v000001"), threads=1)
    images = np.random.default_rng(3).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
    with serving(tmp_path / "s", engine, tcp=("127.0.0.1", 0)) as running:
        teacher = open_teacher(
            TeacherSource(kind="server", server=f"http://127.0.0.1:{running.server.tcp_port}/v2/models/edgetune"),
            preprocess=Preprocess(height=SIZE, width=SIZE), classes=(*CLASSES[::-1], "new"), answers_dir=tmp_path / "a",
            threads=1, control=SilentControl(),
        )  # fmt: skip
        said = teacher._asked(images)
        record = teacher.record()
        teacher.close()
    assert teacher._asked.shared.ours == (0, 1, 2)
    np.testing.assert_allclose(said, engine.predict(images)[:, ::-1], rtol=1e-5)
    assert images.nbytes < record["sent_bytes"] < images.nbytes + 2000
    assert said.nbytes < record["received_bytes"] < said.nbytes + 2000
    assert record["version"] == "1"


def test_a_version_that_is_gone_is_not_replaced_by_another(tmp_path: Path) -> None:
    """A round asks the version that it began with, also after the server has promoted one."""
    engine, other = (Engine.load(write_version(tmp_path / f"v00000{n}", n), threads=1) for n in (1, 2))
    with serving(tmp_path / "s", engine, tcp=("127.0.0.1", 0)) as running:
        url = f"http://127.0.0.1:{running.server.tcp_port}/v2/models/edgetune"
        teacher = opened(url, tmp_path / "a", Preprocess(height=SIZE, width=SIZE))
        images = np.zeros((1, SIZE, SIZE, 3), np.uint8)
        teacher._asked(images)
        running.call(running.service.served.swap, other)
        with pytest.raises(TeacherError, match="404"):
            teacher._asked(images + 1)
        teacher.close()


def test_a_server_that_speaks_json_alone_gets_normalised_floats(server: StandIn, tmp_path: Path) -> None:
    """As its description asks; the pinned version is in the address."""
    teacher = opened(server.url, tmp_path / "a")
    said = teacher._asked(IMAGES)
    teacher.close()
    np.testing.assert_allclose(said, ((IMAGES / 255 - 0.5) / 0.25).mean(axis=(1, 2)) @ COLOURS, rtol=1e-3)
    assert server.paths == ["/v2", "/v2/models/colours", "/v2/models/colours/versions/3/infer"]


def test_what_may_pass_is_tried_again(server: StandIn) -> None:
    """Overload, a fault, a connection that breaks off: the third try is answered."""
    asked = model(server.url)
    server.faults = [status(503), break_off]
    assert asked.describe()["name"] == "colours"
    server.faults = [status(429), status(500)]
    assert asked.describe()["name"] == "colours"
    asked.close()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (status(503), "no answer in 3 tries: 503"),
        (break_off, "no answer in 3 tries"),
        (hang, "no answer in 3 tries: no whole answer within 0.3 s"),
        (trickle, "no answer in 3 tries: no whole answer within 0.3 s"),
        (status(400), "answered 400 not now"),
        (status(401), "answered 401"),
    ],
)
def test_a_server_that_does_not_answer_is_named_in_the_end(server: StandIn, fault: Any, said: str) -> None:
    """Overloaded for good, broken, silent, a byte now and then for ever, or one that refuses."""
    asked = model(server.url, timeout_s=0.3)
    server.always = fault
    with pytest.raises(TeacherError, match=said):
        asked.describe()
    asked.close()


def test_a_server_without_a_description_of_itself_is_asked_in_json(server: StandIn) -> None:
    """A gateway may lead to models alone."""
    server.faults = [status(404)]
    asked = model(server.url)
    assert asked.describe()["name"] == "colours"
    assert not asked.is_binary
    asked.close()


def test_nobody_there_is_named() -> None:
    """A port on which nothing listens, and a name that nobody has."""
    for url in ("http://127.0.0.1:1/v2/models/m", "https://nobody.invalid/v2/models/m"):
        with pytest.raises(TeacherError, match="gave no answer in 3 tries"):
            model(url).describe()


def test_a_redirect_is_not_followed(server: StandIn) -> None:
    """Images go to the named host and to no other."""
    with stand_in() as elsewhere:

        def away(handler: Any) -> bool:
            send(handler, 307, b"", location=elsewhere.url)
            return True

        server.always = away
        with pytest.raises(TeacherError, match="answered 307"):
            model(server.url).describe()
        assert elsewhere.paths == []


def test_proxies_of_the_environment_are_not_used(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would see the images."""
    with stand_in() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        asked = model(server.url)
        asked.describe()
        asked.close()
        assert proxy.paths == []


def test_a_stop_is_heard_between_two_tries(server: StandIn) -> None:
    """A trainer that waits for a server to come back still leaves when it is asked to."""

    def stop() -> None:
        raise StopAskedError

    server.always = status(503)
    asked = model(server.url, waits_s=(60,), beat=stop)
    with pytest.raises(StopAskedError):
        asked.describe()
    asked.close()


def test_a_waiting_trainer_says_that_it_lives(server: StandIn) -> None:
    """Or it would be taken for a stalled one."""
    signs: list[int] = []
    asked = model(server.url, waits_s=(), timeout_s=1.0, alive=lambda: signs.append(1))
    server.always = hang
    with pytest.raises(TeacherError):
        asked.describe()
    assert signs
    asked.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a["outputs"][0].update(shape=[3, 3], data=[0.0] * 9), "was asked for"),
        (lambda a: a["outputs"][0].update(data=[float("nan")] * 12), "NaN"),
        (lambda a: a["outputs"][0].update(data=[1.0]), "1 numbers"),
        (lambda a: a.clear(), "no list of outputs"),
    ],
)
def test_garbage_is_named_and_not_kept(server: StandIn, tmp_path: Path, change: Any, said: str) -> None:
    """A wrong count, NaN, too few numbers, nothing: the same images are asked about again."""
    teacher = opened(server.url, tmp_path / "a")
    server.change = change
    with pytest.raises(TeacherError, match=said):
        teacher._asked(IMAGES)
    server.change = lambda _: None
    teacher._asked(IMAGES)
    assert teacher.record()["images_kept"] == 0
    teacher.close()


def test_without_the_server_what_is_kept_still_answers(tmp_path: Path) -> None:
    """And what is not is named as missing."""
    with stand_in() as server:
        teacher = opened(server.url, tmp_path / "a")
        teacher._asked.model._waits_s = (0,)  # type: ignore[attr-defined]
        before = teacher._asked(IMAGES[:3])
    teacher._asked.model.close()
    assert np.array_equal(teacher._asked(IMAGES[[2, 0, 1]]), before[[2, 0, 1]])
    with pytest.raises(TeacherError, match="no answer"):
        teacher._asked(IMAGES)
    teacher.close()


def test_a_later_round_needs_no_server_for_what_it_has_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened anew, with the server gone: what it was is kept beside what it said; another address has nothing kept."""
    monkeypatch.setattr("edgetune.teach.server.WAITS_S", (0,))
    monkeypatch.setattr(
        ServerModel.__init__, "__kwdefaults__", {**ServerModel.__init__.__kwdefaults__, "waits_s": (0,)}
    )
    with stand_in() as server:
        url = server.url
        teacher = opened(url, tmp_path / "a")
        before, identity = teacher._asked(IMAGES[:3]), teacher.record()["identity"]
        teacher.close()
    later = opened(url, tmp_path / "a")
    assert later.record()["identity"] == identity
    assert np.array_equal(later._asked(IMAGES[[1, 2]]), before[[1, 2]])
    assert later.record()["images_kept"] == 2
    with pytest.raises(TeacherError, match="no answer"):
        later._asked(IMAGES)
    later.close()
    (tmp_path / "a" / "server.json").write_bytes(b"{")
    with pytest.raises(TeacherError, match="no answer"):
        opened(url, tmp_path / "a")
    with pytest.raises(TeacherError, match="no answer"):
        opened(url, tmp_path / "b")


def test_a_model_of_other_things_is_named_before_any_image_is_sent(server: StandIn, tmp_path: Path) -> None:
    """Its description is enough."""
    server.metadata = describe([-1, 3, 16, 16], 2)
    with pytest.raises(TeacherError, match="does not name its classes"):
        opened(server.url, tmp_path / "a")
    assert server.asked == []


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two self-signed certificates of 127.0.0.1, one of another name."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificates, is not installed")
    directory = tmp_path_factory.mktemp("tls")
    for name, subject in (("own", "IP:127.0.0.1"), ("stranger", "IP:127.0.0.1"), ("misnamed", "DNS:other.example")):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
             "-subj", "/CN=teacher", "-addext", f"subjectAltName={subject}",
             "-keyout", directory / f"{name}.key", "-out", directory / f"{name}.pem"],
            check=True, capture_output=True,
        )  # fmt: skip
    return {path.stem: path for path in directory.glob("*.pem")}


def test_a_server_with_a_trusted_certificate_is_asked(certificates: dict[str, Path]) -> None:
    """Over TLS, with a certificate authority of one's own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates["own"], certificates["own"].with_suffix(".key"))
    with stand_in(context) as server:
        asked = model(server.url.replace("http:", "https:"), ca_file=certificates["own"])
        assert asked.describe()["name"] == "colours"
        asked.close()


@pytest.mark.parametrize(("shown", "trusted"), [("own", None), ("own", "stranger"), ("misnamed", "misnamed")])
def test_a_certificate_that_does_not_vouch_is_refused_at_once(
    certificates: dict[str, Path], shown: str, trusted: str | None
) -> None:
    """Self-signed and unknown, of another authority, of another name: one try, and no request is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates[shown], certificates[shown].with_suffix(".key"))
    with stand_in(context) as server:
        asked = model(server.url.replace("http:", "https:"), ca_file=certificates.get(trusted or ""))
        with pytest.raises(TeacherError, match="certificate is not trusted"):
            asked.describe()
        assert (asked.sent_bytes, server.paths) == (0, [])


def test_a_file_of_certificates_that_is_none_is_named(tmp_path: Path) -> None:
    """Before anything is sent."""
    (tmp_path / "ca.pem").write_text("nothing")
    for name in ("ca.pem", "absent.pem"):
        with pytest.raises(TeacherError, match=r"training\.teacher_ca"):
            model("https://127.0.0.1/v2/models/m", ca_file=tmp_path / name)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://teacher.example/v2/models/m", "in the clear"),
        ("http://192.168.1.2:8000/v2/models/m", "in the clear"),
        ("https://teacher.example/", "does not name a model"),
        ("https://teacher.example/v2/models/m/infer", "does not name a model"),
        ("ftp://teacher.example/v2/models/m", "expected https://"),
        ("https://user:secret@teacher.example/v2/models/m", "expected https://"),
        ("https://teacher.example/v2/models/m?x=1", "expected https://"),
        ("https:///v2/models/m", "expected https://"),
        ("https://teacher.example:0x50/v2/models/m", "[Pp]ort"),
    ],
)
def test_addresses_that_are_not_safe_or_no_models_are_refused(url: str, said: str) -> None:
    """In the configuration, and again where the connection is made."""
    with pytest.raises(ValueError, match=said):
        split_server(url)
    with pytest.raises(ValueError, match=said):
        model(url)


def test_addresses_are_split() -> None:
    """A default port, a prefix, IPv6, a named version."""
    address = split_server("https://teacher.example/gate/v2/models/m/versions/4")
    assert (address.host, address.port, address.is_tls) == ("teacher.example", 443, True)
    assert split_server("http://[::1]:8000/v2/models/m").where == "[::1]:8000"
