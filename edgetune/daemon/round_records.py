"""
What a round leaves on the disk: its spec, its row in the history, its end. Everything here runs on the store's thread.

The order is the durability: pin the samples, replace `spec.json` (the commit point of a round), add its row; and at the
end, end the row, release the samples, clear up.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgetune.clock import Clock
from edgetune.daemon import forecasts
from edgetune.daemon.round_settings import RoundSettings
from edgetune.daemon.round_told import asked, comparison_summary, told
from edgetune.decide import imprinting
from edgetune.decide.returning import SHOWN_MIN
from edgetune.decide.trigger import Want
from edgetune.errors import EdgetuneError, NotFoundError
from edgetune.store import durable
from edgetune.store.buffer import Buffer
from edgetune.store.database import transaction
from edgetune.store.history import History
from edgetune.store.models import Models, version_name
from edgetune.types import (
    BoardHistory,
    FrozenSample,
    GateDecision,
    Manifest,
    RoundKind,
    RoundSpec,
    RoundState,
    Split,
)
from edgetune.wire import from_json, to_json

_ROUND_DIR = re.compile(r"^\d{4,}$")
_ROUND_DIRS_KEPT = 5
_PLAN_DIR = "plan"
_TO_GO_ON_WITH = ("checkpoint*", "search*", "candidate*")  # of a round's directory: as large as a few models
_TRIED_KEY = "imprints_tried"
_SHOWN_BEFORE = 1_000  # training samples of a class, where nothing but that there were some is known


class RoundRecords:
    """The directory `rounds/` and the rows that go with it."""

    def __init__(self, *, state_dir: Path, models: Models, buffer: Buffer, history: History, clock: Clock) -> None:
        self._state_dir, self._dir = state_dir, state_dir / "rounds"
        self._models, self._buffer, self._history, self._clock = models, buffer, history, clock

    def directory(self, round_id: int) -> Path:
        """Where a round's files are."""
        return self._dir / f"{round_id:04d}"

    def next_round_id(self) -> int:
        """A number that no round has had."""
        return max([self._history.next_round_id(), *(n + 1 for n in self._on_disk())])

    def write_spec(self, want: Want, base: Manifest, limits: RoundSettings, *, generation: int) -> RoundSpec:
        """Choose and pin the samples, and make the round real by writing its spec; no other round may be under way."""
        round_id = self.next_round_id()
        durable.make_dir(self._dir)
        self.release_orphans()
        spec = self._spec(round_id, want, base, limits, generation=generation)
        durable.faultpoint("round.frozen")
        directory = self.directory(round_id)
        try:
            durable.make_dir(directory)
            durable.write_atomic(directory / "spec.json", to_json(spec, indent=1))
            durable.faultpoint("round.spec_written")
            self._begin(spec)
        except (EdgetuneError, OSError):
            durable.remove_dir(directory)  # without it there is no round; what it has pinned the next one lets go
            self._buffer.release(round_id, consumed=False)
            raise
        return spec

    def write_plan(self, want: Want, base: Manifest, limits: RoundSettings, *, generation: int) -> Path:
        """The spec of a round that is only planned, in a directory of its own; nothing stays pinned and nothing is begun."""
        round_id = self.next_round_id()
        spec = self._spec(round_id, want, base, limits, generation=generation)
        self._buffer.release(round_id, consumed=False)
        directory = self._dir / _PLAN_DIR
        if directory.exists():
            durable.remove_dir(directory)
        durable.make_dir(self._dir)
        durable.make_dir(directory)
        durable.write_atomic(directory / "spec.json", to_json(spec, indent=1))
        return directory

    def take_plan(self, directory: Path) -> dict[str, Any] | None:
        """The forecast that a planned round's trainer left, if it left one; its directory goes."""
        journal: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            journal = json.loads((directory / "journal.json").read_bytes())
        durable.remove_dir(directory)
        return journal.get("forecast")

    def _spec(self, round_id: int, want: Want, base: Manifest, limits: RoundSettings, *, generation: int) -> RoundSpec:
        """What a round would be told now; its samples are pinned."""
        recipe, samples_max = limits.recipe, limits.samples_max
        is_imprint, factory = want.kind is RoundKind.IMPRINT, self._models.factory()
        unlabelled_max = samples_max if limits.learns_unlabelled and not is_imprint else 0
        frozen = self._buffer.freeze(round_id, training_max=samples_max, unlabelled_max=unlabelled_max)
        if is_imprint:
            classes = (*base.classes, *want.classes)
            samples = imprinting.choose_samples(frozen, want.classes, base.classes)
        else:
            labels = {s.label for s in frozen if s.split is Split.TRAINING and s.label is not None}
            kept = base.classes
            if want.kind is RoundKind.RESHAPE:  # the factory model knows nothing of what came later
                known = {*labels, *(base if factory is None else self._models.manifest(factory)).classes}
                kept = tuple(label for label in base.classes if label in known)
            classes = (*kept, *sorted(labels - set(kept)))
            samples = tuple(s for s in frozen if s.label is None or s.label in classes)
        return RoundSpec(
            round_id=round_id,
            kind=want.kind,
            reason=want.reason,
            base_version=base.version,
            factory_version=base.version if factory is None else factory,
            candidate_version=self._models.next_version(),
            generation=generation,
            classes=classes,
            samples=samples,
            samples_digest=samples_digest(samples),
            recipe=recipe if want.kind is RoundKind.RESHAPE else replace(recipe, level=0.0),
            models_dir=str(self._state_dir / "models"),
            buffer_path=str(self._buffer.path),
            serving_threads=limits.serving_threads,
            created_at=iso(self._clock.wall_s()),
            builders=dict(limits.builders),
            reference_path=str(self._state_dir / "reference.npz"),
            teacher=limits.teacher,
            answers_dir=str(self._state_dir / "answers"),
            refused_classes=tuple(entry.label for entry in self._buffer.classes() if entry.status == "refused"),
            history=self.board_history(),
        )

    def board_history(self) -> BoardHistory:
        """What forecasts learn from."""
        return forecasts.read(self._history.get_state(forecasts.KEY))

    def imprints_tried(self) -> dict[str, int]:
        """Class -> training samples that it had when it was last imprinted, well or badly."""
        return dict(self._history.get_state(_TRIED_KEY) or {})

    def shown(self, manifest: Manifest) -> dict[str, int]:
        """Class -> training samples that a version's weights have learnt from in its round; empty when no round made it."""
        if manifest.round_id is None:
            return {}
        with contextlib.suppress(NotFoundError):
            recorded = self._history.round(manifest.round_id)["details"].get("shown")
            if recorded is not None:
                return dict(recorded)
        # A round of an edgetune that did not write it down: classes that its hold-out has were in its training too.
        scores = {} if manifest.comparison is None else manifest.comparison.candidate.per_class
        return {label: _SHOWN_BEFORE for label, score in scores.items() if score.count}

    def shown_anew(self, spec: RoundSpec) -> tuple[str, ...]:
        """The classes that a round shows to its candidate and that its base, a round's version too, was not shown."""
        base = self._models.manifest(spec.base_version)
        if base.round_id is None:
            return ()
        before, now = self.shown(base), _training_counts(spec)
        asked = base.classes if before else base.marks  # the factory model was shown all but what was imprinted since
        return tuple(c for c in asked if now[c] >= SHOWN_MIN and before.get(c, 0) < SHOWN_MIN)

    def refused_since(self, spec: RoundSpec) -> tuple[str, ...]:
        """The classes that a published candidate would bring and that the operator refuses by now."""
        refused = {entry.label for entry in self._buffer.classes() if entry.status == "refused"}
        base, candidate = (self._models.manifest(v).classes for v in (spec.base_version, spec.candidate_version))
        return tuple(label for label in candidate if label in refused and label not in base)

    def open_round(self) -> RoundSpec | None:
        """The round that has a spec and no end; clears up one that never got a spec, and what was half removed."""
        for gone in self._dir.glob("*.gone"):
            durable.remove_dir(gone)
        numbers = self._on_disk()
        if not numbers:
            return None
        path = self.directory(numbers[-1]) / "spec.json"
        if not path.exists():
            durable.remove_dir(path.parent)
            return None
        try:
            spec = from_json(RoundSpec, path.read_bytes())
        except (OSError, ValueError):
            # Without its spec a round cannot go on, and no round may keep the service from starting.
            durable.remove_dir(path.parent)
            return None
        try:
            row = self._history.round(spec.round_id)
        except NotFoundError:
            self._begin(spec)
            return spec
        return None if row["ended_at_s"] is not None else spec

    def release_orphans(self) -> None:
        """Unpin what was frozen for a round whose spec was never written."""
        for round_id in self._buffer.frozen_rounds():
            self._buffer.release(round_id, consumed=False)

    def suspend(self, spec: RoundSpec, reason: str) -> None:
        """Note that a round waits with a checkpoint."""
        self._history.update_round(spec.round_id, state=RoundState.SUSPENDED.value, message=reason)

    def end(
        self,
        spec: RoundSpec,
        *,
        outcome: str,
        message: str,
        decision: GateDecision | None,
        trained_s: float,
        trained_j: float | None,
        duty: float | None,
        is_energy_estimated: bool,
        ended_service_s: float,
        is_consumed: bool,
    ) -> None:
        """Write down how a round ended and let its samples go."""
        journal = self.journal(spec.round_id)
        summary = {**self._summary(spec.candidate_version), **asked(spec, journal)}
        unlabelled = journal.get("unlabelled", {})
        spent: dict[str, Any] = {"trained_s": trained_s, "trained_j": trained_j}
        words = told(journal) | forecasts.compare(journal, **spent)
        # One commit: an ended round whose samples still count as new would be followed by the same round again.
        with transaction(self._buffer.database, "round.end"):
            self._history.update_round(
                spec.round_id,
                is_ended=True,
                state="ended",
                outcome=outcome,
                message=message,
                candidate_version=spec.candidate_version,
                base_version=spec.base_version,
                trained_s=round(trained_s, 3),
                trained_j=None if trained_j is None else round(trained_j, 1),
                is_energy_estimated=is_energy_estimated,
                decision=decision,
                summary=summary | ({"unlabelled": unlabelled} if unlabelled else {}),
                shown=self._shown_in(spec, unlabelled),
                **words,
            )
            learnt = forecasts.learn(self.board_history(), journal, duty=duty, **spent)
            self._history.set_state(forecasts.KEY, learnt)
            if spec.kind is not RoundKind.IMPRINT:
                self._history.set_state("last_round_ended_s", ended_service_s)
            is_consumed = is_consumed and (decision is None or decision.uses_up_samples)
            self._buffer.release(spec.round_id, consumed=is_consumed)

    def tidy(self, *, keep: int, protect: set[int]) -> list[int]:
        """Drop what ended rounds kept to go on with, the directories of old rounds, and old versions; returns the versions."""
        numbers = self._on_disk()
        for number in numbers:
            for path in [path for name in _TO_GO_ON_WITH for path in self.directory(number).glob(name)]:
                durable.remove_dir(path) if path.is_dir() else durable.remove_file(path)
        for number in numbers[:-_ROUND_DIRS_KEPT]:
            durable.remove_dir(self.directory(number))
        self._models.sweep_quarantine(keep=keep)
        return self._models.sweep(keep=keep, protect=protect)

    def _begin(self, spec: RoundSpec) -> None:
        with transaction(self._buffer.database, "round.begin"):
            if spec.kind is RoundKind.IMPRINT and (base := self._base(spec)) is not None:
                new = {
                    e.label: e.training for e in self._buffer.classes() if e.label in spec.classes[len(base.classes) :]
                }
                self._history.set_state(_TRIED_KEY, {**self.imprints_tried(), **new})
            self._history.start_round(
                spec.kind.value,
                spec.reason,
                state=RoundState.TRAINING.value,
                round_id=spec.round_id,
                samples=sum(sample.label is not None for sample in spec.samples),
                unlabelled=sum(sample.label is None for sample in spec.samples),
                classes=len(spec.classes),
                shown=self._shown_in(spec, {}),
                candidate_version=spec.candidate_version,
                base_version=spec.base_version,
            )

    def _shown_in(self, spec: RoundSpec, unlabelled: Mapping[str, Any]) -> Mapping[str, int]:
        """How many samples of each class the candidate's weights have been shown, those that the teacher has named too."""
        if spec.kind is RoundKind.IMPRINT:  # they are the base's
            base = self._base(spec)
            return {} if base is None else self.shown(base)
        return _training_counts(spec) + Counter(unlabelled.get("by_class", {}))

    def _base(self, spec: RoundSpec) -> Manifest | None:
        """What a round begins with; None where it was lost since: the round will fail, and its record must not."""
        with contextlib.suppress(EdgetuneError):
            return self._models.manifest(spec.base_version)
        return None

    def _on_disk(self) -> list[int]:
        if not self._dir.is_dir():
            return []
        return sorted(int(path.name) for path in self._dir.iterdir() if _ROUND_DIR.match(path.name))

    def journal(self, round_id: int) -> dict[str, Any]:
        """What a round's trainer wrote down; empty where there is nothing to be read."""
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads((self.directory(round_id) / "journal.json").read_bytes()))
        return {}

    def row(self, round_id: int) -> dict[str, Any]:
        """A round's row; while it is under way, with what its trainer has told so far."""
        row: dict[str, Any] = self._history.round(round_id)
        if row["ended_at_s"] is None:
            row["details"] |= told(self.journal(round_id))
        return row

    def _summary(self, version: int) -> dict[str, Any]:
        """Before and after, as `status` and `rounds` show them; from the manifest wherever it is by now."""
        for root in (self._state_dir / "models", self._state_dir / "quarantine" / "models"):
            path = root / version_name(version) / "manifest.json"
            if path.exists():
                with contextlib.suppress(OSError, ValueError):
                    return comparison_summary(from_json(Manifest, path.read_bytes()))
        return {}


def _training_counts(spec: RoundSpec) -> Counter[str]:
    return Counter(s.label for s in spec.samples if s.split is Split.TRAINING and s.label is not None)


def samples_digest(samples: tuple[FrozenSample, ...]) -> str:
    """SHA-256 over the sorted "digest label split" lines of a round's samples; without a label nothing stands there."""
    lines = sorted(f"{s.digest} {s.label or ''} {s.split.value}\n" for s in samples)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def iso(wall_s: float) -> str:
    """Wall time for people, UTC."""
    return dt.datetime.fromtimestamp(wall_s, dt.timezone.utc).isoformat(timespec="seconds")
