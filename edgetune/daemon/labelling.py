"""
What `edgetune data next` answers: which samples a person should label, and why.

Training samples are chosen by what their labels would tell. Hold-out samples must not be: they have to be the mix that the
board sees. As long as the gate has too few of them, some drawn at random are asked about too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgetune.decide.labelling import Candidate, Question, next_questions
from edgetune.store import answers
from edgetune.store.answers import AnsweredSample
from edgetune.store.buffer import Buffer
from edgetune.types import Manifest

_QUEUE = 1000  # the newest unlabelled samples are chosen from
_COMPARED = 400
_HOLDOUT_SHARE = 4  # one of so many is for the hold-out, as long as that lacks labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What the choice is made from."""

    waiting: tuple[AnsweredSample, ...]
    labelled: tuple[AnsweredSample, ...]
    holdout: tuple[int, ...]


def read(buffer: Buffer, version: int, count: int) -> Material:
    """On the store's thread."""
    return Material(
        waiting=tuple(answers.waiting(buffer, version, _QUEUE)),
        labelled=tuple(answers.labelled_lately(buffer, version, _COMPARED)),
        holdout=tuple(answers.without_judgement(buffer, count)),
    )


def next_rows(
    material: Material, manifest: Manifest, *, count: int, sharpness: float, holdout: tuple[int, int]
) -> dict[str, Any]:
    """
    Choose, and say why.

    Args:
        material: of the served version.
        manifest: the served version's.
        count: at most so many rows.
        sharpness: the calibration of its confidence.
        holdout: labelled hold-out samples, there and wanted.
    """
    there, wanted = holdout
    lacking = max(0, wanted - there)
    drawn = material.holdout[: min(lacking, -(-count // _HOLDOUT_SHARE))]
    chosen = next_questions(
        [Candidate(sample=each.sample, group=each.group, logits=each.logits) for each in material.waiting],
        [each.logits for each in material.labelled],
        count=count - len(drawn),
        sharpness=sharpness,
    )
    why_drawn = f"drawn at random for the hold-out ({there} of {wanted} labelled)"
    rows = [_row(question, manifest) for question in chosen]
    rows += [
        {"sample": sample, "why": why_drawn, "guess": None, "confidence": None, "how": _how(sample)} for sample in drawn
    ]
    return {"model_version": manifest.version, "answered": len(material.waiting), "samples": rows}


def _row(question: Question, manifest: Manifest) -> dict[str, Any]:
    guess, rival = manifest.classes[question.guess], manifest.classes[question.rival]
    row = {"mark": manifest.marks[guess]} if guess in manifest.marks else {}
    return row | {
        "sample": question.sample,
        "why": f"one of {question.alike} taken for {guess}, of which {question.labelled} are labelled or asked for; next {rival}",
        "guess": guess,
        "confidence": round(question.confidence, 4),
        "how": _how(question.sample),
    }


def _how(sample: int) -> str:
    return f"edgetune data label {sample} CLASS"
