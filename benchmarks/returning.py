"""
Does the board notice a class that comes back, and how often does it think so wrongly?

    python -m benchmarks.returning --data DIR_WITH_cifar100.zip --weights resnet20_cifar100.safetensors
        [--subsets aquatic] [--level 50] [--absent 10] [--share 10] [--controls 400] [--noise 0]

The given ResNet20 knows a hundred classes. The site shows 80 images of each class of the subset that the network was not
trained on, 20 more select; the served model is the given one, tuned for 2 epochs, pruned with the default criterion in
multiples of 8, and retrained for 8 with half of the word the factory model's. 400 of these images are the controls. Then
unlabelled test images arrive, none of which either network has seen, and the daemon's own rule (`decide.returning`) looks
at them with its default thresholds: once the site's classes only, where every class that is noticed is a false alarm, and
once with one absent class mixed in. With `--noise 15` all of it comes through a camera whose noise has that standard
deviation, of 255, which the given network never saw.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from benchmarks.cifar import PREPROCESS, Archive, classes_of, read_archive
from benchmarks.stage import machine, say, table
from edgetune.decide.returning import ReturnPolicy, Sighted, absent_classes, is_worth_asking, returned
from edgetune.learn.control import SilentControl
from edgetune.learn.cost import size_of
from edgetune.learn.data import Normaliser
from edgetune.learn.importer import read_weights
from edgetune.learn.layout import arrange
from edgetune.learn.network import Network, load_strictly, new_network
from edgetune.learn.tuner import RETRAIN, TUNE, Tuner
from edgetune.types import Recipe

RECIPE = Recipe(
    round_to=8, epochs_before=2, epochs_after=8, distillation=0.5, memory_format="contiguous", dtype="float32"
)
DEVICE = torch.device("cpu")
POLICY = ReturnPolicy()
ORDERS = 5  # in which the images arrive


@dataclass(frozen=True)
class Answers:
    """What both networks say about images: [class][image]."""

    seen: npt.NDArray[np.int64]  # the factory model's best class
    confidence: npt.NDArray[np.float64]  # its probability
    answers: npt.NDArray[np.int64]  # the served model's best class


def main() -> int:
    """Read the arguments, play every site."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--subsets", nargs="+", default=["aquatic"])
    parser.add_argument("--level", type=float, default=50)
    parser.add_argument("--absent", type=int, default=10, help="how many absent classes come back, one after the other")
    parser.add_argument("--share", type=float, default=10, help="of the images, while one is back, in percent")
    parser.add_argument("--controls", type=int, default=POLICY.window, help="labelled images, at most the window")
    parser.add_argument("--noise", type=float, default=0, help="of the site's camera, of 255")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    archive = read_archive(arguments.data, arguments.work)
    if arguments.noise:
        archive = replace(
            archive, train=noisy(archive.train, arguments.noise), test=noisy(archive.test, arguments.noise)
        )
    given = new_network("cifar:resnet20", len(archive.classes))
    load_strictly(given.module, read_weights(arguments.weights))
    say(f"{machine()}, {time.strftime('%Y-%m-%d')}, {arguments.threads} threads; {POLICY}")
    for subset in arguments.subsets:
        began_s = time.monotonic()
        shown = classes_of(subset)
        served = serve(given, archive, shown, arguments.level, arguments.threads)
        answers = ask(archive.test, given.module, served.module)
        controls = ask(archive.train[:, 400:480], given.module, served.module)
        words = f"noise {arguments.noise:g}" if arguments.noise else "as it is"
        say(f"\n{subset}, {words}, level {arguments.level:g} %: {time.monotonic() - began_s:.0f} s")
        site = Site(archive, shown, answers, controls, arguments.controls)
        site.play_false_alarms()
        site.play_returns(arguments.absent, arguments.share / 100)
    return 0


def serve(given: Network, archive: Archive, shown: tuple[str, ...], level: float, threads: int) -> Network:
    """The network that a round would make of the given one for this site."""
    recipe = replace(RECIPE, threads=threads)
    tuner = Tuner(
        recipe,
        archive.samples("train", shown, range(400, 480)),
        archive.samples("train", shown, range(480, 500)),
        preprocess=PREPROCESS,
        device=DEVICE,
        control=SilentControl(),
        teacher=arrange(copy.deepcopy(given.module), DEVICE, "contiguous").eval(),
    )
    network = tuner.place(copy.deepcopy(given))
    tuner.fine_tune(network, TUNE, round(recipe.epochs_before * tuner.epoch_steps))
    whole = size_of(given, PREPROCESS)
    shape, _ = tuner.cut(network, share=1 - level / 100, whole=whole, stopwatch=None)
    tuner.fine_tune(shape.network, RETRAIN, round(recipe.epochs_after * tuner.epoch_steps))
    return shape.network


def noisy(images: npt.NDArray[np.uint8], deviation: float) -> npt.NDArray[np.uint8]:
    """Through another camera; class by class, because all at once would not fit into memory."""
    rng = np.random.default_rng(0)
    return np.stack([
        (of_class + rng.normal(0, deviation, of_class.shape)).clip(0, 255).astype(np.uint8) for of_class in images
    ])  # fmt: skip


def ask(pixels: npt.NDArray[np.uint8], factory: nn.Module, served: nn.Module) -> Answers:
    """Let both answer every image, [class][image]."""
    count, each = pixels.shape[:2]
    images = pixels.reshape(-1, *pixels.shape[2:])
    seen, answers = _probabilities(factory, images), _probabilities(served, images)
    return Answers(
        seen.argmax(1).reshape(count, each), seen.max(1).reshape(count, each), answers.argmax(1).reshape(count, each)
    )


