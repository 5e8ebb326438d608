"""What the buffer promises its callers."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from store_samples import make_buffer, policy, sample

from edgetune.errors import BufferCorruptError, ConflictError, NotFoundError, QuotaError, StoreError, UsageError
from edgetune.store import answers, questions
from edgetune.store.buffer import Buffer, assign_split, check_label, read_images
from edgetune.store.copying import folder_name
from edgetune.store.migrations import migrations
from edgetune.types import AddOutcome, LabelSource, Split


def groups_in(split: Split, count: int) -> list[str]:
    """Names of groups that fall into a split under the tests' shares."""
    names = (f"g{number}" for number in range(10_000))
    found = (name for name in names if assign_split(name, 0.2, 0.2) is split)
    return [next(found) for _ in range(count)]


def test_the_connection_is_durable_and_checks_references(buffer: Buffer) -> None:
    """WAL, every commit synced, foreign keys on, deleted content overwritten, strict tables."""
    values = {
        name: buffer.database.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete")
    }
    assert values == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "secure_delete": 1}
    assert all(
        buffer.database[name].strict for name in buffer.database.table_names() if not name.startswith(("_", "sqlite"))
    )


def test_samples_come_back_as_they_were_stored(buffer: Buffer) -> None:
    """Every image is read back byte for byte, in the order asked for."""
    numbers = list(range(700))
    assert buffer.add([sample(n, "cat") for n in numbers]) == [AddOutcome.STORED] * len(numbers)
    ids = [row["id"] for row in buffer.samples(limit=1000)]
    by_digest = {sample(n).digest: sample(n).image for n in numbers}
    digests = {row["id"]: row["digest"] for row in buffer.samples(limit=1000)}
    read = list(read_images(buffer.path, ids))
    assert [sample_id for sample_id, _ in read] == ids
    assert all(image == by_digest[digests[sample_id]] for sample_id, image in read)


def test_a_batch_is_one_transaction(buffer: Buffer) -> None:
    """A batch with one impossible label leaves nothing behind, in the database and in the numbers."""
    with pytest.raises(UsageError):
        buffer.add([sample(1, "cat"), sample(2, " dog")])
    assert buffer.stats().samples == 0
    assert buffer.classes() == ()


def test_the_same_bytes_are_stored_once_and_counted(buffer: Buffer) -> None:
    """A duplicate, in the same batch or later, is counted; without a label it does not take one away."""
    assert buffer.add([sample(1, "cat"), sample(1, "cat")]) == [AddOutcome.STORED, AddOutcome.DUPLICATE]
    assert buffer.add([sample(1)]) == [AddOutcome.DUPLICATE]
    stats = buffer.stats()
    assert (stats.samples, stats.labelled, stats.duplicates) == (1, 1, 2)
    assert buffer.samples()[0]["seen"] == 3


def test_the_latest_label_wins_and_history_stays(buffer: Buffer, tmp_path: Path) -> None:
    """A relabelled sample has the last label, and its history names every one with its source."""
    buffer.add([sample(1)])
    assert buffer.add([sample(1, "cat")]) == [AddOutcome.RELABELLED]
    buffer.label(sample(1).digest, "dog", LabelSource.API)
    buffer.label(buffer.samples()[0]["id"], "dog", LabelSource.FEEDBACK)
    assert buffer.samples()[0]["label"] == "dog"
    buffer.export(tmp_path / "out")
    (entry,) = json.loads((tmp_path / "out" / "manifest.json").read_text())["samples"]
    assert [(said["label"], said["source"]) for said in entry["labels"]] == [("cat", "folder"), ("dog", "api")]
    with pytest.raises(NotFoundError):
        buffer.label(99, "dog", LabelSource.API)


@pytest.mark.parametrize("label", ["", " cat", "cat ", "a\nb", "x" * 201])
def test_what_cannot_be_a_class_name_is_refused(label: str) -> None:
    """Empty, padded, overlong and control-character labels are the caller's mistake."""
    with pytest.raises(UsageError):
        check_label(label)


