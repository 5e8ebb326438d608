"""Which new classes are imprinted, and from what."""

from __future__ import annotations

from edgetune.decide.imprinting import choose_samples, due
from edgetune.types import ClassStats, FrozenSample, Split


def entry(label: str, training: int, status: str = "accepted") -> ClassStats:
    """What the buffer holds of a class."""
    return ClassStats(label=label, status=status, training=training, validation=0, holdout=0, labelled_since_round=0)


def test_a_class_is_due_once_it_has_enough_samples_and_was_accepted() -> None:
    """Not one that is served already, waits for the operator's word, or has too few."""
    classes = [entry("owl", 5), entry("gull", 9), entry("tern", 4), entry("crow", 50, "pending"), entry("cat", 50)]
    assert due(classes, ["cat"], samples_min=5, tried={}) == ("gull", "owl")
    assert due(classes, ["cat"], samples_min=None, tried={}) == ()


def test_a_class_is_tried_again_only_with_twice_as_many_samples() -> None:
    """However the last try ended: the same images make the same row."""
    tried = {"owl": 6}
    assert [due([entry("owl", n)], ["cat"], samples_min=5, tried=tried) for n in (6, 11, 12)] == [(), (), ("owl",)]


def sample(number: int, label: str, split: Split = Split.TRAINING) -> FrozenSample:
    """One of a round."""
    return FrozenSample(sample_id=number, digest=str(number), label=label, split=split)


def test_an_imprint_looks_at_the_newest_of_the_new_and_evenly_at_the_old() -> None:
    """A hundred of a new class, four hundred of the old ones together, the small ones whole, and all that nothing trained on."""
    labels = ["owl"] * 300 + ["cat"] * 1000 + ["dog"] * 1000 + ["fox"] * 50 + ["gull"] * 9
    frozen = [sample(n, label) for n, label in enumerate(labels)]
    frozen += [sample(10_000 + n, "cat", Split.HOLDOUT) for n in range(700)] + [sample(20_000, "cat", Split.VALIDATION)]
    chosen = choose_samples(frozen, ["owl"], ["cat", "dog", "fox"])
    training = [each for each in chosen if each.split is Split.TRAINING]
    counts = {label: sum(each.label == label for each in training) for label in ("owl", "cat", "dog", "fox", "gull")}
    assert counts == {"owl": 100, "cat": 175, "dog": 175, "fox": 50, "gull": 0}
    assert min(each.sample_id for each in training if each.label == "owl") == 200
    assert sum(each.split is Split.VALIDATION for each in chosen) == 1
    assert sum(each.split is Split.HOLDOUT for each in chosen) == 700
    assert [each.sample_id for each in chosen] == sorted(each.sample_id for each in chosen)