def _probabilities(module: nn.Module, images: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    normaliser = Normaliser(PREPROCESS, DEVICE)
    module.eval()
    with torch.no_grad():
        parts = [torch.softmax(module(normaliser(images[i : i + 250])), 1) for i in range(0, len(images), 250)]
    return torch.cat(parts).double().numpy()


class Site:
    """Images arrive here."""

    def __init__(
        self, archive: Archive, shown: tuple[str, ...], answers: Answers, controls: Answers, most: int
    ) -> None:
        self._classes, self._answers = archive.classes, answers
        self._shown = [archive.classes.index(label) for label in shown]
        self._absent = absent_classes(archive.classes, archive.classes, dict.fromkeys(shown, 80))
        rows = range(archive.test.shape[1])
        self._site = [(number, row) for number in self._shown for row in rows]
        labelled = [(number, row) for number in self._shown for row in range(controls.seen.shape[1])]
        drawn = np.random.default_rng(0).permutation(labelled)[:most].tolist()
        self._controls = len(drawn)
        self._errors = Counter(
            label for number, row in drawn if (label := self._sighting(number, row, controls)) is not None
        )
        right = np.mean([answers.seen[number] == number for number in self._shown])
        say(f"the factory model is right on {right:.1%} of the site's images; errors among the controls: "
            f"{', '.join(f'{label} {count}' for label, count in self._errors.most_common(3)) or 'none'}")  # fmt: skip

    def play_false_alarms(self) -> None:
        """The site's classes only."""
        sighted = Counter(label for place in self._site if (label := self._sighting(*place)) is not None)
        most: Counter[str] = Counter()
        alarms = []
        for order in range(ORDERS):
            for _, counts, back in self._stream(self._site, order):
                most |= counts
                alarms += [(order, each.label) for each in back]
        say(
            f"only the site's classes, {len(self._site)} images in {ORDERS} orders: {len(set(alarms))} false alarms;"
            f" {sum(sighted.values())} sightings of {len(sighted)} of {len(self._absent)} absent classes"
        )
        rows = [("absent class", "sightings", f"per {POLICY.window} images", "most in a window")]
        for label, count in sighted.most_common(5):
            rate = count / len(self._site) * POLICY.window
            rows.append((label, str(count), f"{rate:.1f}", f"{most[label]} of {POLICY.sightings}"))
        say(table(rows))

    def play_returns(self, how_many: int, share: float) -> None:
        """One absent class after the other among them; which ones is drawn, not chosen."""
        labels = np.random.default_rng(0).permutation(sorted(self._absent))[:how_many].tolist()
        rows = [
            ("class that comes back", "sighted of its images", "noticed in", "after images", "labels right", "others")
        ]
        for label in sorted(labels):
            number = self._classes.index(label)
            its = [(number, row) for row in range(self._answers.seen.shape[1])]
            rest = round(len(its) * (1 - share) / share)
            sighted = sum(self._sighting(*place) == label for place in its)
            after, right, others = [], [], Counter[str]()
            for order in range(ORDERS):
                site = np.random.default_rng(order).permutation(self._site)[:rest].tolist()
                for looked_at, _, back in self._stream([*its, *map(tuple, site)], order):
                    others.update({each.label for each in back} - {label})
                    if label in {each.label for each in back}:
                        after.append(looked_at)
                        right.append(self._share_right(label, number, [*its, *map(tuple, site)]))
                        break
            rows.append((
                label, f"{sighted} of {len(its)}", f"{len(after)} of {ORDERS}", f"{median(after):.0f}" if after else "-",
                f"{median(right):.0%}" if right else "-", ", ".join(sorted(others)) or "-",
            ))  # fmt: skip
        say(f"one absent class is {share:.0%} of {round(len(its) / share)} images, {ORDERS} orders")
        say(table(rows))

    def _share_right(self, label: str, number: int, places: list[tuple[int, int]]) -> float:
        said = [place for place in places if self._sighting(*place) == label]
        return sum(place[0] == number for place in said) / len(said)

    def _sighting(self, number: int, row: int, answers: Answers | None = None) -> str | None:
        """The absent class that the factory model sees in an image and the served one does not."""
        answers = answers or self._answers
        seen, answer = answers.seen[number, row], answers.answers[number, row]
        label = self._classes[seen]
        best = (label, float(answers.confidence[number, row]))
        return label if is_worth_asking(best, self._absent, POLICY) and answer != seen else None

    def _stream(self, places: list[tuple[int, int]], order: int) -> Iterable[tuple[int, Counter[str], Any]]:
        """After each image: how many arrived, what is sighted in the window, what counts as returned."""
        window: deque[str | None] = deque(maxlen=POLICY.window)
        for arrived, i in enumerate(np.random.default_rng(100 + order).permutation(len(places)).tolist(), 1):
            window.append(self._sighting(*places[i]))
            counts = Counter(label for label in window if label is not None)
            sighted = [
                Sighted(label=label, sightings=count, groups=count, errors=self._errors[label])
                for label, count in counts.items()
            ]
            back = returned(sighted, looked_at=len(window), controls=self._controls, policy=POLICY)
            yield arrived, counts, back


if __name__ == "__main__":
    raise SystemExit(main())