def test_samples_can_be_filtered_and_paged(buffer: Buffer) -> None:
    """Filters combine; the newest come first."""
    buffer.add([sample(n, "cat" if n % 2 else None) for n in range(10)])
    assert [row["origin"] for row in buffer.samples(limit=2, offset=1)] == ["/8.png", "cat/7.png"]
    assert len(buffer.samples(labelled=True)) == len(buffer.samples(label="cat")) == 5
    splits = {split: buffer.samples(split=split) for split in Split}
    assert sum(len(rows) for rows in splits.values()) == 10
    assert all(row["split"] == split.value for split, rows in splits.items() for row in rows)


# ----------------------------------------------------------------------------------------------------- classes


@pytest.mark.parametrize(("policy", "status"), [("ask", "pending"), ("accept", "accepted"), ("refuse", "refused")])
def test_an_unseen_class_follows_the_policy(tmp_path: Path, policy: str, status: str) -> None:
    """`new_classes` decides about a class never seen; the factory model's are always accepted."""
    buffer = make_buffer(tmp_path / "edgetune.db", new_classes=policy)
    buffer.open()
    buffer.set_factory_classes(["cat"])
    buffer.add([sample(1, "cat"), sample(2, "bird")])
    assert {entry.label: entry.status for entry in buffer.classes()} == {"cat": "accepted", "bird": status}
    buffer.close()


def test_only_accepted_classes_count_and_are_frozen(buffer: Buffer) -> None:
    """A pending class waits with its samples; accepting it brings them in as new ones."""
    buffer.configure(policy(new_classes="ask"))
    buffer.set_factory_classes(["cat"])
    training = groups_in(Split.TRAINING, 6)
    buffer.add([sample(n, "cat" if n < 3 else "brid", group=group) for n, group in enumerate(training)])
    assert buffer.stats().new_labelled == 3
    assert {s.label for s in buffer.freeze(1)} == {"cat"}
    buffer.release(1, consumed=True)
    assert buffer.stats().new_labelled == 0
    buffer.accept_class("brid")
    assert buffer.stats().new_labelled == 3
    buffer.refuse_class("brid")
    assert buffer.stats().new_labelled == 0
    with pytest.raises(ConflictError):
        buffer.refuse_class("cat")
    with pytest.raises(NotFoundError):
        buffer.accept_class("unheard of")


# ------------------------------------------------------------------------------------------------------- splits


def test_a_group_has_one_split_for_ever(buffer: Buffer) -> None:
    """Near-twins stay together, also when the shares change between them and after all of them were evicted."""
    (group,) = groups_in(Split.HOLDOUT, 1)
    buffer.add([sample(1, "cat", group=group)])
    buffer.configure(policy(holdout_share=0.0))
    buffer.add([sample(2, "dog", group=group)])
    assert {row["split"] for row in buffer.samples()} == {"holdout"}


def test_split_shares_are_met() -> None:
    """Over many groups the hash gives each split about its share, and the same answer every time."""
    splits = [assign_split(f"site/{n}", 0.1, 0.2) for n in range(5000)]
    assert abs(splits.count(Split.VALIDATION) / 5000 - 0.1) < 0.02
    assert abs(splits.count(Split.HOLDOUT) / 5000 - 0.2) < 0.02
    assert splits == [assign_split(f"site/{n}", 0.1, 0.2) for n in range(5000)]


# --------------------------------------------------------------------------------------------------- retention


def test_unlabelled_samples_go_first_oldest_first(buffer: Buffer) -> None:
    """While there are unlabelled samples no labelled one is evicted."""
    buffer.configure(policy(quota_bytes=1000))
    buffer.add([sample(n, "cat") for n in range(5)])
    buffer.add([sample(n) for n in range(5, 10)])
    buffer.add([sample(n, "dog") for n in range(10, 13)])
    kept = {row["origin"] for row in buffer.samples()}
    assert kept == {*(f"cat/{n}.png" for n in range(5)), "/8.png", "/9.png", *(f"dog/{n}.png" for n in range(10, 13))}
    assert buffer.stats().evicted == 3


