"""
A new class before a round has learnt it: which classes to imprint now, and from which samples. Counts in, names out.

An imprint round writes output rows for classes that the served version does not know, from a few images of each. The one
rule for trying again is here: a class that is not served is imprinted once with the samples that there are, and again only
when it has twice as many training samples as then. Whether the gate refused the candidate, a person rolled it back, or it
never came about makes no difference: what was tried with these images would come out the same. One that is served,
provisionally, waits for a round that trains it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from edgetune.types import ClassStats, FrozenSample, Split

_AGAIN = 2  # times as many samples as at the last try
_OF_A_CLASS_MOST = 100  # a row is a mean: more images hardly move it
_OF_OLD_CLASSES_MOST = 400  # together, each of them run through the network once


def due(
    classes: Iterable[ClassStats], served: Sequence[str], *, samples_min: int | None, tried: Mapping[str, int]
) -> tuple[str, ...]:
    """
    The classes to imprint now, in the order of their names.

    Args:
        classes: what the buffer holds.
        served: classes that the served version has an output for.
        samples_min: training samples that do; None: no class is imprinted.
        tried: class -> training samples that it had when it was last imprinted.
    """
    if samples_min is None:
        return ()
    return tuple(
        entry.label
        for entry in sorted(classes, key=lambda each: each.label)
        if entry.status == "accepted"
        and entry.label not in served
        and entry.training >= max(samples_min, _AGAIN * tried.get(entry.label, 0))
    )


def choose_samples(frozen: Iterable[FrozenSample], new: Sequence[str], old: Sequence[str]) -> tuple[FrozenSample, ...]:
    """
    What an imprint round looks at: the newest samples of the new classes, a few of each old one, and what nothing trained on.

    Args:
        frozen: labelled samples; higher ids are newer.
        new: classes to imprint.
        old: classes that the served version knows; of these together a bounded number, as evenly as there are.

    Returns:
        Training, validation and hold-out samples of these classes, in the order of their ids.
    """
    newest = sorted((s for s in frozen if s.label in {*new, *old}), key=lambda s: s.sample_id, reverse=True)
    training = [sample for sample in newest if sample.split is Split.TRAINING]
    turns: Counter[str | None] = Counter()
    by_turn: list[tuple[int, FrozenSample]] = []
    for sample in training:
        by_turn.append((turns[sample.label], sample))
        turns[sample.label] += 1
    mine = [sample for turn, sample in by_turn if sample.label in new and turn < _OF_A_CLASS_MOST]
    others = sorted((each for each in by_turn if each[1].label not in new), key=lambda each: each[0])
    chosen = [*mine, *(sample for _, sample in others[:_OF_OLD_CLASSES_MOST])]
    chosen += [sample for sample in newest if sample.split is not Split.TRAINING]
    return tuple(sorted(chosen, key=lambda sample: sample.sample_id))
