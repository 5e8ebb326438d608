"""A program that speaks the trainer's protocol and does what its round directory's `play` file says."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path


def say(**event: object) -> None:
    """Print one event."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def record(directory: Path, outcome: str, message: str) -> None:
    """Leave outcome.json."""
    (directory / "outcome.json").write_text(json.dumps({"outcome": outcome, "message": message, "hint": "try less"}))


def main() -> int:  # noqa: C901, PLR0912  one branch a play
    """Do what `play` says."""
    directory = Path(sys.argv[1])
    assert sys.argv[2] == "--parent"
    assert int(sys.argv[3]) == os.getppid()
    play = (directory / "play").read_text().strip()
    say(event="phase", phase="tune")
    if play == "publish":
        say(event="progress", phase="tune", step=3, steps=10, epoch=0.5, loss=1.25, samples_per_s=80.5)
        record(directory, "published", "v2")
        return 0
    if play == "say_only":
        say(event="outcome", outcome="published", message="v2", version=2)
        return 0
    if play == "nothing":
        return 0
    if play == "contradict":
        record(directory, "published", "not really")
        return 21
    if play == "nan":
        record(directory, "nan_loss", "loss became NaN in step 7")
        return 21
    if play == "crash":
        sys.stderr.write("Traceback: the reason\n")
        return 1
    if play == "late":
        record(directory, "will_not_fit", "too large")
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Python does on its way out
        os.kill(os.getpid(), signal.SIGTERM)
    if play == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if play == "flood":
        sys.stdout.write("x" * 300_000 + "\n")
        for _ in range(60):
            sys.stdout.write("not of the protocol " * 5000 + "\n")
        sys.stdout.write('{"event": "progress", "phase": "tune", "step": "many", "steps": null, "loss": NaN}\n')
        sys.stdout.write('[1]\n{"event": "weather"}\n{"event": "progress", "phase": "export", "step": 9, "steps": 9}\n')
        sys.stdout.write("no end of line")
        sys.stdout.flush()
        record(directory, "published", "v2")
        return 0
    if play == "environment":
        record(directory, "published", json.dumps([os.nice(0), Path("/proc/self/oom_score_adj").read_text().strip(),
                                                   os.environ.get("NOTIFY_SOCKET"), os.environ.get("EXTRA"),
                                                   os.environ.get("OMP_WAIT_POLICY")]))  # fmt: skip
        return 0
    if play == "orders":
        record(directory, "published", sys.stdin.readline().strip())
        return 0
    if play == "checkpoint":
        stopped: list[int] = []
        signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
        say(event="progress", phase="tune", step=1, steps=12)
        while not stopped:
            time.sleep(0.01)
        record(directory, "checkpointed", "step 12")
        return 20
    if play == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = os.fork()
        if child:
            (directory / "grandchild").write_text(str(child))
        say(event="heartbeat", phase="tune")
        while True:
            time.sleep(1)
    raise SystemExit(f"unknown play {play}")


if __name__ == "__main__":
    sys.exit(main())