def test_the_largest_class_gives_way_and_rare_ones_stay(buffer: Buffer) -> None:
    """A flood of one class evicts that class's oldest training samples, not the rare class."""
    buffer.configure(policy(quota_bytes=3000))
    training = groups_in(Split.TRAINING, 200)
    buffer.add([sample(n, "rare", group=training[n]) for n in range(5)])
    buffer.add([sample(n, "common", group=training[n]) for n in range(5, 200)])
    counts = {entry.label: entry.total for entry in buffer.classes()}
    assert counts == {"rare": 5, "common": 25}
    assert {row["origin"] for row in buffer.samples(label="common")} == {f"common/{n}.png" for n in range(175, 200)}


def test_splits_keep_their_proportions_under_pressure(buffer: Buffer) -> None:
    """Validation and hold-out neither vanish nor crowd out training when the buffer has been full for long."""
    buffer.configure(policy(quota_bytes=10_000))
    for start in range(0, 3000, 100):
        buffer.add([sample(n, "cat") for n in range(start, start + 100)])
    (cat,) = buffer.classes()
    assert cat.total == 100
    assert 15 <= cat.validation <= 21
    assert 15 <= cat.holdout <= 21


def test_minima_hold_and_then_the_buffer_says_it_is_full(buffer: Buffer) -> None:
    """Validation and hold-out at their minimum are never evicted; with nothing else left `add` refuses the batch."""
    buffer.configure(policy(quota_bytes=400))
    kept = [*groups_in(Split.VALIDATION, 2), *groups_in(Split.HOLDOUT, 2)]
    buffer.add([sample(n, "cat", group=group) for n, group in enumerate(kept)])
    with pytest.raises(QuotaError):
        buffer.add([sample(50, "dog")])
    assert {row["origin"] for row in buffer.samples()} == {f"cat/{n}.png" for n in range(4)}


def test_a_smaller_quota_evicts_and_gives_disk_back(buffer: Buffer) -> None:
    """After a reload with a smaller quota the file is smaller too."""
    buffer.add([sample(n, "cat", size=50_000) for n in range(100)])
    buffer.database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    before = buffer.path.stat().st_size
    assert buffer.configure(policy(quota_bytes=500_000)) == 90
    buffer.database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    assert buffer.path.stat().st_size < before / 5
    assert buffer.stats().stored_bytes <= 500_000


# --------------------------------------------------------------------------------------------------------- pins


def test_a_running_rounds_samples_are_neither_evicted_nor_purged(buffer: Buffer) -> None:
    """What `freeze` returned is there, unchanged, until `release`; whatever else happens."""
    buffer.add([sample(n, "cat") for n in range(10)])
    frozen = buffer.freeze(7)
    assert buffer.stats().pinned == len(frozen) == 10
    buffer.configure(policy(quota_bytes=1000))
    with pytest.raises(QuotaError):
        buffer.add([sample(100, "dog")])
    with pytest.raises(ConflictError):
        buffer.purge(everything=True)
    with pytest.raises(ConflictError):
        buffer.purge(label="cat")
    assert len(list(read_images(buffer.path, [s.sample_id for s in frozen]))) == 10
    buffer.release(7, consumed=False)
    buffer.add([sample(100, "dog")])
    assert buffer.stats().new_labelled > 0


def test_a_round_consumes_only_what_was_labelled_before_it(buffer: Buffer) -> None:
    """Samples labelled or corrected while a round runs are new for the next one."""
    training = groups_in(Split.TRAINING, 4)
    buffer.add([sample(n, "cat", group=group) for n, group in enumerate(training[:3])])
    buffer.freeze(1)
    buffer.add([sample(3, "cat", group=training[3])])
    buffer.label(sample(0).digest, "dog", LabelSource.API)
    buffer.release(1, consumed=True)
    assert buffer.stats().new_labelled == 2
    assert buffer.frozen_rounds() == ()


