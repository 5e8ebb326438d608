"""The search of a round: what it has to reach, and what the journal keeps of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from edgetune.learn.compress import Goal, Material, Outcome, compress
from edgetune.learn.control import Control
from edgetune.learn.data import LabelledImages
from edgetune.learn.measure import ask
from edgetune.learn.mixtures import Mixtures
from edgetune.learn.network import Network
from edgetune.learn.planning import shortened
from edgetune.learn.transfer import Teacher
from edgetune.learn.tuner import Tuner
from edgetune.serve.engine import Engine
from edgetune.store.models import version_name
from edgetune.types import Manifest, Preprocess, Recipe, RoundSpec, Split


def search_round(
    network: Network,
    *,
    spec: RoundSpec,
    recipe: Recipe,
    base: Manifest,
    splits: dict[Split, LabelledImages],
    preprocess: Preprocess,
    tuner: Tuner,
    prunes_first: bool,
    teacher: Teacher | None,
    mixtures: Mixtures | None,
    work: Path,
    control: Control,
) -> Outcome:
    """
    Go as far towards the recipe's level as the validation samples allow.

    Args:
        network: what is pruned.
        spec: of the round.
        recipe: of the round, settled.
        base: the version that the candidate has to stand beside.
        splits: training and validation samples.
        preprocess: of the network.
        tuner: whose layout the trials train in.
        prunes_first: because memory is short.
        teacher: asked where the recipe distils; None: the network as given, about all classes.
        mixtures: that it is asked about beside the samples.
        work: a directory for what must outlive a kill.
        control: sets the pace, asks for a stop.
    """
    recipe, epochs_max = _within(recipe, tuner.epoch_steps)
    validation = splits[Split.VALIDATION]
    served = _served_accuracy(spec, base, validation, control.beat)
    goal = Goal(
        accuracy_drop_max=recipe.accuracy_drop_max,
        accuracy_min=served - recipe.accuracy_drop_max,
        ratio=1 - recipe.level,
        strategy=recipe.search,
        trial_epochs=recipe.trial_epochs,
        seconds_max=recipe.search_time_max_s,
        joules_max=recipe.search_energy_max_j,
        epochs_max=epochs_max,
    )
    material = Material(
        training=splits[Split.TRAINING], validation=validation, preprocess=preprocess, classes=spec.classes
    )
    return compress(
        network,
        material,
        replace(
            recipe,
            memory_format=tuner.layout.memory_format,
            dtype=tuner.layout.dtype,
            threads=tuner.threads,
            cores_max=None,
            order="prune_first" if prunes_first else "tune_first",
        ),
        goal,
        work=work,
        threads=spec.serving_threads,
        round_id=spec.round_id,
        control=control,
        teacher=teacher,
        mixtures=mixtures,
    )


def _within(recipe: Recipe, epoch_steps: int) -> tuple[Recipe, float | None]:
    """A recipe whose first trial and retraining keep to the most steps of a round, and these in epochs; None: no bound."""
    if recipe.max_steps is None:
        return recipe, None
    most = recipe.max_steps / epoch_steps
    return shortened(recipe, min(1.0, most / (recipe.epochs_before + recipe.trial_epochs + recipe.epochs_after))), most


def told(outcome: Outcome) -> dict[str, Any]:
    """What the journal keeps."""
    return {
        "base": asdict(outcome.base),
        "trials": [asdict(point) for point in outcome.points],
        "epochs": outcome.epochs,
        "joules": outcome.joules,
        "stopped_by": outcome.stopped_by,
    }


def _served_accuracy(spec: RoundSpec, base: Manifest, validation: LabelledImages, beat: Callable[[], None]) -> float:
    """Validation top-1 of the version that the candidate has to stand beside."""
    directory = Path(spec.models_dir) / version_name(base.version)
    engine = Engine.load(directory, threads=spec.serving_threads)
    answers = ask(engine.predict, engine.classes, validation, spec.classes, beat)
    engine.close()
    return float(answers.is_correct.mean()) if len(validation) else 0.0
