"""The answers on disk: what is kept, for how long, and what a damaged file is worth."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgetune.teach.answers import Answers

ROOT = Path(__file__).parents[2]


def key(number: int) -> bytes:
    """Of an image."""
    return hashlib.sha256(str(number).encode()).digest()


def answer(number: int) -> np.ndarray:
    """Three logits."""
    return np.array([number, -number, 0.1 * number], np.float32)


def table(directory: Path, max_bytes: int = 2**16, identity: str = "a" * 64) -> Answers:
    """Of a teacher with three outputs."""
    return Answers(directory, identity, outputs=3, max_bytes=max_bytes)


def test_an_answer_is_there_again_to_the_bit_after_a_restart(tmp_path: Path) -> None:
    """And what was never said is absent."""
    first = table(tmp_path)
    first.put(key(1), answer(1))
    first.close()
    again = table(tmp_path)
    found = again.get(key(1))
    assert found is not None
    assert found.tobytes() == answer(1).tobytes()
    assert again.get(key(2)) is None
    assert again.hits == 1
    again.close()


def test_the_file_never_grows_over_its_bound_and_the_newest_answer_stands(tmp_path: Path) -> None:
    """A thousand answers into room for twenty: what is found is right, and the last one is found."""
    room = 1000
    kept = table(tmp_path, room)
    for number in range(1000):
        kept.put(key(number), answer(number))
        (file,) = tmp_path.iterdir()
        assert file.stat().st_size <= room
    found = {number: logits for number in range(1000) if (logits := kept.get(key(number))) is not None}
    assert 999 in found
    assert 1 < len(found) <= room // 48
    assert all(logits.tobytes() == answer(number).tobytes() for number, logits in found.items())
    kept.close()


def test_any_flipped_byte_makes_an_answer_absent_and_no_other(tmp_path: Path) -> None:
    """Each byte of a record in turn: never another answer than the one that was kept."""
    kept = table(tmp_path)
    for number in (1, 2):
        kept.put(key(number), answer(number))
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    start = whole.index(key(1))
    for place in range(start, start + 48):
        damaged = bytearray(whole)
        damaged[place] ^= 0x40
        file.write_bytes(damaged)
        assert kept.get(key(1)) is None
        assert kept.get(key(2)) is not None
    file.write_bytes(whole[: start + 20])  # a file that was cut off
    assert kept.get(key(1)) is None
    kept.close()


def test_the_answers_of_another_teacher_make_room(tmp_path: Path) -> None:
    """A teacher that was replaced does not come back; the bound is on all of them together."""
    table(tmp_path).close()
    table(tmp_path, identity="b" * 64).close()
    assert [path.name for path in tmp_path.iterdir()] == ["b" * 64 + ".answers"]


def test_a_bound_below_one_answer_keeps_none(tmp_path: Path) -> None:
    """Nothing is written, and asking does no harm."""
    kept = table(tmp_path, 10)
    kept.put(key(1), answer(1))
    assert kept.get(key(1)) is None
    assert list(tmp_path.iterdir()) == []
    kept.close()


def test_a_kill_in_the_middle_of_the_work_leaves_only_whole_answers(tmp_path: Path) -> None:
    """A process that writes answers as fast as it can is killed; every answer found afterwards is the right one."""
    writer = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_answers import answer, key, table
kept = table(Path({str(tmp_path / "answers")!r}), 2**20)
for number in range(10**9):
    kept.put(key(number % 5000), answer(number % 5000))
    if number == 2000:
        print("busy", flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", writer], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"busy\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = table(tmp_path / "answers", 2**20)
    found = [number for number in range(5000) if kept.get(key(number)) is not None]
    assert len(found) > 1000
    assert all(np.array_equal(kept.get(key(number)), answer(number)) for number in found)
    kept.close()


@pytest.mark.parametrize("count", [2, 1000])
def test_teachers_of_any_size_are_kept(tmp_path: Path, count: int) -> None:
    """Two classes or a thousand."""
    kept = Answers(tmp_path, "c" * 64, outputs=count, max_bytes=2**20)
    said = np.random.default_rng(count).normal(size=count).astype(np.float32)
    kept.put(key(0), said)
    assert np.array_equal(kept.get(key(0)), said)
    kept.close()