def test_freezing_twice_is_the_same_and_two_rounds_are_refused(buffer: Buffer) -> None:
    """A restart may freeze its round again; another round has to wait."""
    buffer.add([sample(n, "cat") for n in range(4)])
    first = buffer.freeze(1)
    buffer.close()
    buffer.open()
    assert buffer.freeze(1) == first
    assert buffer.frozen_rounds() == (1,)
    with pytest.raises(ConflictError):
        buffer.freeze(2)
    buffer.release(99, consumed=True)
    assert buffer.stats().pinned == 4


def test_training_max_takes_the_newest_evenly(buffer: Buffer) -> None:
    """A capped round sees every class; validation and hold-out are not capped."""
    training = groups_in(Split.TRAINING, 40)
    buffer.add([sample(n, "common", group=training[n]) for n in range(30)])
    buffer.add([sample(n, "rare", group=training[n]) for n in range(30, 34)])
    buffer.add([sample(500, "common", group=groups_in(Split.HOLDOUT, 1)[0])])
    frozen = buffer.freeze(1, training_max=10)
    chosen = [s.label for s in frozen if s.split is Split.TRAINING]
    assert (chosen.count("rare"), chosen.count("common")) == (4, 6)
    assert [s.split for s in frozen if s.split is not Split.TRAINING] == [Split.HOLDOUT]
    assert frozen == tuple(sorted(frozen, key=lambda s: s.sample_id))
    assert {s.label for s in buffer.freeze(1, classes=["rare"])} == {"rare"}


# -------------------------------------------------------------------------------------- purge, export, backup


def _all_bytes(buffer: Buffer) -> bytes:
    paths = [buffer.path, Path(f"{buffer.path}-wal")]
    return b"".join(path.read_bytes() for path in paths if path.exists())


@pytest.mark.parametrize("size", [300, 2000, 40_000])
def test_nothing_of_a_purged_class_is_left_in_any_file(buffer: Buffer, size: int) -> None:
    """Purged images, their digests, groups and the class name are gone from the database and its log."""
    buffer.configure(policy(new_classes="ask"))
    for start in range(0, 60, 10):
        buffer.add(
            [
                sample(n, "secretclass" if n % 3 else "cat", group=f"groupnr{n}x", size=size)
                for n in range(start, start + 10)
            ]
        )
    assert sample(31, size=size).digest.encode() in _all_bytes(buffer)
    assert buffer.purge(label="secretclass") == 40
    left = _all_bytes(buffer)
    for n in range(60):
        is_left = n % 3 == 0
        assert (sample(n, size=size).digest.encode() in left) == is_left
        assert (f"groupnr{n}x".encode() in left) == is_left
        assert (f"image {n} image {n} ".encode() in left) == is_left
    assert b"secretclass" not in left


def test_purge_by_sample_digest_and_everything(buffer: Buffer) -> None:
    """Each way to name what is purged removes just that; naming two or none is refused."""
    buffer.add([sample(n, "cat") for n in range(5)])
    assert buffer.purge(sample_id=buffer.samples()[0]["id"]) == 1
    assert buffer.purge(digest=sample(0).digest) == 1
    assert buffer.purge(sample_id=12345) == 0
    with pytest.raises(UsageError):
        buffer.purge()
    with pytest.raises(UsageError):
        buffer.purge(label="cat", everything=True)
    assert buffer.purge(everything=True) == 3
    assert buffer.stats().samples == 0


def test_a_purged_id_is_not_given_again(buffer: Buffer) -> None:
    """A sample id names one sample for ever."""
    buffer.add([sample(1)])
    first = buffer.samples()[0]["id"]
    buffer.purge(everything=True)
    buffer.add([sample(2)])
    assert buffer.samples()[0]["id"] > first


def test_export_is_a_folder_per_class_with_a_manifest(buffer: Buffer, tmp_path: Path) -> None:
    """The tree has every image under its class, in any script, and never leaves the directory."""
    labels = ["cat", "猫", "../up", "a/b", ".hidden", None]
    buffer.add([sample(n, label) for n, label in enumerate(labels)])
    out = tmp_path / "deep" / "out"
    assert buffer.export(out) == len(labels)
    entries = json.loads((out / "manifest.json").read_text())["samples"]
    assert [entry["label"] for entry in entries] == labels
    for n, entry in enumerate(entries):
        file = out / entry["file"]
        assert file.resolve().is_relative_to(out)
        assert file.read_bytes() == sample(n).image
    assert (out / "猫").is_dir()
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"out"}
    with pytest.raises(ConflictError):
        buffer.export(out)


