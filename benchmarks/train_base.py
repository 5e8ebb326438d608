"""
Trains the deployed models that nobody hands out: three networks on CIFAR-100, one that lacks two classes, a large teacher.

    python -m benchmarks.train_base --data DIR --weights-dir DIR --nets squeezenet mobilenet_v2 alexnet
        [--data-set cifar100|cifar10] [--without CLASS ...] [--trained-on 400] [--epochs 160] [--minutes 30] [--seed 0]
        [--threads N] [--timing]

    --nets squeezenet mobilenet_v2 alexnet                              for benchmarks.data_aware
    --nets resnet20 --data-set cifar10 --without ship truck             a device that has eight classes and will meet two more
    --nets wrn28_10 --data-set cifar10 --trained-on 3000 --epochs 200   a teacher for benchmarks.compress: wants a GPU

The protocol of the given ResNet20: of CIFAR-100 the first 400 training images of each class, so that a site can draw on the
last 100 which no base has seen; of CIFAR-10 the first 2,400 of 3,000. SGD with momentum 0.9, batch 128, a rise over the
first twentieth and a cosine to a hundredth of the rate of `RATES`; shifted by up to 4 pixels and mirrored. Nothing selects:
the weights are those of the last epoch, and the test images are asked once, at the end. While it runs, ten images of each
class that the base does not see, where there are any, are asked at each epoch's end, to look at only.

Each net ends as WEIGHTS_DIR/<net>_<data set>[_without_<class>...].safetensors with its classes in a .txt beside it, for
`edgetune models import --weights --classes` or another benchmark's `--weights`. Killed or out of its `--minutes`, the same
command goes on: a checkpoint (safetensors) is replaced at each epoch's end and when SIGTERM or Ctrl-C asks for a stop;
progress.json beside it says what was seen. On the CPU the resumed run ends in the same weights, bit for bit. On CUDA where
torch finds it. Memory format, and bfloat16 where the processor has it, are measured at the first start and kept;
`--timing` says how long an epoch would take and trains nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from benchmarks.cifar import FILES, Archive, read_archive
from benchmarks.stage import machine, say
from edgetune.learn.checkpoint import load_checkpoint, save_checkpoint
from edgetune.learn.control import SilentControl, StopAskedError
from edgetune.learn.data import LabelledImages, Normaliser
from edgetune.learn.finetune import Phase, fine_tune, steps_per_epoch, validation_score
from edgetune.learn.importer import read_weights
from edgetune.learn.layout import Layout, arrange, candidate_layouts, fastest_layout, training_device
from edgetune.learn.network import Network, load_strictly, new_network, rebuild, state_tensors
from edgetune.store.durable import write_atomic

BATCH, EPOCHS = 128, 160
# net -> largest learning rate, weight decay. AlexNet has no batch norm and diverges at the others' rate.
RATES = {
    "alexnet": (0.02, 5e-4),
    "mobilenet_v2": (0.1, 5e-4),
    "squeezenet": (0.1, 5e-4),
    "resnet20": (0.1, 5e-4),
    "resnet56": (0.1, 5e-4),
    "wrn28_10": (0.1, 5e-4),
}
TRAINED_ON = {"cifar100": 400, "cifar10": 2400}  # images of each class
WATCHED = 10  # images of each class


class Chunk(SilentControl):
    """Hears of every step: tells and remembers what an epoch came to, and asks for a stop when the time is over."""

    def __init__(self, epoch_steps: int, ends_s: float | None, ended: Callable[[int, float, float], None]) -> None:
        """`ended` is called with the epoch, its mean loss and its seconds."""
        super().__init__()
        self._epoch_steps, self._ends_s, self._ended = epoch_steps, ends_s, ended
        self._losses: list[float] = []
        self._began_s = time.monotonic()

    def progress(self, **values: Any) -> None:
        """A step is done."""
        if "step" not in values:
            return
        self._losses.append(values["loss"])
        if values["step"] % self._epoch_steps == 0:
            self._ended(values["epoch"] + 1, sum(self._losses) / len(self._losses), time.monotonic() - self._began_s)
            self._losses, self._began_s = [], time.monotonic()
        if self._ends_s is not None and time.monotonic() >= self._ends_s:
            self.stop()


class Training:
    """Of one net."""

    def __init__(
        self, net: str, archive: Archive, *, name: str, directory: Path, epochs: int, seed: int, trained_on: int
    ) -> None:
        """
        Read what is to be trained on.

        Args:
            net: a key of RATES.
            archive: the classes that the net is to know.
            name: of the files.
            directory: WEIGHTS_DIR; what must outlive a kill is below it.
            epochs: in all.
            seed: of everything.
            trained_on: the first so many images of each class.
        """
        self._net, self._archive, self._epochs, self._trained_on = net, archive, epochs, trained_on
        self._device = training_device()
        self._normaliser = Normaliser(archive.preprocess, self._device)
        self._images = archive.samples("train", archive.classes, range(trained_on))
        self._epoch_steps = steps_per_epoch(self._images, BATCH)
        self.weights = directory / f"{name}.safetensors"
        self._work = directory / f"{name}.training"
        self._seed = seed
        self.digest = digest_of(net, archive.classes, trained_on, epochs, seed)
        self._facts: dict[str, Any] = {"of": self.digest, "layout": None, "epochs": []}

    def _phase(self, layout: Layout) -> Phase:
        rate, decay = RATES[self._net]
        return Phase(
            name="base", steps=self._epochs * self._epoch_steps, batch_size=BATCH, learning_rate=rate, schedule="cosine",
            momentum=0.9, weight_decay=decay, augment="crop_flip", checkpoint_steps=self._epoch_steps, seed=self._seed,
            round_id=0, dtype=layout.dtype,
        )  # fmt: skip

    def _fresh(self) -> Network:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            return new_network(f"cifar:{self._net}", len(self._archive.classes))

    def layout_to_take(self, memory_format: str, dtype: str) -> None:
        """Use this layout instead of measuring."""
        self._facts["layout"] = asdict(Layout(memory_format, dtype))

    def time_it(self) -> Layout:
        """Time a few steps in each memory format; say how long an epoch takes in the fastest."""
        part = np.arange(BATCH)
        images = self._normaliser(self._images.images(part))
        labels = self._normaliser.labels(self._images.labels[part])
        layout, measured_s = fastest_layout(
            arrange(self._fresh().module, self._device, "contiguous"), images, labels,
            candidate_layouts("auto", "auto", self._device),
        )  # fmt: skip
        epoch_s = min(measured_s.values()) * self._epoch_steps
        say(
            f"  {self._net} on {self._device}: a step of {BATCH} takes {measured_s} s; {layout.memory_format} "
            f"{layout.dtype}: {epoch_s:.0f} s an epoch, {epoch_s * self._epochs / 3600:.1f} h for {self._epochs}"
        )
        return layout

    def run(self, ends_s: float | None) -> bool:
        """Train until the end, or until a stop is asked for; whether the end was reached."""
        if self.weights.exists():
            say(f"  {self.weights} is there: test {self.test():.1%}")
            return True
        self._work.mkdir(parents=True, exist_ok=True)
        self._read_facts()
        if self._facts["layout"] is None:
            self._facts["layout"] = asdict(self.time_it())
        layout = Layout(**self._facts["layout"])
        found = load_checkpoint(self._work, self.digest)
        network = self._fresh() if found is None else rebuild(found.description, found.network)
        arrange(network.module, self._device, layout.memory_format)
        if found is not None:
            say(f"  {self._net} goes on after step {found.step:,} of {self._epochs * self._epoch_steps:,}")
        control = Chunk(self._epoch_steps, ends_s, lambda *seen: self._epoch_ended(network, *seen))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: control.stop())
        try:
            fine_tune(
                network, self._phase(layout), self._images, _nothing(self._images), self._normaliser, resume=found,
                save=lambda checkpoint: save_checkpoint(self._work, checkpoint, self.digest), control=control,
            )  # fmt: skip
        except StopAskedError:
            say(f"  {self._net} stopped; the same command goes on")
            return False
        write_atomic(
            self.weights.with_suffix(".txt"), "".join(f"{label}\n" for label in self._archive.classes).encode()
        )
        write_atomic(self.weights, save(state_tensors(network.module)))
        say(f"  {self.weights}: test {self.test():.1%}")
        return True

    def _read_facts(self) -> None:
        path = self._work / "progress.json"
        if path.exists():
            plain = json.loads(path.read_text())
            self._facts = plain if plain.get("of") == self.digest else self._facts

    def _epoch_ended(self, network: Network, epoch: int, loss: float, seconds: float) -> None:
        watched = self._watched(network)
        seen = {"epoch": epoch, "loss": round(loss, 4), "watched": watched, "seconds": round(seconds, 1)}
        self._facts["epochs"] = [e for e in self._facts["epochs"] if e["epoch"] < epoch] + [seen]
        write_atomic(self._work / "progress.json", json.dumps(self._facts, indent=1).encode())
        words = "" if watched is None else f", watched {watched:.1%}"
        say(f"  {self._net} epoch {epoch}/{self._epochs}: loss {loss:.3f}{words}, {seconds:.0f} s")

    def _watched(self, network: Network) -> float | None:
        """Top-1 on some images that are not trained on; None: there are none."""
        rows = range(self._trained_on, self._archive.train.shape[1])[:WATCHED]
        return self._top1(network, self._archive.samples("train", self._archive.classes, rows)) if rows else None

    def test(self) -> float:
        """Top-1 of the finished weights on all test images."""
        network = new_network(f"cifar:{self._net}", len(self._archive.classes))
        load_strictly(network.module, read_weights(self.weights))
        arrange(network.module, self._device, "contiguous")
        return self._top1(
            network, self._archive.samples("test", self._archive.classes, range(self._archive.test.shape[1]))
        )

    def _top1(self, network: Network, data: LabelledImages) -> float:
        return validation_score(network.module, data, self._normaliser, 250, SilentControl())[0]


def _nothing(images: LabelledImages) -> LabelledImages:
    """No sample: nothing selects."""
    none = np.empty(0, np.int64)
    return LabelledImages(none, none, images.pixels[:0], Path(), images.preprocess)


def digest_of(net: str, classes: Sequence[str], trained_on: int, epochs: int, seed: int) -> str:
    """What a checkpoint has to be of to be gone on with."""
    return hashlib.sha256(
        json.dumps([net, list(classes), trained_on, epochs, seed, BATCH, RATES[net]]).encode()
    ).hexdigest()


def main() -> int:
    """Read the arguments, train one net after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights-dir", type=Path, required=True)
    parser.add_argument(
        "--work", type=Path, default=Path("benchmarks/results"), help="where the decoded images are kept"
    )
    parser.add_argument("--nets", nargs="+", default=["squeezenet", "mobilenet_v2", "alexnet"], choices=sorted(RATES))
    parser.add_argument("--data-set", default="cifar100", choices=sorted(FILES))
    parser.add_argument("--without", nargs="+", default=[], metavar="CLASS", help="classes that the net is not to know")
    parser.add_argument("--trained-on", type=int, help="images of each class; default: 400, of CIFAR-10 2400")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--minutes", type=float, help="stop after so many; the same command goes on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--timing", action="store_true", help="how long an epoch takes, nothing else")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ends_s = None if arguments.minutes is None else time.monotonic() + 60 * arguments.minutes
    arguments.weights_dir.mkdir(parents=True, exist_ok=True)
    archive = read_archive(arguments.data, arguments.work, arguments.data_set)
    if unknown := set(arguments.without) - set(archive.classes):
        parser.error(f"--without: {arguments.data_set} has no class {', '.join(sorted(unknown))}")
    archive = archive.without(arguments.without)
    say(f"{machine()}, {time.strftime('%Y-%m-%d')}, {arguments.threads} threads")
    for net in arguments.nets:
        name = "_".join([net, arguments.data_set, *(["without", *arguments.without] if arguments.without else [])])
        training = Training(
            net, archive, name=name, directory=arguments.weights_dir, epochs=arguments.epochs, seed=arguments.seed,
            trained_on=arguments.trained_on or TRAINED_ON[arguments.data_set],
        )  # fmt: skip
        if arguments.timing:
            training.time_it()
        elif not training.run(ends_s):
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
