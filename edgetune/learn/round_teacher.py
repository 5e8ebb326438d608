"""A round's teacher: found where the spec names it, the same one from the first start to the last, noted in the journal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgetune.errors import TeacherError, TeacherSilentError
from edgetune.learn.control import Control
from edgetune.learn.data import Images, LabelledImages, Normaliser
from edgetune.learn.layout import arrange
from edgetune.learn.network import Network, widen_head
from edgetune.learn.planning import Asking
from edgetune.learn.teachers import OutsideTeacher, added_up, open_teacher
from edgetune.learn.transfer import Teacher, is_label_free, telling_logits
from edgetune.types import Manifest, Preprocess, Recipe, RoundSpec

_TRIED_OUT = 8  # images


class RoundTeacher:
    """
    Whom the spec names; close it.

    Attributes:
        asked: what the loss takes: the factory model or who is asked outside.
        classes: the candidate's, in order: the round's, and after them those that come from the teacher alone.
    """

    def __init__(
        self,
        spec: RoundSpec,
        *,
        factory: Manifest,
        load: Callable[[Manifest], Network],
        preprocess: Preprocess,
        device: torch.device,
        control: Control,
        journal: MutableMapping[str, Any],
    ) -> None:
        """
        Find it.

        Args:
            spec: of the round.
            factory: of the factory model.
            load: reads a version's network.
            preprocess: the student's.
            device: where the factory model is asked.
            control: hears that something goes on while an answer is waited for.
            journal: of the round, with what its earlier starts have noted.

        Raises:
            TeacherError: it cannot be used, or is not the one that this round began with.
        """
        self._journal, self._before = journal, journal.get("teacher", {})
        self.classes, self._normaliser = spec.classes, Normaliser(preprocess, device)
        self._is_label_free = is_label_free(spec.recipe.transfer, spec.recipe.distillation)
        self.asked: nn.Module | Teacher
        if spec.teacher.kind == "ancestor":
            self._factory = _ancestor(load(factory), factory, spec, device)
            self._numbers = tuple(i for i, label in enumerate(spec.classes) if label in factory.classes)
            is_whole = spec.recipe.transfer == "hinton"
            self.asked = self._factory if is_whole else telling_logits(self._factory, self._numbers)
            return
        self.asked = teacher = open_teacher(
            spec.teacher,
            preprocess=preprocess,
            classes=spec.classes,
            answers_dir=Path(spec.answers_dir),
            threads=spec.recipe.threads,
            control=control,
            version=self._before.get("version"),
            refused=spec.refused_classes,
        )
        self.classes = (*spec.classes, *teacher.unseen)
        self._numbers = teacher.shared
        if self._before and teacher.record()["identity"] != self._before["identity"]:
            teacher.close()
            raise TeacherError("the teacher is not the one that this round began with")

    @property
    def known(self) -> tuple[str, ...]:
        """The classes of the round that it knows."""
        return tuple(self.classes[number] for number in self._numbers)

    @property
    def taught(self) -> tuple[str, ...] | None:
        """What a candidate can have learnt where nothing but its word counts: what it knows. None: labels count too."""
        return self.known if self._is_label_free else None

    def probabilities(self, images: Images) -> npt.NDArray[np.float64]:
        """
        How likely it finds each class of the round: uint8 [B, H, W, 3] -> [B, classes]; the rest to one is for others.

        Raises:
            TeacherError: it gives no answer.
        """
        found = np.zeros((len(images), len(self.classes)))
        if self.outside is not None:
            found[:, self._numbers] = self.outside.probabilities(images)
            return found
        with torch.no_grad():
            logits = self._factory(self._normaliser(images))[:, list(self._numbers)]
        found[:, self._numbers] = torch.softmax(logits.double(), dim=1).cpu().numpy()
        return found

    def asking(self, training: LabelledImages, recipe: Recipe, *, is_mixed: bool) -> Asking | None:
        """
        What asking it takes, tried out on a few images; None: it is the factory model. `is_mixed`: about mixtures too.

        Raises:
            TeacherError: it cannot be used.
        """
        if self.outside is None or not len(training):
            return None
        image_s, held_mib = 0.0, 0.0
        with contextlib.suppress(TeacherSilentError):  # then there is only what it has said before
            image_s, held_mib = self.outside.try_out(training.images(np.arange(min(_TRIED_OUT, len(training)))))
        views = 1 if recipe.augment == "none" else recipe.augment_views
        return Asking(image_s=image_s, held_mib=held_mib, views=views, is_mixed=is_mixed)

    @property
    def outside(self) -> OutsideTeacher | None:
        """It, unless it is the factory model."""
        return self.asked if isinstance(self.asked, OutsideTeacher) else None

    @property
    def by_sample(self) -> Teacher | None:
        """It, unless it is a network that is asked about all classes: that is what is pruned, as it is given."""
        return None if isinstance(self.asked, nn.Module) else self.asked

    def note(self) -> None:
        """Put into the journal who it is, and what asking it took, over all starts of the round."""
        if self.outside is not None:
            self._journal["teacher"] = added_up(self._before, self.outside.record())

    def close(self) -> None:
        """End what runs beside the round."""
        if self.outside is not None:
            self.outside.close()


def _ancestor(network: Network, factory: Manifest, spec: RoundSpec, device: torch.device) -> nn.Module:
    """The factory model, which remembers what this site does not show."""
    widen_head(network, factory.classes, spec.classes)
    return arrange(network.module, device, "contiguous").eval()