def test_folder_names_are_safe_and_distinct() -> None:
    """No two class names share a folder, and none is a path."""
    labels = ["..", ".", "%2E", "a/b", "a%2Fb", "con:", "x*", "ß", "a b"]
    names = [folder_name(label) for label in labels]
    assert len(set(names)) == len(labels)
    assert not any("/" in name or name.startswith(".") for name in names)


def test_a_backup_is_a_whole_buffer(buffer: Buffer, tmp_path: Path) -> None:
    """The copy opens as a buffer of its own with the same contents; a file in the way is left alone."""
    buffer.add([sample(n, "cat") for n in range(20)])
    buffer.backup(tmp_path / "copy.db")
    buffer.add([sample(99)])
    copy = make_buffer(tmp_path / "copy.db")
    assert copy.open() == ()
    assert copy.check(full=True) == []
    assert copy.stats().samples == 20
    copy.close()
    with pytest.raises(ConflictError):
        buffer.backup(tmp_path / "copy.db")


# --------------------------------------------------------------------------------------------------------- rest


def test_reading_a_sample_that_is_gone_or_damaged_is_an_error(buffer: Buffer) -> None:
    """The trainer never gets other bytes than those that were stored."""
    buffer.add([sample(1), sample(2)])
    ids = [row["id"] for row in buffer.samples()]
    with pytest.raises(StoreError):
        list(read_images(buffer.path, [*ids, 999]))
    with pytest.raises(StoreError):
        list(read_images(buffer.path.with_name("absent.db"), ids))
    original = buffer.database.execute("SELECT image FROM images WHERE sample_id = ?", (ids[0],)).fetchone()[0]
    buffer.database.execute("UPDATE images SET image = ? WHERE sample_id = ?", (b"y" * len(original), ids[0]))
    with pytest.raises(BufferCorruptError):
        list(read_images(buffer.path, ids))
    assert buffer.check() == []
    assert buffer.check(full=True) == [f"the image of sample {ids[0]} is damaged"]
    buffer.purge(sample_id=ids[0])


def test_check_finds_rows_that_contradict_each_other(buffer: Buffer) -> None:
    """Each kind of disagreement is said, and only while it is there."""
    buffer.add([sample(n, "cat") for n in range(3)])
    wrong = {
        "UPDATE samples SET pinned_by = 5 WHERE id = 1": "UPDATE samples SET pinned_by = NULL",
        "UPDATE samples SET image_bytes = 1 WHERE id = 1": "UPDATE samples SET image_bytes = 100",
        "UPDATE labels SET label = 'dog' WHERE id = 1": "UPDATE labels SET label = 'cat'",
    }
    for breaking, mending in wrong.items():
        buffer.database.execute(breaking)
        assert len(buffer.check()) >= 1, breaking
        buffer.database.execute(mending)
        assert buffer.check() == []


def test_a_buffer_of_a_newer_program_is_left_alone(buffer: Buffer) -> None:
    """A schema step that this program does not know stops it, with the reason, before anything changes."""
    buffer.database["_sqlite_migrations"].insert(
        {"migration_set": migrations.name, "name": "m999_future", "applied_at": "later"}
    )
    other = make_buffer(buffer.path)
    with pytest.raises(StoreError, match="m999_future"):
        other.open()
    other.close()
    buffer.database.execute("DELETE FROM _sqlite_migrations WHERE name = 'm999_future'")


