"""What the served version said about samples: kept, read back, and gone with the sample."""

from __future__ import annotations

import math

import pytest
from store_samples import make_buffer, sample

from edgetune.decide.estimate import probabilities
from edgetune.errors import NotFoundError
from edgetune.store import answers
from edgetune.store.buffer import Buffer
from edgetune.store.database import transaction
from edgetune.types import LabelSource, Split

LOGITS = (2.0, 1.0, -3.0)


def record(buffer: Buffer, version: int, *samples: int, logits: tuple[float, ...] = LOGITS) -> list[int]:
    """Keep the same answer to some samples; those that count as unlabelled."""
    with transaction(buffer.database, "test"):
        return list(answers.record(buffer, version, [(each, answers.pack(logits)) for each in samples]))


def ids(buffer: Buffer, *splits: Split, labelled: bool | None = None) -> list[int]:
    """Oldest first."""
    return [
        row["id"] for row in buffer.samples(limit=1000, labelled=labelled) if row["split"] in [s.value for s in splits]
    ][::-1]


def pending(buffer: Buffer, version: int = 1, *, is_labelled: bool = False, newest: int = 1000) -> list[int]:
    """All that are to be answered."""
    return answers.unanswered(buffer, version, is_labelled=is_labelled, newest=newest, limit=1000)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_survive_in_16_bits_and_what_is_no_number_is_no_answer(bad: float) -> None:
    """The softmax is the same to three digits, with logits as far apart as they like."""
    for logits in ((12.3, 11.9, -40.0, 3.0), (1e6, -1e6), (0.0, 0.0)):
        kept = answers.pack(logits)
        assert kept is not None
        assert len(kept) == 2 * len(logits)
        assert probabilities(answers.unpack(kept)) == pytest.approx(probabilities(logits), abs=1e-3)
    assert answers.pack((1.0, bad)) is None


def test_every_sample_is_answered_once_a_version(buffer: Buffer) -> None:
    """Unlabelled ones of all splits; of those that people have labelled validation and hold-out alone."""
    buffer.add([sample(n, "cat" if n % 3 == 0 else None) for n in range(60)])
    unlabelled, judging = pending(buffer), pending(buffer, is_labelled=True)
    assert unlabelled == ids(buffer, *Split, labelled=False)
    assert judging == ids(buffer, Split.VALIDATION, Split.HOLDOUT, labelled=True)
    assert pending(buffer, newest=7) == unlabelled[-7:]
    assert record(buffer, 1, *unlabelled[:5], judging[0]) == unlabelled[:5]
    assert pending(buffer) == unlabelled[5:]
    assert pending(buffer, is_labelled=True) == judging[1:]
    assert pending(buffer, 2) == unlabelled


def test_a_sample_without_an_answer_is_not_asked_about_again(buffer: Buffer) -> None:
    """Its logits were no numbers; it counts nowhere."""
    buffer.add([sample(1), sample(2)])
    assert record(buffer, 1, 1, logits=(math.nan, 1.0)) == []
    assert pending(buffer) == [2]
    assert answers.recent(buffer, 1, 10) == []
    assert answers.waiting(buffer, 1, 10) == []


def test_answers_of_another_version_do_not_count(buffer: Buffer) -> None:
    """Neither before nor after the new one has answered."""
    buffer.add([sample(n) for n in range(20)])
    record(buffer, 1, *range(1, 21))
    assert len(answers.recent(buffer, 1, 100)) == 20
    assert answers.recent(buffer, 2, 100) == []
    record(buffer, 2, 3, 4, logits=(0.0, 5.0, 1.0))
    (third, fourth) = answers.recent(buffer, 2, 100)
    assert (third.sample, fourth.sample) == (3, 4)
    assert third.logits == (-5.0, 0.0, -4.0)
    assert len(answers.recent(buffer, 1, 100)) == 18


def test_an_answer_goes_with_its_sample(tmp_path_factory: pytest.TempPathFactory, buffer: Buffer) -> None:
    """When it is purged, and when it is evicted for the quota; an answer that comes later is passed over."""
    buffer.add([sample(n) for n in range(3)])
    record(buffer, 1, 1, 2, 3)
    buffer.purge(sample_id=2)
    assert record(buffer, 1, 2) == []
    assert [each.sample for each in answers.recent(buffer, 1, 10)] == [1, 3]
    small = make_buffer(tmp_path_factory.mktemp("small") / "edgetune.db", quota_bytes=350)
    small.open()
    small.add([sample(n) for n in range(3)])
    record(small, 1, 1, 2, 3)
    small.add([sample(n) for n in range(3, 6)])
    assert answers.recent(small, 1, 10) == []
    with pytest.raises(NotFoundError, match=r"sample 2 is not in the buffer any more: it was evicted"):
        small.label(2, "cat", LabelSource.API)
    with pytest.raises(NotFoundError, match="there is no sample 99"):
        small.label(99, "cat", LabelSource.API)
    small.close()


