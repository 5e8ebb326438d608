"""What `edgetune prune` and `edgetune compress` say while they work: a bar on a terminal, lines in a log, nothing to a program."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from edgetune.cli.words import count, percent
from edgetune.learn.control import LEFT_WHOLE, Control, StopAskedError

if TYPE_CHECKING:
    from rich.progress import Progress

    from edgetune.learn.goal import Point

__all__ = ["StopAskedError", "Teller", "is_trained", "stopping", "telling", "verdict"]

_LINE_INTERVAL_S = 10.0
_WORDS = {
    "load": "reading images",
    "look": "looking at the model as given",
    "tune": "tuning to the images",
    "score": "ranking filters",
    "prune": "cutting and timing",
    "retrain": "retraining the best",
    "teach": "teaching the student",
    "export": "exporting",
    "measure": "asking the test images",
    "time": "timing",
}


class Teller(Control):
    """A control that nobody but this program reads; `trials` counts those that were made."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.trials = 0
        self._has_begun = False

    def searches_after(self, trials: int) -> None:
        """The search begins; an earlier call made these trials, unless the engine begins with tuning: then anew."""
        self.trials = trials
        self.phase("look")

    def say(self, event: str, **values: object) -> None:
        """Turn the engine's events into words."""
        step, steps = values.get("step"), values.get("steps")
        if event == "phase":
            phase = str(values["phase"])
            if not self._has_begun and phase not in ("load", "look"):
                self._has_begun = True
                self.trials = 0 if phase == "tune" else self.trials
                if self.trials:
                    self.prints(f"going on after {count(self.trials, 'trial')} of an earlier call")
            self.begins(self.words(phase))
        elif event == LEFT_WHOLE:
            self.prints(str(values["words"]))
        elif isinstance(step, int) and isinstance(steps, int):
            if self._phase == "look":  # an interrupted trial goes on in its middle, without a word
                self.phase("trial")
            self.advances(step, steps, values.get("loss"))

    def words(self, phase: str) -> str:
        """A phase as a person would call it."""
        return f"trial {self.trials + 1}: retraining" if phase == "trial" else _WORDS.get(phase, phase)

    def told(self, point: Point) -> None:
        """A trial is over."""
        self.trials += 1
        self.prints(f"trial {self.trials}: {point_line(point)}")

    def begins(self, words: str) -> None:
        """A phase begins."""

    def advances(self, step: int, steps: int, loss: object) -> None:
        """A step of it is done."""

    def prints(self, line: str) -> None:
        """Something to keep on the screen."""


def verdict(point: Mapping[str, Any]) -> str:
    """What came of a trial, in a word or two."""
    if point["is_success"]:
        return "kept"
    return "too much lost" if is_trained(point) else "cannot be cut so far"


def point_line(point: Point) -> str:
    """What came of a trial, in a line."""
    plain = asdict(point)
    if not is_trained(plain):
        return f"{percent(point.share)} asked for: {point.why or verdict(plain)}"
    return (
        f"{percent(point.share)} asked for, {point.latency_ratio:.2f}x latency, {point.parameters:,} parameters, "
        f"{percent(point.accuracy)} right on validation: {verdict(plain)}"
    )


def is_trained(point: Mapping[str, Any]) -> bool:
    """Whether there was a network to train: one that cannot be cut so far has no figures."""
    return bool(point["is_success"] or point["epochs"])


class _Lines(Teller):
    """For logs and pipes: a line a phase, and now and then how far it is."""

    def __init__(self) -> None:
        super().__init__()
        self._doing, self._said_line_at_s = "", time.monotonic()

    def begins(self, words: str) -> None:
        self._doing, self._said_line_at_s = words, time.monotonic()
        self.prints(words)

    def advances(self, step: int, steps: int, loss: object) -> None:
        if time.monotonic() - self._said_line_at_s >= _LINE_INTERVAL_S:
            self._said_line_at_s = time.monotonic()
            self.prints(f"{self._doing}: {step} of {steps}{'' if loss is None else f', loss {loss}'}")

    def prints(self, line: str) -> None:
        click.echo(line, err=True)


class _Bar(Teller):
    """For a person at a terminal."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress
        self._task = progress.add_task("starting", total=None, note="")

    def begins(self, words: str) -> None:
        self._progress.reset(self._task, description=words, total=None, note="")

    def advances(self, step: int, steps: int, loss: object) -> None:
        note = f"{step} of {steps}" + ("" if loss is None else f", loss {loss:.2f}")
        if self.is_stop_asked:
            note = "stopping; Ctrl-C once more does not wait"
        self._progress.update(self._task, completed=step, total=steps, note=note)

    def prints(self, line: str) -> None:
        self._progress.console.print(line, highlight=False, markup=False)


@contextlib.contextmanager
def telling(*, is_quiet: bool) -> Iterator[Teller]:
    """The teller for whoever is there: nobody, a log, or a person."""
    if is_quiet:
        yield Teller()
        return
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
    # Four times a second: drawing is work too, and latencies are measured meanwhile.
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4) as progress:
        yield _Bar(progress)


@contextlib.contextmanager
def stopping(teller: Teller) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask for a stop between two steps; the second Ctrl-C is the shell's usual one."""

    def stop(_number: int, _frame: object) -> None:
        teller.stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)
