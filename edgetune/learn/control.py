"""What a round says while it works, and what it is told: progress, pace, stop."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

BEAT_INTERVAL_S = 1.0  # the daemon wants to hear something every 5 s; a line a step would be noise
LEFT_WHOLE = "left_whole"  # an event: which layers cannot be pruned, in `words`
_LAYERS_NAMED = 8
_DUTY_MIN = 0.02
_SHORTEST_S = 1e-4  # of a sleep
_NAP_S = 0.2  # how soon a sleeping trainer notices an order


class StopAskedError(Exception):
    """The daemon or the operator wants the trainer to checkpoint and leave. Not an error of the round."""


class Control:
    """
    The one object that a round talks to. What is set here may be set from another thread or a signal handler.

    Attributes:
        duty: the share of the time in which the trainer may compute.
        energy_j: what the board has used since this process was started, in joules; None: nothing here measures it.
        steps_s: seconds of each step of training since `begin_count`.
        slept_s: seconds slept for the pace since this was made.

    Args:
        output: gets one JSON object a line.
        now_s, sleep: the clock, replaceable in tests.
        computed_s: what all threads of this process have computed.

    The pace is kept between pieces of work: whatever was computed since the last `beat` or `pace` is followed by the sleep
    that makes it its share of the time. A piece of work is its resolution: a step of training, a batch that is asked about.
    """

    def __init__(
        self,
        output: TextIO,
        *,
        now_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        computed_s: Callable[[], float] = time.process_time,
    ) -> None:
        self._output = output
        self._now_s = now_s
        self._sleep = sleep
        self._computed_s = computed_s
        self._began = (now_s(), computed_s())
        self._said_at_s = float("-inf")
        self._told_at_s = float("-inf")  # how far a phase is
        self._phase, self._said_phase = "load", ""
        self.duty = 1.0
        self.energy_j: float | None = None
        self.is_stop_asked = False
        self.steps_s: list[float] = []
        self.slept_s = 0.0

    def begin_count(self) -> None:
        """Forget which steps there were."""
        self.steps_s = []

    def stop(self) -> None:
        """Ask for a checkpoint and an end at the next step boundary."""
        self.is_stop_asked = True

    def say(self, event: str, **values: object) -> None:
        """Write one line."""
        self._said_at_s = self._now_s()
        if event == "progress":
            self._told_at_s = self._said_at_s
        self._output.write(json.dumps({"event": event, **values}) + "\n")
        self._output.flush()

    def phase(self, name: str) -> None:
        """A new phase begins, or this one goes on."""
        if name != self._said_phase:
            self._phase = self._said_phase = name
            self.say("phase", phase=name)

    def left_whole(self, layers: Sequence[str]) -> None:
        """Name the layers that cannot be pruned, before any work; nothing is said when there are none."""
        if layers:
            self.say(LEFT_WHOLE, words=left_whole_words(layers))

    def progress(self, **values: object) -> None:
        """Say how far the phase is; dropped when that was said a moment ago."""
        if self._now_s() - self._told_at_s >= BEAT_INTERVAL_S:
            self.say("progress", phase=self._phase, **values)

    def alive(self) -> None:
        """Something goes on: say so now and then. For the middle of a piece of work, where nobody may leave."""
        if self._now_s() - self._said_at_s >= BEAT_INTERVAL_S:
            self.say("heartbeat", phase=self._phase)

    def beat(self) -> None:
        """Work was done: say so now and then, keep the pace, and leave if that is asked. Between pieces of work."""
        self.alive()
        self._keep_pace()
        if self.is_stop_asked:
            raise StopAskedError

    @property
    def kept_duty(self) -> float:
        """The share of the time in which work is done just now, its sleeps being the rest; above 0."""
        return min(1.0, max(_DUTY_MIN, self.duty))

    def count_step(self, took_s: float) -> None:
        """Note how long a step of training took."""
        self.steps_s.append(took_s)

    def pace(self) -> None:
        """Keep the pace after a step of training."""
        self._keep_pace()

    def _keep_pace(self) -> None:
        """Sleep so that the work done since the last time takes up its `duty` share of the time."""
        began_s, computed_s = self._now_s(), self._computed_s()
        # The lesser of the two: a process that was stopped, or waits for a server, has not worked.
        worked_s = max(0.0, min(began_s - self._began[0], computed_s - self._began[1]))
        self._rest(worked_s, began_s)
        self._began = (self._now_s(), self._computed_s())

    def _rest(self, worked_s: float, began_s: float) -> None:
        while not self.is_stop_asked:
            left_s = worked_s / self.kept_duty - worked_s - (self._now_s() - began_s)
            if left_s <= _SHORTEST_S:
                break
            if self._now_s() - self._said_at_s >= BEAT_INTERVAL_S:
                self.say("heartbeat", phase=self._phase)
            self._sleep(min(left_s, _NAP_S))
        self.slept_s += self._now_s() - began_s

    def obey(self, order: str) -> None:
        """Take one line of stdin: {"duty": 0.5} or {"energy_j": 1200.0}. What is not an order is not obeyed."""
        try:
            plain = json.loads(order)
        except ValueError:
            return
        if isinstance(plain, Mapping) and isinstance(plain.get("duty"), (int, float)):
            self.duty = float(plain["duty"])
        if isinstance(plain, Mapping) and isinstance(plain.get("energy_j"), (int, float)):
            self.energy_j = float(plain["energy_j"])


class SilentControl(Control):
    """Nobody listens: full speed, and no stop but an exception."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())

    def say(self, event: str, **values: object) -> None:
        """Nothing."""


def left_whole_words(layers: Sequence[str]) -> str:
    """What pruning will not touch, in a sentence; empty when it may touch everything."""
    if not layers:
        return ""
    named = ", ".join(layers[:_LAYERS_NAMED])
    more = f" and {len(layers) - _LAYERS_NAMED} more" if len(layers) > _LAYERS_NAMED else ""
    counted = "1 layer" if len(layers) == 1 else f"{len(layers)} layers"
    return f"{counted} cannot be pruned and will keep all filters: {named}{more}"
