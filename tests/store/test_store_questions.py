"""What the factory model is asked about, and how far its word goes."""

from __future__ import annotations

from pathlib import Path

from store_samples import make_buffer, sample

from edgetune.store import questions
from edgetune.store.buffer import Buffer
from edgetune.types import AddOutcome, LabelSource, NewSample, Split


def of(buffer: Buffer, split: Split, *, start: int = 0) -> NewSample:
    """The first unlabelled sample from `start` on that falls into this split, added."""
    for number in range(start, start + 100):
        new = sample(number)
        assert buffer.add([new]) == [AddOutcome.STORED]
        if row(buffer, new)["split"] == split.value:
            return new
    raise AssertionError(split)


def row(buffer: Buffer, of_sample: NewSample) -> dict[str, object]:
    """What the buffer says about a sample."""
    (found,) = [entry for entry in buffer.samples(limit=1000) if entry["digest"] == of_sample.digest]
    return found


def test_only_unlabelled_training_samples_are_asked_about_each_once(buffer: Buffer) -> None:
    """In the order in which they came, from where one was on."""
    buffer.add([sample(n, "cat" if n % 3 == 0 else None) for n in range(60)])
    wanted = [
        entry["id"] for entry in buffer.samples(limit=100) if entry["label"] is None and entry["split"] == "training"
    ][::-1]
    first = questions.after(buffer, 0, is_labelled=False, newest=400, limit=10)
    rest = questions.after(buffer, first[-1][0], is_labelled=False, newest=400, limit=100)
    assert [sample_id for _, sample_id in (*first, *rest)] == wanted
    assert questions.after(buffer, wanted[-1], is_labelled=False, newest=400, limit=100) == []


def test_a_long_queue_is_passed_over_but_for_its_newest(buffer: Buffer) -> None:
    """What is before the camera now is what counts."""
    buffer.add([sample(n) for n in range(60)])
    everything = questions.after(buffer, 0, is_labelled=False, newest=400, limit=100)
    assert questions.after(buffer, 0, is_labelled=False, newest=7, limit=100) == everything[-7:]


def test_an_image_that_is_gone_is_none(buffer: Buffer) -> None:
    """Evicted between two questions."""
    new = of(buffer, Split.TRAINING)
    ((_, sample_id),) = questions.after(buffer, 0, is_labelled=False, newest=400, limit=1)
    assert questions.image(buffer, sample_id) is not None
    buffer.purge(everything=True)
    assert questions.image(buffer, sample_id) is None
    assert questions.groups(buffer, [sample_id]) == {}
    assert new.label is None


def test_the_factory_models_word_never_reaches_validation_or_hold_out(buffer: Buffer) -> None:
    """Neither by a label given later nor with a sample that comes with one; rounds get it for training alone."""
    for split in Split:
        new = of(buffer, split, start=100)
        buffer.label(new.digest, "lamp", LabelSource.FACTORY)
        assert row(buffer, new)["label"] == ("lamp" if split is Split.TRAINING else None)
        buffer.purge(everything=True)
    said = [
        NewSample(**{**{f: getattr(sample(n), f) for f in NewSample.__slots__}, "label": "lamp", "label_source": LabelSource.FACTORY})
        for n in range(200, 260)
    ]  # fmt: skip
    buffer.add(said)
    frozen = buffer.freeze(1)
    assert frozen
    assert {each.split for each in frozen} == {Split.TRAINING}
    (lamp,) = buffer.classes()
    assert (lamp.validation, lamp.holdout) == (0, 0)
    assert lamp.training == lamp.training_since_round == len(frozen) < 60
    buffer.release(1, consumed=True)
    assert buffer.classes()[0].training_since_round == 0


def test_anybodys_word_overrides_the_factory_models_and_never_the_other_way(buffer: Buffer) -> None:
    """Also when it is the same word: then a person has said it."""
    new = of(buffer, Split.TRAINING)
    buffer.label(new.digest, "lamp", LabelSource.FACTORY)
    assert row(buffer, new)["label_source"] == "factory"
    buffer.label(new.digest, "lamp", LabelSource.API)
    assert (row(buffer, new)["label"], row(buffer, new)["label_source"]) == ("lamp", "api")
    buffer.label(new.digest, "clock", LabelSource.FACTORY)
    assert row(buffer, new)["label"] == "lamp"
    buffer.label(new.digest, "cat", LabelSource.SIDECAR)
    assert (row(buffer, new)["label"], row(buffer, new)["label_source"]) == ("cat", "sidecar")


def test_a_hold_out_sample_with_the_factory_models_word_is_found_by_the_check(tmp_path: Path) -> None:
    """Should anything ever write one."""
    buffer = make_buffer(tmp_path / "edgetune.db")
    buffer.open()
    new = of(buffer, Split.HOLDOUT)
    buffer.label(new.digest, "lamp", LabelSource.API)
    assert buffer.check(full=True) == []
    buffer.database.execute("UPDATE labels SET source = 'factory'")
    assert buffer.check() == ["1 samples that are not for training have the factory model's word for a label"]
    buffer.close()


def test_controls_are_what_people_have_labelled(buffer: Buffer) -> None:
    """Not what the factory model has: it would agree with itself."""
    buffer.add([sample(n, "cat" if n % 2 else None) for n in range(60)])
    rows = [entry for entry in buffer.samples(limit=100) if entry["split"] == "training"]
    for entry in rows:
        if entry["label"] is None:
            buffer.label(entry["id"], "lamp", LabelSource.FACTORY)
    by_people = sorted(entry["id"] for entry in rows if entry["label"] == "cat")
    found = questions.after(buffer, 0, is_labelled=True, newest=400, limit=100)
    assert sorted(sample_id for _, sample_id in found) == by_people
    assert questions.labels(buffer, [entry["id"] for entry in rows]) == dict.fromkeys(by_people, "cat")


def test_what_is_labelled_late_is_a_control_all_the_same(buffer: Buffer) -> None:
    """People label the newest first: the older ones that follow are not passed over."""
    buffer.add([sample(n) for n in range(60)])
    rows = [entry["id"] for entry in buffer.samples(limit=100) if entry["split"] == "training"]
    newest, older = rows[0], rows[1:9]
    buffer.label(newest, "cat", LabelSource.API)
    ((place, sample_id),) = questions.after(buffer, 0, is_labelled=True, newest=400, limit=100)
    assert sample_id == newest
    for entry in older:
        buffer.label(entry, "cat", LabelSource.API)
    later = questions.after(buffer, place, is_labelled=True, newest=400, limit=100)
    assert [sample_id for _, sample_id in later] == older
