"""
Has a class come back that this site had not shown? What the factory model sees x what the served model says -> which.

The served version was tuned to the classes of this site and forgets the others. The factory model still knows them: an
image in which it sees one of them with confidence, and the served model another class, is a *sighting*. The factory model
errs too, the more often the less the site's images are like those it was made for: behind a noisy camera it took one in
twenty for the same absent class. So it is also asked about images that people have labelled, the *controls*, and a class
has returned only when it is sighted often enough among the images looked at lately, several times as often as by error
among the controls, and in more than one scene.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

SHOWN_MIN = 5  # training samples of a class below which a round has not shown it to its candidate
_UNSEEN_ERRORS = 3  # the rule of three: no error among n leaves a rate of up to 3 / n open, at 95 %


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnPolicy:
    """When a class that the site had not shown has returned."""

    sightings: int = 12
    window: int = 400  # images last looked at among which they must be
    confidence: float = 0.7  # of the factory model, 0..1
    error_ratio: float = 3.0  # how many times more often than by error among the controls
    groups_min: int = 3  # near-twins that the factory model errs about are one error, however many there are


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighted:
    """What was seen of one class among the images looked at lately."""

    label: str
    sightings: int
    groups: int  # scenes that they come from
    errors: int  # controls in which it was sighted, and people say something else


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned:
    """A class that has come back, and what it was noticed by."""

    label: str
    sightings: int
    looked_at: int

    @property
    def reason(self) -> str:
        """For the operator, who reads it as the reason of a round."""
        return (
            f"the factory model sees {self.label!r} in {self.sightings} of the last {self.looked_at} unlabelled images"
            " where the served model does not: a class that this site had not shown is back"
        )


def absent_classes(factory: Sequence[str], served: Sequence[str], shown: Mapping[str, int]) -> frozenset[str]:
    """
    The classes that the served version has outputs for and was not shown.

    Args:
        factory: classes of the factory model.
        served: classes of the served version.
        shown: class -> training samples of the round that made the served version.
    """
    return frozenset(label for label in served if label in set(factory) and shown.get(label, 0) < SHOWN_MIN)


def is_worth_asking(seen: tuple[str, float], absent: frozenset[str], policy: ReturnPolicy) -> bool:
    """
    Whether what the factory model sees is a sighting unless the served model agrees.

    Args:
        seen: the factory model's best class and its probability.
        absent: the classes that are waited for.
        policy: how sure the factory model must be.
    """
    label, confidence = seen
    return label in absent and confidence >= policy.confidence


def returned(
    sighted: Iterable[Sighted], *, looked_at: int, controls: int, policy: ReturnPolicy
) -> tuple[Returned, ...]:
    """
    The classes that have returned, the most often sighted first.

    Args:
        sighted: counts among the images looked at lately.
        looked_at: how many those were, at most `policy.window`.
        controls: how many labelled images the factory model was asked about; without any, nothing can be told.
        policy: the operator's thresholds.
    """
    enough = [
        Returned(label=each.label, sightings=each.sightings, looked_at=looked_at)
        for each in sighted
        if each.sightings >= policy.sightings
        and each.groups >= min(policy.groups_min, policy.sightings)
        and each.sightings * controls >= policy.error_ratio * looked_at * (each.errors + _UNSEEN_ERRORS)
    ]
    return tuple(sorted(enough, key=lambda each: (-each.sightings, each.label)))
