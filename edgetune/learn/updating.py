"""What a round trains of a network, as its recipe says or as memory and time allow; see `learn.partial`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgetune.learn.data import LabelledImages, Normaliser
from edgetune.learn.layout import computing_in
from edgetune.learn.network import Network
from edgetune.learn.partial import Latents, Part, last_stage
from edgetune.learn.transfer import Shown, StoredLogits, Teacher, telling_logits

_BATCH = 64


class Updating:
    """
    Makes parts of networks ready to be trained.

    Attributes:
        name: what is trained: "full", "tail", "head" or "latent".
    """

    def __init__(
        self,
        training: LabelledImages,
        normaliser: Normaliser,
        teacher: nn.Module | Teacher | None,
        *,
        scratch: Path | None,
        beat: Callable[[], None],
    ) -> None:
        """`scratch` is where latents may lie, `beat` is called after every batch that is looked at."""
        self.name = "full"
        self._training, self._normaliser, self._teacher = training, normaliser, teacher
        self._scratch, self._beat = scratch, beat

    def ways(self, network: Network, update: str) -> list[str]:
        """What a recipe's update may come to, best first; "latent" is "tail" where latents cannot be kept."""
        if update not in ("auto", "latent"):
            return [update]
        upper = "latent" if self.part(network, "latent").is_the_only_way() else "tail"
        return [upper] if update == "latent" else ["full", upper, "head"]

    @contextlib.contextmanager
    def partly(self, network: Network, dtype: str) -> Iterator[tuple[Part | None, nn.Module | Teacher | None]]:
        """The part that is trained, None for the whole network, and who teaches it; `dtype` as in `finetune.Phase`."""
        if self.name == "full":
            yield None, self._teacher
            return
        part, teacher = self.part(network, self.name), self._teacher
        with part.trained_alone():
            if self.name != "latent":
                yield part, teacher
                return
            part.kept = Latents(part, self._training, self._normaliser, scratch=self._scratch, beat=self._beat)
            if teacher is not None:
                teacher = self._answers_of(teacher, dtype, network, part)
            try:
                yield part, teacher
            finally:
                part.kept.close()

    def part(self, network: Network, name: str) -> Part:
        """What is trained of the network: its last stage, or as "head" its output layer."""
        image = self._normaliser(self._training.images(np.zeros(1, np.int64)))
        return Part(network, network.head if name == "head" else last_stage(network, image), image)

    def _answers_of(self, teacher: nn.Module | Teacher, dtype: str, network: Network, part: Part) -> StoredLogits:
        """What a teacher says of each image as it is, once; from the latents, where its lower part is the network's."""
        above = self._above(teacher, network, part)
        ask = telling_logits(teacher) if isinstance(teacher, nn.Module) else teacher
        said, classes = [], None
        count = len(self._training)
        for places in np.split(np.arange(count), range(_BATCH, count, _BATCH)):
            with torch.no_grad(), computing_in(dtype, part.image.device):
                if above is not None and part.kept is not None:
                    logits = above.logits(part.kept.batch(places))
                else:
                    shown = Shown(
                        images=self._normaliser(self._training.images(places)),
                        sample_ids=self._training.sample_ids[places],
                        draws=np.zeros(len(places), np.uint64),
                    )
                    answer = ask(shown)
                    logits, classes = answer.logits, answer.classes
            said.append(logits.float().cpu())
            self._beat()
        return StoredLogits(self._training.sample_ids, torch.cat(said).numpy(), classes)

    def _above(self, teacher: nn.Module | Teacher, network: Network, part: Part) -> Part | None:
        """Of a teacher that answers from the network's latents what lies above them; None: it needs the images."""
        if not isinstance(teacher, nn.Module) or part.cut not in dict(teacher.named_modules()):
            return None
        its = Part(replace(network, module=teacher), part.cut, part.image)
        return its if its.is_the_only_way() and its.below_is_of(part) else None
