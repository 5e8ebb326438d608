"""The buffer against a dict, with reopening as a step that may come anywhere."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from store_samples import make_buffer, sample

from edgetune.errors import ConflictError, QuotaError
from edgetune.store.buffer import assign_split, read_images
from edgetune.types import AddOutcome, LabelSource, Split

LABELS = st.sampled_from(["cat", "dog", "bird", None])
NUMBERS = st.integers(0, 30)


class BufferMachine(RuleBasedStateMachine):
    """`model`: number -> (label, is new); plus who is frozen, what was refused, and how often bytes were seen."""

    quota_bytes = 10**9

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.buffer = make_buffer(self.directory / "edgetune.db", quota_bytes=self.quota_bytes)
        self.buffer.open()
        self.model: dict[int, tuple[str | None, bool]] = {}
        self.frozen: dict[int, str] = {}
        self.relabelled: set[int] = set()
        self.refused: set[str] = set()
        self.seen_labels: set[str] = set()
        self.duplicates = 0
        self.splits: dict[str, str] = {}

    @initialize()
    def begin(self) -> None:
        """A new buffer is empty."""
        assert self.buffer.stats().samples == 0

    @rule(items=st.lists(st.tuples(NUMBERS, LABELS), max_size=6))
    def add(self, items: list[tuple[int, str | None]]) -> None:
        """Take a batch."""
        expected = []
        for number, label in items:
            old = self.model.get(number)
            if old is None:
                self.model[number] = (label, label is not None)
                expected.append(AddOutcome.STORED)
            elif label is None or label == old[0]:
                self.duplicates += 1
                expected.append(AddOutcome.DUPLICATE)
            else:
                self._set_label(number, label)
                expected.append(AddOutcome.RELABELLED)
            if label is not None:
                self.seen_labels.add(label)
        assert self.buffer.add([sample(n, label, group=f"g{n % 7}") for n, label in items]) == expected

    def _set_label(self, number: int, label: str) -> None:
        if self.model[number][0] != label:
            self.model[number] = (label, True)
            self.relabelled.add(number)
            self.seen_labels.add(label)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), label=st.sampled_from(["cat", "dog", "bird"]))
    def label(self, data: st.DataObject, label: str) -> None:
        """Correct one label."""
        number = data.draw(st.sampled_from(sorted(self.model)))
        self.buffer.label(sample(number).digest, label, LabelSource.API)
        self._set_label(number, label)

    @precondition(lambda self: self.seen_labels)
    @rule(data=st.data(), is_refused=st.booleans())
    def decide_class(self, data: st.DataObject, is_refused: bool) -> None:
        """The operator accepts or refuses."""
        name = data.draw(st.sampled_from(sorted(self.seen_labels)))
        (self.buffer.refuse_class if is_refused else self.buffer.accept_class)(name)
        (self.refused.add if is_refused else self.refused.discard)(name)

    @precondition(lambda self: not self.frozen)
    @rule()
    def freeze(self) -> None:
        """A round begins."""
        chosen = self.buffer.freeze(1)
        self.frozen = {n: label for n, (label, _) in self.model.items() if label and label not in self.refused}
        assert {s.digest: s.label for s in chosen} == {sample(n).digest: label for n, label in self.frozen.items()}
        images = dict(read_images(self.buffer.path, [s.sample_id for s in chosen]))
        assert {images[s.sample_id] for s in chosen} == {sample(n).image for n in self.frozen}
        self.relabelled = set()
        self.frozen_classes = self.seen_labels - self.refused

    @rule(is_consumed=st.booleans())
    def release(self, is_consumed: bool) -> None:
        """A round ends."""
        self.buffer.release(1, consumed=is_consumed)
        if is_consumed:
            for number in set(self.frozen) & set(self.model) - self.relabelled:
                self.model[number] = (self.model[number][0], False)
        self.frozen = {}

    @rule(data=st.data(), what=st.sampled_from(["digest", "label", "everything"]))
    def purge(self, data: st.DataObject, what: str) -> None:
        """The operator removes for good."""
        number = data.draw(NUMBERS)
        label = data.draw(st.sampled_from(["cat", "dog", "bird"]))
        chosen = {
            "digest": {number} & set(self.model),
            "label": {n for n, (known, _) in self.model.items() if known == label},
            "everything": set(self.model),
        }[what]
        arguments: dict[str, Any] = {"digest": sample(number).digest, "label": label, "everything": True}
        try:
            removed = self.buffer.purge(**{what: arguments[what]})
        except ConflictError:
            assert chosen & set(self.frozen)
            return
        assert removed == len(chosen)
        assert not chosen & set(self.frozen)
        for gone in chosen:
            del self.model[gone]
        groups = {f"g{n % 7}" for n in self.model}
        self.splits = {group: split for group, split in self.splits.items() if group in groups}

    @rule()
    def reopen(self) -> None:
        """The process restarts."""
        self.buffer.close()
        assert self.buffer.open() == ()

    @invariant()
    def contents_are_those_of_the_model(self) -> None:
        """Every sample, its label and its split."""
        rows = self.buffer.samples(limit=1000)
        labels = {row["digest"]: row["label"] for row in rows}
        assert labels == {sample(n).digest: label for n, (label, _) in self.model.items()}
        for row in rows:
            assert row["split"] == self.splits.setdefault(row["group"], row["split"])
            assert row["split"] == assign_split(row["group"], 0.2, 0.2).value

    @invariant()
    def numbers_are_those_of_the_model(self) -> None:
        """Every number that `stats` gives."""
        stats = self.buffer.stats()
        labelled = [label for label, _ in self.model.values() if label]
        assert (stats.samples, stats.labelled, stats.pinned) == (len(self.model), len(labelled), len(self.frozen))
        assert stats.stored_bytes == sum(len(sample(n).image) for n in self.model)
        assert stats.duplicates == self.duplicates
        for entry in stats.classes:
            news = [is_new for label, is_new in self.model.values() if label == entry.label]
            assert (entry.total, entry.labelled_since_round) == (len(news), sum(news))
            assert (entry.status == "refused") == (entry.label in self.refused)
        new = sum(
            entry.labelled_since_round
            for entry in stats.classes
            if entry.status == "accepted" and entry.total == entry.training
        )
        assert stats.new_labelled >= new

    @invariant()
    def everything_is_sound(self) -> None:
        """`check` finds nothing."""
        assert self.buffer.check(full=True) == []

    def teardown(self) -> None:
        """Remove the files."""
        self.buffer.close()
        shutil.rmtree(self.directory)


class FullBufferMachine(RuleBasedStateMachine):
    """A buffer that is always too small: quota, minima and pins hold whatever comes."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.buffer = make_buffer(self.directory / "edgetune.db", quota_bytes=1500)
        self.buffer.open()
        self.number = 0
        self.frozen: list[int] = []

    @rule(label=LABELS, count=st.integers(1, 8), size=st.sampled_from([50, 100, 300]))
    def add(self, label: str | None, count: int, size: int) -> None:
        """Take a batch."""
        before = {row["digest"] for row in self.buffer.samples(limit=1000)}
        protected = self._protected()
        numbers = range(self.number, self.number + count)
        self.number += count
        try:
            outcomes = self.buffer.add([sample(n, label, size=size) for n in numbers])
        except QuotaError:
            assert {row["digest"] for row in self.buffer.samples(limit=1000)} == before
            return
        assert outcomes == [AddOutcome.STORED] * count
        after = self._protected()
        for shelf, samples in protected.items():
            assert after.get(shelf, 0) >= min(samples, 2)
        assert sample(numbers[-1], size=size).digest in {row["digest"] for row in self.buffer.samples(limit=1000)}

    def _protected(self) -> dict[tuple[str, Split], int]:
        counts = {}
        for entry in self.buffer.classes():
            counts[entry.label, Split.VALIDATION] = entry.validation
            counts[entry.label, Split.HOLDOUT] = entry.holdout
        return counts

    @precondition(lambda self: not self.frozen)
    @rule(training_max=st.one_of(st.none(), st.integers(0, 3)))
    def freeze(self, training_max: int | None) -> None:
        """A round begins."""
        self.frozen = [s.sample_id for s in self.buffer.freeze(1, training_max=training_max)]

    @rule()
    def release(self) -> None:
        """A round ends."""
        self.buffer.release(1, consumed=True)
        self.frozen = []

    @rule()
    def reopen(self) -> None:
        """The process restarts."""
        self.buffer.close()
        assert self.buffer.open() == ()

    @invariant()
    def the_quota_holds_and_pins_hold(self) -> None:
        """Whatever came, the bounds hold."""
        stats = self.buffer.stats()
        assert stats.stored_bytes <= 1500
        assert self.buffer.check(full=True) == []
        assert stats.samples + stats.evicted <= self.number
        assert len(list(read_images(self.buffer.path, self.frozen))) == len(self.frozen)

    def teardown(self) -> None:
        """Remove the files."""
        self.buffer.close()
        shutil.rmtree(self.directory)


_SETTINGS = settings(max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
TestBuffer = BufferMachine.TestCase
TestBuffer.settings = _SETTINGS
TestFullBuffer = FullBufferMachine.TestCase
TestFullBuffer.settings = _SETTINGS
