"""From what the configuration says of a teacher to a model that answers, and what it says of itself."""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgetune.errors import TeacherError, TeacherSilentError
from edgetune.store.durable import make_dir, sha256_file, write_atomic
from edgetune.teach.file import FileModel
from edgetune.teach.protocol import ModelForm, read_form
from edgetune.teach.server import ServerModel
from edgetune.types import Manifest, Preprocess, TeacherSource
from edgetune.wire import from_json

_LOCATION = rb"\x0a\x08location\x12(?=[\x01-\x7f])"  # of onnx.proto's external_data: key 1 "location", then value 2
_MANIFEST_FILE, _MODEL_FILE = "manifest.json", "model.onnx"  # of a version's directory
_DESCRIPTION_FILE = "server.json"


@dataclass(frozen=True, slots=True)
class Opened:
    """A teacher that has told what it is; close its model."""

    model: FileModel | ServerModel
    form: ModelForm
    identity: str  # of a file its SHA-256 and its weights', of a server its address


def open_model(
    source: TeacherSource,
    *,
    preprocess: Preprocess,
    threads: int,
    alive: Callable[[], None] = lambda: None,
    beat: Callable[[], None] = lambda: None,
    version: str | None = None,
    kept_in: Path | None = None,
) -> Opened:
    """
    Start or reach it and let it describe itself; no image is asked about.

    A server that is silent is what it was when it was last reached: about images that it has answered nobody need ask it.

    Args:
        source: of kind "file" or "server".
        preprocess: the student's.
        threads: of a file's model.
        alive: called while an answer is waited for.
        beat: called between the tries of a server.
        version: of the server's model that is wanted; None: the newest.
        kept_in: a directory, where a server's description is kept; None: it is not.

    Raises:
        TeacherError: it cannot be used.
    """
    with contextlib.ExitStack() as on_failure:
        model, named, identity = _model(source, threads, alive, beat)
        on_failure.callback(model.close)
        size = (preprocess.height, preprocess.width)
        described = model.describe() if isinstance(model, FileModel) else _described(model, identity, kept_in)
        form = read_form(described, size=source.size, otherwise=size)
        if isinstance(model, ServerModel):
            form = replace(form, version=version or form.version)
            model.pin(form.version)
        if named:
            form = replace(form, classes=_checked(named, form.outputs))
        on_failure.pop_all()
    return Opened(model, form, identity)


def _described(server: ServerModel, address: str, kept_in: Path | None) -> dict[str, Any]:
    """What it says of itself, or said when it was last reached."""
    path = None if kept_in is None else kept_in / _DESCRIPTION_FILE
    try:
        described = server.describe()
    except TeacherSilentError:
        kept = {} if path is None else _kept(path)
        if kept.get("of") != address or not isinstance(kept.get("described"), dict):
            raise
        server.is_binary = bool(kept.get("is_binary"))
        return dict(kept["described"])
    if path is not None:
        plain = {"of": address, "is_binary": server.is_binary, "described": described}
        if _kept(path) != plain:
            make_dir(path.parent)
            write_atomic(path, json.dumps(plain).encode())
    return described


def _kept(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        plain = json.loads(path.read_bytes())
        return plain if isinstance(plain, dict) else {}
    return {}


def _model(
    source: TeacherSource, threads: int, alive: Callable[[], None], beat: Callable[[], None]
) -> tuple[FileModel | ServerModel, tuple[str, ...], str]:
    """The model, the names of its classes where a manifest tells them, and what it is known by."""
    if source.kind == "file":
        path, names = _model_file(Path(source.file))
        model = FileModel(
            path,
            threads=threads,
            memory_max_mib=source.memory_max_mib,
            timeout_s=source.timeout_s,
            alive=alive,
        )
        return model, names, _hash(path)
    try:
        server = ServerModel(
            source.server,
            ca_file=Path(source.ca_file) if source.ca_file else None,
            timeout_s=source.timeout_s,
            alive=alive,
            beat=beat,
        )
    except ValueError as error:
        raise TeacherError(f"training.teacher_server: {error}") from error
    return server, (), source.server


def _model_file(path: Path) -> tuple[Path, tuple[str, ...]]:
    """The ONNX file, and the classes that the manifest beside it names if `path` is a version's directory."""
    if not path.is_dir():
        if not path.is_file():
            raise TeacherError(f"training.teacher_file: there is no file {path}")
        return path, ()
    try:
        manifest = from_json(Manifest, (path / _MANIFEST_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise TeacherError(f"training.teacher_file: {path} is no version of edgetune: {error}") from error
    if not (path / _MODEL_FILE).is_file():
        raise TeacherError(f"training.teacher_file: {path / _MODEL_FILE} is missing")
    return path / _MODEL_FILE, manifest.classes


def _hash(path: Path) -> str:
    """The SHA-256 of an ONNX file and of the files beside it that it keeps its weights in, of which it holds the names alone."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return sha256_file(path)  # which cannot be mapped
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            names = {_name_at(content, found.end()) for found in re.finditer(_LOCATION, content)}
    parts = [path, *(path.parent / name for name in sorted(names) if (path.parent / name).is_file())]
    hashes = [sha256_file(part) for part in parts]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _name_at(content: mmap.mmap, start: int) -> str:
    """Text of a length below 128 that begins with its length, as protobuf writes it; anything else names no file."""
    return content[start + 1 : start + 1 + content[start]].decode(errors="replace").replace("\0", "?") or "?"


def _checked(names: tuple[str, ...], outputs: int) -> tuple[str, ...]:
    if len(names) != outputs:
        raise TeacherError(f"the teacher has {outputs} outputs and its manifest names {len(names)} classes")
    return names
