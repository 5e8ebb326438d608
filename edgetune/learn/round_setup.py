"""What a round has before its first step: journal, versions, samples, teacher and the tuner, made alike at every start."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import psutil

from edgetune.learn.candidate import needed_manifest
from edgetune.learn.control import Control
from edgetune.learn.data import LabelledImages
from edgetune.learn.journal import Journal
from edgetune.learn.layout import Layout, pin_torch
from edgetune.learn.mixtures import Mixtures
from edgetune.learn.network import Network, load_network
from edgetune.learn.planning import refuse_to_load, shortened
from edgetune.learn.rehearsal import choose_replay, keep_replayed, make_rehearsal, new_classes
from edgetune.learn.round_samples import gather
from edgetune.learn.round_teacher import RoundTeacher
from edgetune.learn.schedules import settle
from edgetune.learn.transfer import has_teacher, is_label_free
from edgetune.learn.tuner import Tuner
from edgetune.store.models import version_name
from edgetune.types import BoardHistory, Forecast, Manifest, Mark, RoundKind, RoundSpec, Split
from edgetune.wire import to_json


class RoundSetup:
    """
    All that stays the same while a round takes its steps.

    Attributes:
        directory: of the round.
        spec: what to do; with the classes that the teacher brings.
        control: where progress goes, and where pace and stop come from.
        digest: of the spec as it was written.
        journal: what is written down of the round.
        base: the served version's manifest.
        factory: the factory model's.
        source: of the two the one that the round starts from.
        recipe: settled for the source, and as the plan chose it.
        device: where training runs.
        teacher: None: nobody teaches.
        splits: the round's samples.
        tuner: the round's hands.
    """

    def __init__(self, directory: Path, spec: RoundSpec, control: Control) -> None:
        """
        Read what there is and gather the samples.

        Raises:
            RoundError, ModelError: a named outcome.
        """
        self.directory, self.spec, self.control = directory, spec, control
        # The history only says how a round is run, which the journal keeps once it is begun.
        self.digest = hashlib.sha256(to_json(replace(spec, history=BoardHistory()))).hexdigest()
        self.journal = Journal(directory, self.digest)
        self.base = needed_manifest(spec, spec.base_version)
        self.factory = needed_manifest(spec, spec.factory_version)
        self.source = self.factory if spec.kind is RoundKind.RESHAPE else self.base
        self.recipe = settle(spec.recipe, self.source.architecture)
        self.journal["starts"] = self.journal.get("starts", 0) + 1
        self.journal.setdefault("bare_mib", round(psutil.Process().memory_info().rss / 2**20, 1))
        self.journal.write()
        least = keep_replayed(spec.samples, new_classes(spec, self.base), ())  # replayed ones are chosen later
        count = sum(sample.label is not None for sample in least)
        refuse_to_load(count, self.recipe, self.source, bare_mib=self.journal["bare_mib"])
        is_begun = "samples" in self.journal
        self.device = pin_torch(self.recipe.threads, self.journal)
        self.teacher = self._find_teacher() if has_teacher(self.recipe) else None
        try:
            self._prepare(is_begun=is_begun)
        except BaseException:
            self.close()
            raise

    def _find_teacher(self) -> RoundTeacher:
        return RoundTeacher(
            self.spec,
            factory=self.factory,
            load=self.load,
            preprocess=self.source.preprocess,
            device=self.device,
            control=self.control,
            journal=self.journal,
        )

    def _prepare(self, *, is_begun: bool) -> None:
        """What every start does once it is known who teaches."""
        self.note_teacher()
        if self.teacher is not None:  # it may bring classes that no sample shows
            self.spec = replace(self.spec, classes=self.teacher.classes)
        self.splits = self._gather()
        self.tuner = Tuner(
            self.recipe,
            self.splits[Split.TRAINING],
            self.splits[Split.VALIDATION],
            preprocess=self.source.preprocess,
            device=self.device,
            control=self.control,
            round_id=self.spec.round_id,
            teacher=None if self.teacher is None else self.teacher.asked,
            scratch=self.directory,
            history=self.spec.history,
        )
        self.tuner.by_labels = make_rehearsal(
            self.directory,
            self.spec,
            self.recipe,
            self.base,
            self.splits[Split.TRAINING],
            is_begun=is_begun,
            load=lambda: self.load(self.base),
            device=self.device,
            beat=self.control.beat,
        )
        self.tuner.mixtures = self._mixtures()
        if "layout" in self.journal:
            self.tuner.layout = Layout(**self.journal["layout"])
            self.tuner.use_threads(self.journal["threads"])
        if self.journal.forecast is not None:
            self.follow(self.journal.forecast)
        if "scoring_batch" in self.journal:
            self.tuner.scoring_batch = self.journal["scoring_batch"]
        self.journal.write()

    @property
    def never_shown(self) -> tuple[int, ...]:
        """Numbers of the classes that a file is to teach, that the served version knows by its word at most, and no label shows."""
        source, teacher = self.spec.teacher, None if self.teacher is None else self.teacher.outside
        if teacher is None or source.kind != "file" or not source.unseen_classes:
            return ()
        told = {sample.label for sample in self.spec.samples if sample.split is Split.TRAINING}
        served = {c for c in self.base.classes if self.base.marks.get(c) != Mark.NEVER_SEEN_HERE.value}
        return tuple(n for n in teacher.shared if self.spec.classes[n] not in told | served)

    def _mixtures(self) -> Mixtures | None:
        """What the teacher is asked about beside the samples. A server is not: that would be many times the images."""
        teacher = None if self.teacher is None else self.teacher.outside
        if teacher is None or not self.never_shown or not is_label_free(self.recipe.transfer, self.recipe.distillation):
            return None
        return Mixtures(teacher.once, teacher.shared, self.never_shown)

    def _gather(self) -> dict[Split, LabelledImages]:
        """The round's samples, of old classes those that are replayed beside new ones."""
        spec, base = self.spec, self.base
        if "replayed" not in self.journal:
            self.journal["replayed"] = choose_replay(
                spec,
                self.recipe,
                base,
                load=lambda: self.load(base),
                device=self.device,
                beat=self.control.beat,
            )
        kept = keep_replayed(spec.samples, new_classes(spec, base), self.journal["replayed"])
        return gather(
            replace(spec, samples=kept),
            base_classes=base.classes,
            preprocess=self.source.preprocess,
            teacher=self.teacher,
            kept_in=self.directory,
            digest=self.digest,
            control=self.control,
            journal=self.journal,
        )

    def load(self, manifest: Manifest) -> Network:
        """A version's network."""
        return load_network(Path(self.spec.models_dir) / version_name(manifest.version), self.spec.builders)

    def follow(self, plan: Forecast) -> None:
        """Run the round as its plan says."""
        self.tuner.updating.name, self.tuner.accumulation = plan.update, plan.accumulation
        self.recipe = replace(shortened(self.recipe, plan.training), accumulation=plan.accumulation)

    def note_teacher(self) -> None:
        """Write down what was asked of it so far."""
        if self.teacher is not None:
            self.teacher.note()
            self.journal.write()

    def close(self) -> None:
        """End what runs beside the round."""
        if self.teacher is not None:
            self.note_teacher()
            self.teacher.close()