def test_a_sample_that_is_labelled_later_stays_in_the_window_and_leaves_the_queue(buffer: Buffer) -> None:
    """The doubtful ones are labelled: without them the rest would look better than what the board sees."""
    buffer.add([sample(n) for n in range(40)])
    record(buffer, 1, *range(1, 41))
    training = ids(buffer, Split.TRAINING)
    waiting = [each.sample for each in answers.waiting(buffer, 1, 100)]
    assert waiting == training
    for one in (training[5], training[2]):
        buffer.label(one, "cat", LabelSource.API)
    assert len(answers.recent(buffer, 1, 100)) == 40
    assert [each.sample for each in answers.waiting(buffer, 1, 100)] == [
        n for n in training if n not in training[2:6:3]
    ]
    assert [each.sample for each in answers.labelled_lately(buffer, 1, 100)] == [training[5], training[2]]
    judged = ids(buffer, Split.HOLDOUT)[0]
    buffer.label(judged, "dog", LabelSource.API)
    assert [(each.sample, each.label) for each in answers.judged(buffer, 1, 100)] == [(judged, "dog")]


def test_what_is_to_be_answered_next_is_found_without_sorting_the_samples(buffer: Buffer) -> None:
    """A look each minute reads the newest unlabelled ones, not all."""
    seen: list[str] = []
    buffer.add([sample(n, "cat" if n % 2 else None) for n in range(30)])
    buffer.database.conn.set_trace_callback(seen.append)
    answers.unanswered(buffer, 1, is_labelled=False, newest=10, limit=5)
    buffer.database.conn.set_trace_callback(None)
    (statement,) = seen
    newest = statement[statement.index("(") + 1 : statement.index(" LIMIT")] + " LIMIT 10"
    plan = [row[3] for row in buffer.database.execute(f"EXPLAIN QUERY PLAN {newest}")]
    assert not [step for step in plan if "TEMP B-TREE" in step]


def test_only_the_first_of_a_group_is_no_twin(buffer: Buffer) -> None:
    """Also when the others come in a later look."""
    buffer.add([sample(n, group=f"scene {n // 4}") for n in range(12)])
    record(buffer, 1, 1, 2, 3, 5)
    assert answers.first_of_groups(buffer, (1,), [1, 2, 3, 5]) == [1, 5]
    record(buffer, 1, 4, 6, 9)
    assert answers.first_of_groups(buffer, (1,), [4, 6, 9]) == [9]


def test_the_hold_out_is_drawn_at_random_and_not_by_doubt(buffer: Buffer) -> None:
    """One of a group, the same every time, and only what nobody has labelled."""
    buffer.add([sample(n, group=f"scene {n // 2}") for n in range(100)])
    drawn = answers.without_judgement(buffer, 100)
    groups = {row["id"]: row["group"] for row in buffer.samples(limit=1000)}
    assert set(drawn) <= set(ids(buffer, Split.HOLDOUT))
    assert len({groups[one] for one in drawn}) == len(drawn) == len({groups[one] for one in ids(buffer, Split.HOLDOUT)})
    assert drawn != sorted(drawn)
    assert answers.without_judgement(buffer, 3) == drawn[:3]
    buffer.label(drawn[0], "cat", LabelSource.API)
    assert drawn[0] not in answers.without_judgement(buffer, 100)


def test_new_labels_are_counted_from_a_sample_on(buffer: Buffer) -> None:
    """Those that no round has used, of accepted classes, for training."""
    buffer.add([sample(n) for n in range(60)])
    training = ids(buffer, Split.TRAINING)
    for one in training[:10]:
        buffer.label(one, "cat", LabelSource.API)
    assert answers.new_labels_since(buffer, training[4]) == 6
    buffer.freeze(1)
    buffer.release(1, consumed=True)
    assert answers.new_labels_since(buffer, 0) == 0
    buffer.label(training[20], "dog", LabelSource.API)
    assert answers.new_labels_since(buffer, 0) == 1
    buffer.refuse_class("dog")
    assert answers.new_labels_since(buffer, 0) == 0
