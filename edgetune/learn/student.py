"""
A large network teaches a small one: as few layers as a group can have, as wide as the teacher's activations are not zero.

    material = Material(training=..., validation=..., preprocess=..., classes=(...))
    taught = teach(teacher, material, Lesson(parameters_max=20_000), work=Path("work"))
    taught.network                                              # the student after its last epoch

Killed and called again with the same arguments, it goes on where it was, and ends in the same weights on the CPU.

Source: Zhao, Chen, Zhao 2022 (arXiv 2201.10947), section 3.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from edgetune.errors import NoSamplesError
from edgetune.learn.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from edgetune.learn.control import Control, SilentControl
from edgetune.learn.data import Normaliser
from edgetune.learn.finetune import Phase, fine_tune, steps_per_epoch, validation_score, without_labels
from edgetune.learn.goal import Material
from edgetune.learn.layout import arrange, training_device
from edgetune.learn.network import Network, new_network, rebuild, state_tensors
from edgetune.learn.sparsity import thin_student, widths_within
from edgetune.learn.transfer import is_label_free
from edgetune.store.durable import make_dir, write_atomic

PHASE = "teach"
_CURVE_FILE = "curve.json"
_LOOKED_AT = 2048  # images from which the student's widths are taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """Who is taught, and how."""

    parameters_max: int  # learnt ones of the student, where its widths are left to the teacher's activations
    student: str | None = None  # an architecture, as it is; None: one of the teacher's family
    transfer: str = "label_free"  # see `transfer.make_transfer`
    share: float = 0.9  # 0..1, the teacher's, of a transfer that looks at labels too
    temperature: float = 4.0  # of "hinton"
    epochs: float = 60
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9  # Nesterov's
    weight_decay: float = 5e-4
    augment: str = "crop_flip"
    checkpoint_steps: int = 100
    seed: int = 0
    threads: int = 1

    @property
    def is_label_free(self) -> bool:
        """Whether no label is looked at."""
        return is_label_free(self.transfer, self.share)


@dataclass(slots=True)
class Taught:
    """What came of it."""

    network: Network
    teacher_accuracy: float  # validation top-1
    accuracy: float
    zeros_percent: int | None  # the share of zeros from which a channel counted as silent; None: the student was given
    curve: list[float] = field(default_factory=list)  # validation top-1 after each epoch
    seconds: float = 0.0  # of this call


def teach(
    teacher: Network,
    material: Material,
    lesson: Lesson,
    *,
    work: Path,
    control: Control | None = None,
    told: Callable[[int, float], None] = lambda _epoch, _accuracy: None,
) -> Taught:
    """
    Make a student and teach it.

    Args:
        teacher: answers the material's classes; not changed.
        material: what it is shown. A label-free transfer never looks at the training labels, and the validation labels
            choose nothing: they say how good the student is.
        lesson: who and how.
        work: a directory for what must outlive a kill.
        control: sets the pace, asks for a stop.
        told: hears of each epoch's number and validation top-1.

    Raises:
        NoSamplesError: there is no training image.
        UnprunableError: no student of the teacher's family is that small.
        ModelError: the student and the teacher do not fit together.
        StopAskedError: a stop was asked for; call again to go on.
    """
    if len(material.training) == 0:
        raise NoSamplesError("there is no training image", hint="a teacher needs images to answer")
    return _Teaching(teacher, material, lesson, work=work, control=control or SilentControl(), told=told).run()


class _Teaching:
    """One call of `teach`."""

    def __init__(
        self,
        teacher: Network,
        material: Material,
        lesson: Lesson,
        *,
        work: Path,
        control: Control,
        told: Callable[[int, float], None],
    ) -> None:
        self._material, self._lesson, self._work = material, lesson, work
        self._control, self._told = control, told
        self._began_s = time.monotonic()
        torch.set_num_threads(lesson.threads)
        self._device = training_device()
        self._normaliser = Normaliser(material.preprocess, self._device)
        self._teacher = copy.deepcopy(teacher)
        arrange(self._teacher.module, self._device, "contiguous")
        self._teacher.module.eval()
        self._digest = _digest(teacher, material, lesson)
        make_dir(work)

    def run(self) -> Taught:
        """All of it, or what is left."""
        lesson, material = self._lesson, self._material
        checkpoint = load_checkpoint(self._work, self._digest)
        percent, network = self._student() if checkpoint is None else self._kept(checkpoint)
        arrange(network.module, self._device, "contiguous")
        plan = without_labels(material.training) if lesson.is_label_free else material.training
        epoch_steps = steps_per_epoch(plan, lesson.batch_size)
        done = 0 if checkpoint is None else checkpoint.step // epoch_steps
        curve = self._curve(done)
        self._control.phase(PHASE)

        def heard(accuracies: Sequence[float]) -> bool:
            curve[done:] = accuracies
            self._write_curve(percent, curve)
            self._told(len(curve), curve[-1])
            return False

        fine_tune(
            network,
            self._phase(round(lesson.epochs * epoch_steps)),
            material.training,
            material.validation,
            self._normaliser,
            resume=checkpoint,
            save=lambda state: save_checkpoint(self._work, state, self._digest),
            control=self._control,
            teacher=self._teacher.module,
            is_enough=heard if len(material.validation) else lambda _: False,
        )
        return Taught(
            network=network,
            teacher_accuracy=self._accuracy(self._teacher),
            accuracy=self._accuracy(network),
            zeros_percent=percent,
            curve=curve,
            seconds=round(time.monotonic() - self._began_s, 1),
        )

    def _student(self) -> tuple[int | None, Network]:
        """A new one, with weights drawn from the seed."""
        lesson, teacher = self._lesson, self._teacher
        torch.manual_seed(lesson.seed)
        if lesson.student is not None:
            return None, new_network(lesson.student, teacher.num_classes, teacher.builders)
        self._control.phase("look")
        percent, widths = widths_within(teacher, self._batches(), parameters_max=lesson.parameters_max)
        torch.manual_seed(lesson.seed)
        self._write_curve(percent, [])
        return percent, thin_student(teacher.architecture, teacher.num_classes, widths)

    def _kept(self, checkpoint: Checkpoint) -> tuple[int | None, Network]:
        return self._journal()[0], rebuild(checkpoint.description, checkpoint.network, self._teacher.builders)

    def _batches(self) -> Iterator[torch.Tensor]:
        """Images [B, 3, H, W] of the training, in a drawn order."""
        images = self._material.training
        order = np.random.default_rng(self._lesson.seed).permutation(len(images))[:_LOOKED_AT]
        for start in range(0, len(order), self._lesson.batch_size):
            yield self._normaliser(images.images(order[start : start + self._lesson.batch_size]))
            self._control.beat()

    def _phase(self, steps: int) -> Phase:
        lesson = self._lesson
        return Phase(
            name=PHASE,
            steps=steps,
            batch_size=lesson.batch_size,
            learning_rate=lesson.learning_rate,
            schedule="cosine",
            momentum=lesson.momentum,
            nesterov=True,
            weight_decay=lesson.weight_decay,
            augment=lesson.augment,
            checkpoint_steps=lesson.checkpoint_steps,
            seed=lesson.seed,
            round_id=0,
            transfer=lesson.transfer,
            distillation=lesson.share,
            temperature=lesson.temperature,
        )

    def _accuracy(self, network: Network) -> float:
        data = self._material.validation
        if len(data) == 0:
            return float("nan")
        return validation_score(network.module, data, self._normaliser, self._lesson.batch_size, self._control)[0]

    # ------------------------------------------------------------------------------------------- what is told

    def _curve(self, epochs: int) -> list[float]:
        """What earlier calls heard, of so many epochs."""
        return self._journal()[1][:epochs]

    def _journal(self) -> tuple[int | None, list[float]]:
        path = self._work / _CURVE_FILE
        plain = json.loads(path.read_bytes()) if path.exists() else {}
        return (plain["zeros_percent"], plain["curve"]) if plain.get("of") == self._digest else (None, [])

    def _write_curve(self, percent: int | None, curve: Sequence[float]) -> None:
        plain = {"of": self._digest, "zeros_percent": percent, "curve": list(curve)}
        write_atomic(self._work / _CURVE_FILE, json.dumps(plain).encode())


def _digest(teacher: Network, material: Material, lesson: Lesson) -> str:
    """Of everything that the student's weights depend on; a label-free lesson does not depend on labels."""
    total = hashlib.sha256(json.dumps(asdict(lesson)).encode())
    total.update(json.dumps([material.classes, asdict(material.preprocess)], default=list).encode())
    data = material.training
    total.update(data.sample_ids.tobytes() + data.pixels.tobytes())
    if not lesson.is_label_free:
        total.update(data.labels.tobytes() + material.validation.pixels.tobytes())
    for name, tensor in sorted(state_tensors(teacher.module).items()):
        total.update(name.encode() + tensor.numpy().tobytes())
    return total.hexdigest()