def test_a_locked_database_is_said_and_not_rebuilt(buffer: Buffer) -> None:
    """Another writer is a sentence for the operator; the numbers stay right."""
    buffer.add([sample(1, "cat")])
    buffer.database.execute("PRAGMA busy_timeout = 0")
    other = sqlite3.connect(buffer.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"):
        buffer.add([sample(2, "cat")])
    other.execute("ROLLBACK")
    other.close()
    assert buffer.stats().samples == 1
    assert buffer.add([sample(2, "cat")]) == [AddOutcome.STORED]


def test_a_full_disk_is_said_and_nothing_is_half_written(buffer: Buffer) -> None:
    """When SQLite finds no room the batch is refused whole."""
    buffer.add([sample(1, "cat")])
    pages = buffer.database.execute("PRAGMA page_count").fetchone()[0]
    buffer.database.execute(f"PRAGMA max_page_count = {pages + 5}").fetchall()
    with pytest.raises(StoreError, match="full"):
        buffer.add([sample(n, "cat", size=50_000) for n in range(2, 9)])
    buffer.database.execute("PRAGMA max_page_count = 1000000").fetchall()
    assert buffer.stats().samples == 1


def test_quarantined_files_are_counted(buffer: Buffer) -> None:
    """The inbox's count survives a restart."""
    buffer.count_quarantined(3)
    buffer.close()
    buffer.open()
    assert buffer.stats().quarantined == 3


def test_adding_does_not_scan_the_samples(buffer: Buffer) -> None:
    """Every statement that taking a sample runs finds its rows by an index."""
    seen: list[str] = []
    buffer.configure(policy(quota_bytes=2000))
    buffer.add([sample(n, "cat" if n % 2 else None) for n in range(30)])
    buffer.database.conn.set_trace_callback(seen.append)
    buffer.add([sample(n, "dog" if n % 2 else None) for n in range(20, 45)])
    buffer.database.conn.set_trace_callback(None)
    plans = set()
    for statement in seen:
        if statement.startswith(("SELECT", "UPDATE", "DELETE")):
            plan = buffer.database.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
            plans |= {row[3] for row in plan}
    assert plans
    assert not [plan for plan in plans if plan.startswith("SCAN") and "USING" not in plan]


def test_unlabelled_samples_are_frozen_when_they_are_wanted_and_new_until_a_round_used_them(buffer: Buffer) -> None:
    """For training alone, the newest; asked about and labelled all the while; a refused start leaves them new."""
    training, validation = groups_in(Split.TRAINING, 6), groups_in(Split.VALIDATION, 1)
    buffer.add([sample(0, "cat", group=training[0])])
    buffer.add([sample(n, group=group) for n, group in enumerate([*training[1:], *validation], start=1)])
    assert buffer.stats().new_unlabelled == 5
    assert [s.label for s in buffer.freeze(1)] == ["cat"]
    buffer.release(1, consumed=True)
    assert buffer.stats().new_unlabelled == 5
    frozen = buffer.freeze(2, unlabelled_max=3)
    assert [s.label for s in frozen] == ["cat", None, None, None]
    assert [s.sample_id for s in frozen][1:] == [4, 5, 6]
    assert {s.split for s in frozen[1:]} == {Split.TRAINING}
    assert len(questions.after(buffer, 0, is_labelled=False, newest=100, limit=100)) == 5
    assert len(answers.unanswered(buffer, 1, is_labelled=False, newest=100, limit=100)) == 6
    buffer.label(6, "dog", LabelSource.API)
    buffer.release(2, consumed=True)
    assert buffer.stats().new_unlabelled == 2
    assert buffer.stats().new_labelled == 1, "its label came after the round had begun"
    assert [s.sample_id for s in buffer.freeze(3, unlabelled_max=2) if s.label is None] == [2, 3], "then the others"
    assert len(buffer.freeze(3, unlabelled_max=None)) == 6
    buffer.release(3, consumed=False)
    assert buffer.stats().new_unlabelled == 2
    assert buffer.check() == []
    buffer.close()
    buffer.open()
    assert buffer.stats().new_unlabelled == 2


def test_a_quota_evicts_new_unlabelled_samples_by_their_number(buffer: Buffer) -> None:
    """What is counted is what is there."""
    buffer.add([sample(n, group=group) for n, group in enumerate(groups_in(Split.TRAINING, 8))])
    buffer.configure(policy(quota_bytes=500))
    assert (buffer.stats().unlabelled, buffer.stats().new_unlabelled) == (5, 5)
    assert buffer.check() == []
