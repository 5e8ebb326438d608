"""
Rounds of the real trainer on this machine, each in a process of its own: what was forecast before, and what they took.

What `python -m benchmarks.forecast --own` runs. Networks of random weights learn made-up images of ten classes; each round's
figures go into the history that the next one's forecast learns from, as the daemon keeps it. The first round knows nothing of
this machine but its micro-profile. The daemon itself does not run: a round's duration is that of its process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from benchmarks.made_up import CLASSES, EACH, SIZE, fill
from benchmarks.stage import machine, say, table
from edgetune.daemon import forecasts
from edgetune.learn.importer import import_model
from edgetune.types import BoardHistory, FrozenSample, Recipe, RoundKind, RoundSpec
from edgetune.wire import to_json

RECIPE = Recipe(
    level=0.5, search="none", round_to=8, epochs_before=1, epochs_after=3, batch_size=64, scoring_batches=4, timing_runs=10,
    memory_format="contiguous", dtype="float32", threads=1, distillation=0.0,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asked:
    """One round."""

    net: str
    kind: RoundKind
    batch: int
    update: str = "full"
    memory_max_mib: float | None = None
    epochs: float = 3


ROUNDS = (
    Asked("cifar:resnet20", RoundKind.ADAPT, 64),
    Asked("cifar:resnet20", RoundKind.RESHAPE, 64),
    Asked("cifar:mobilenet_v2", RoundKind.ADAPT, 32, epochs=2),
    Asked("cifar:resnet20", RoundKind.ADAPT, 32),
    Asked("cifar:resnet20", RoundKind.RESHAPE, 128),
    Asked("cifar:resnet20", RoundKind.ADAPT, 64, update="latent"),
    Asked("cifar:mobilenet_v2", RoundKind.ADAPT, 16, epochs=2),
    Asked("cifar:resnet20", RoundKind.ADAPT, 128),
    Asked("cifar:resnet20", RoundKind.RESHAPE, 64),
    Asked("cifar:resnet20", RoundKind.ADAPT, 128, memory_max_mib=450.0),
    Asked("cifar:resnet20", RoundKind.ADAPT, 64, memory_max_mib=200.0),
)
_LEARNT_FROM = 3  # rounds before the ones whose mean is told


def run(
    root: Path, number: int, asked: Asked, samples: Sequence[FrozenSample], history: BoardHistory
) -> dict[str, object]:
    """One round; its journal, how it ended and how long its process took."""
    models = root / f"models{number}"
    models.mkdir()
    import_model(
        models, architecture=asked.net, weights=None, classes=CLASSES, preprocess=SIZE, version=1, allow_random=True,
        timing_runs=2,
    )  # fmt: skip
    recipe = replace(
        RECIPE,
        batch_size=asked.batch,
        update=asked.update,
        epochs_after=asked.epochs,
        memory_max_mib=asked.memory_max_mib,
        level=RECIPE.level if asked.kind is RoundKind.RESHAPE else 0.0,
    )
    spec = RoundSpec(
        round_id=number, kind=asked.kind, reason="benchmark", base_version=1, factory_version=1, candidate_version=2,
        generation=0, classes=CLASSES, samples=tuple(samples), samples_digest="", recipe=recipe, models_dir=str(models),
        buffer_path=str(root / "edgetune.db"), serving_threads=1, created_at="", history=history,
    )  # fmt: skip
    directory = root / f"{number:04d}"
    directory.mkdir()
    (directory / "spec.json").write_bytes(to_json(spec))
    began_s = time.monotonic()
    call = [sys.executable, "-m", "edgetune.trainer", str(directory)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"}
    subprocess.run(call, check=False, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env=environment)
    taken_s = time.monotonic() - began_s
    outcome = json.loads((directory / "outcome.json").read_text())
    return {**json.loads((directory / "journal.json").read_text()), "outcome": outcome["outcome"], "taken_s": taken_s}


def play() -> None:
    """Print the table."""
    say(f"{machine()}, {time.strftime('%Y-%m-%d')}, 1 thread, {EACH * len(CLASSES)} images of 32 px")
    rows: list[tuple[str, ...]] = [
        ("round", "peak forecast", "peak", "error", "step", "error", "time forecast", "time", "error")
    ]
    errors: list[dict[str, float]] = []
    history = BoardHistory()
    with tempfile.TemporaryDirectory(prefix="edgetune-own-") as name:
        root = Path(name)
        samples = fill(root / "edgetune.db")
        for number, asked in enumerate(ROUNDS, start=1):
            journal = run(root, number, asked, samples, history)
            taken_s = float(str(journal["taken_s"]))
            told = forecasts.compare(journal, trained_s=taken_s, trained_j=None)
            history = forecasts.learn(history, journal, trained_s=taken_s, trained_j=None)
            what = f"{number} {asked.net.removeprefix('cifar:')} {asked.kind.value} {asked.update}, batch {asked.batch}"
            if asked.memory_max_mib is not None:
                what += f", {asked.memory_max_mib:.0f} MiB"
            if "forecast" not in told:
                rows.append((what, "not loaded", str(journal["outcome"]), *[""] * 6))
                say("  " + "  ".join(rows[-1]))
                continue
            made = told["forecast"]
            peak, duration = made["peak_mib"], made["duration_s"]
            said = (what, _range(peak, "MiB"))
            if "actual" not in told:
                rows.append((*said, str(journal["outcome"]), *[""] * 6))
                say("  " + "  ".join(rows[-1]) + f"  {made['reason']}")
                continue
            actual, error = told["actual"], told["forecast_error"]
            errors.append(error)
            if made["accumulation"] > 1:
                said = (f"{what}: {made['accumulation']} x {made['batch_size']}", said[1])
            rows.append((
                *said, f"{actual['peak_mib']:.0f} MiB", f"{error['peak_mib']:+.1%}", f"{actual['step_s']:.3f} s",
                f"{error['step_s']:+.1%}", _range(duration, "s"), f"{actual['duration_s']:.0f} s", f"{error['duration_s']:+.1%}",
            ))  # fmt: skip
            say("  " + "  ".join(rows[-1]))
    say(table(rows))
    later = errors[_LEARNT_FROM:]
    for what, quantity in (("memory", "peak_mib"), ("a step's time", "step_s"), ("the round's time", "duration_s")):
        say(f"  mean error after {_LEARNT_FROM} rounds, {what}: {mean(abs(e[quantity]) for e in later):.1%}")


def _range(interval: dict[str, float], unit: str) -> str:
    return f"{interval['likely']:.0f} {unit} ({interval['low']:.0f}-{interval['high']:.0f})"
