"""What a round trains of a network, as its recipe says or as memory and time allow; see `learn.partial`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

from edgetune.learn.data import LabelledImages, Normaliser
from edgetune.learn.layout import computing_in
from edgetune.learn.network import Network
from edgetune.learn.partial import Latents, Part, last_stage
from edgetune.learn.transfer import Shown, StoredLogits, Teacher, telling_logits
from edgetune.types import Recipe


class Forecast(Protocol):
    """Resident MiB of a training step."""

    def __call__(self, batch_size: int, part: Part | None = None) -> float:
        """Of so many images; None: of the whole network."""


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

    def choose(
        self,
        network: Network,
        recipe: Recipe,
        forecasting: AbstractContextManager[Forecast],
        *,
        whole_s: Callable[[], float],
    ) -> dict[str, str]:
        """
        Settle what the recipe's update is here, and train that from now on.

        Args:
            network: to be trained.
            recipe: says what, and within which memory and time.
            forecasting: of a step's memory.
            whole_s: measures how many seconds all steps would take with the whole network, pauses that are asked for included.

        Returns:
            "update", one of full, tail, head and latent, and "why", empty where it is what the recipe says.
        """
        chosen, why = (
            (recipe.update, "") if recipe.update != "auto" else self._fits(network, recipe, forecasting, whole_s)
        )
        if chosen == "latent" and (lacking := self._lacks_for_latents(network)):
            chosen, why = "tail", "; ".join(filter(None, (why, lacking)))
        self.name = chosen
        return {"update": chosen, "why": why}

    def _fits(
        self,
        network: Network,
        recipe: Recipe,
        forecasting: AbstractContextManager[Forecast],
        whole_s: Callable[[], float],
    ) -> tuple[str, str]:
        """What "auto" comes to, and why it is not everything."""
        most_mib, most_s = recipe.memory_max_mib, recipe.time_max_s
        with forecasting as forecast_mib:
            whole_mib = forecast_mib(recipe.batch_size)
            if most_mib is not None and whole_mib > most_mib:
                why = f"a step of the whole network would take {whole_mib:.0f} MiB of {most_mib:.0f}"
            elif most_s is not None and (needed_s := whole_s()) > most_s:
                why = f"training the whole network would take {needed_s:.0f} s of {most_s:.0f}"
            else:
                return "full", ""
            tail_mib = forecast_mib(recipe.batch_size, self._part(network, "tail"))
            if most_mib is not None and tail_mib > most_mib:
                return "head", f"{why}, and one of its last stage {tail_mib:.0f} MiB"
        return "latent", why

    def _lacks_for_latents(self, network: Network) -> str:
        return "" if self._part(network, "latent").is_the_only_way() else "layers of the network pass its last stage by"

    @contextlib.contextmanager
    def partly(self, network: Network, dtype: str) -> Iterator[tuple[Part | None, nn.Module | Teacher | None]]:
        """The part that is trained, None for the whole network, and who teaches it; `dtype` as in `finetune.Phase`."""
        if self.name == "full":
            yield None, self._teacher
            return
        part, teacher = self._part(network, self.name), self._teacher
        with part.trained_alone():
            if self.name != "latent":
                yield part, teacher
                return
            part.kept = Latents(part, self._training, self._normaliser, scratch=self._scratch, beat=self._beat)
            if teacher is not None:
                teacher = self._answers_of(teacher, dtype)
            try:
                yield part, teacher
            finally:
                part.kept.close()

    def _part(self, network: Network, name: str) -> Part:
        image = self._normaliser(self._training.images(np.zeros(1, np.int64)))
        return Part(network, network.head if name == "head" else last_stage(network, image), image)

    def _answers_of(self, teacher: nn.Module | Teacher, dtype: str) -> StoredLogits:
        """What a teacher says of each image as it is, once."""
        ask = telling_logits(teacher) if isinstance(teacher, nn.Module) else teacher
        said, classes, begin = [], None, 0
        for images, _ in self._training.in_order(64):
            sample_ids = self._training.sample_ids[begin : begin + len(images)]
            begin += len(images)
            shown = Shown(
                images=self._normaliser(images), sample_ids=sample_ids, draws=np.zeros(len(images), np.uint64)
            )
            with torch.no_grad(), computing_in(dtype, shown.images.device):
                answer = ask(shown)
            said.append(answer.logits.float().cpu())
            classes = answer.classes
            self._beat()
        return StoredLogits(self._training.sample_ids, torch.cat(said).numpy(), classes)
