"""
How far is the estimate of the accuracy without labels from the truth, and does the board notice that its images change?

    python -m benchmarks.estimate --data DIR_WITH_cifar10_test.zip --weights resnet20_cifar10.safetensors
        [--labelled 300] [--each 400] [--streams 5] [--threads 1]

A given ResNet20 answers CIFAR-10's test images, which it was not trained on. So many of them are the labelled hold-out; the
others arrive one by one without labels: two stretches as they are, then with more and more blur, noise, or too little or too
much light, `--each` images of every strength. After every stretch the daemon's own estimate (`decide.estimate`, the last 400)
is compared with the share that is right, and with the mean calibrated confidence; all the while `decide.drift` looks at them
with its defaults. Another stream, as long, stays as it is: every alarm there is a false one.
"""

from __future__ import annotations

import argparse
import io
import os
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFilter

from benchmarks.cifar import PREPROCESS
from benchmarks.stage import machine, say, table
from edgetune.daemon.watching import WatchPolicy
from edgetune.decide import drift
from edgetune.decide.drift import DriftPolicy, Watched
from edgetune.decide.estimate import Answered, Estimate, calibrate, estimate, probabilities
from edgetune.learn.data import Normaliser
from edgetune.learn.importer import load_weights, read_weights
from edgetune.learn.network import new_network

Images = npt.NDArray[np.uint8]
WINDOW = WatchPolicy().window


def blurred(images: Images, sigma: float) -> Images:
    """A lens out of focus."""
    return np.stack([np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma))) for image in images])


def noisy(images: Images, deviation: float) -> Images:
    """A sensor at night."""
    noise = np.random.default_rng(0).normal(0, deviation, images.shape)
    return (images + noise).clip(0, 255).astype(np.uint8)


def lit(images: Images, factor: float) -> Images:
    """Dusk, or the sun."""
    return (images * factor).clip(0, 255).astype(np.uint8)


STREAMS: dict[str, tuple[Callable[[Images, float], Images], tuple[float, ...]]] = {
    "blur": (blurred, (0.3, 0.5, 0.7, 1.0)),
    "noise": (noisy, (5, 10, 15, 20)),
    "less light": (lit, (0.8, 0.6, 0.4, 0.25)),
    "more light": (lit, (1.2, 1.5, 2.0, 3.0)),
}


def main() -> int:
    """Read the arguments, let the network answer, play every stream."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--labelled", type=int, default=300, help="images of the hold-out")
    parser.add_argument("--each", type=int, default=400, help="images of every strength")
    parser.add_argument("--streams", type=int, default=5, help="orders in which the images arrive")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    wanted = arguments.labelled + 10 * arguments.each
    images, truth, classes = read(arguments.data / "cifar10_test.zip", wanted)
    ask = network(arguments.weights, classes)
    say(f"{machine()}, {time.strftime('%Y-%m-%d')}, {arguments.threads} threads; {arguments.labelled} labelled images")
    site = Site(images, truth, ask, arguments.labelled, arguments.each, arguments.streams)
    site.play_unchanged()
    for name, (change, strengths) in STREAMS.items():
        site.play(name, change, strengths)
    return 0


def read(path: Path, count: int) -> tuple[Images, npt.NDArray[np.int64], tuple[str, ...]]:
    """So many images of all classes, drawn."""
    with zipfile.ZipFile(path) as zipped:
        names = sorted(name for name in zipped.namelist() if name.startswith("test/") and name.count("/") == 2)
        classes = tuple(sorted({name.split("/")[1] for name in names}))
        drawn = [names[i] for i in np.random.default_rng(0).permutation(len(names))[:count]]
        images = np.stack([np.asarray(Image.open(io.BytesIO(zipped.read(name))).convert("RGB")) for name in drawn])
    return images, np.array([classes.index(name.split("/")[1]) for name in drawn]), classes


def network(weights: Path, classes: tuple[str, ...]) -> Callable[[Images], npt.NDArray[np.float32]]:
    """Images -> logits."""
    given = new_network("cifar:resnet20a", len(classes))
    load_weights(given, read_weights(weights), classes)
    module, normaliser = given.module.eval(), Normaliser(PREPROCESS, torch.device("cpu"))

    def ask(images: Images) -> npt.NDArray[np.float32]:
        with torch.no_grad():
            parts = [module(normaliser(images[i : i + 250])) for i in range(0, len(images), 250)]
        return torch.cat(parts).numpy()

    return ask


class Site:
    """Images arrive here."""

    def __init__(  # noqa: PLR0917 - one caller
        self,
        images: Images,
        truth: npt.NDArray[np.int64],
        ask: Callable[[Images], npt.NDArray[np.float32]],
        labelled: int,
        each: int,
        streams: int,
    ) -> None:
        self._images, self._truth, self._ask = images, truth, ask
        self._labelled, self._each, self._streams = labelled, each, streams
        self._plain = ask(images)

    def play_unchanged(self) -> None:
        """All that is not labelled, in many orders: the error of the estimate, and the false alarms."""
        alarms = windows = 0
        errors, within = [], 0
        for order in range(20 * self._streams):
            rows = np.random.default_rng(order).permutation(len(self._truth))
            judged, rest = rows[: self._labelled], rows[self._labelled :]
            labelled = self._answered(self._plain[judged], self._truth[judged])
            given, watched = watch(self._plain[rest], Watched(), replace(DriftPolicy(), cool_down=0))
            alarms, windows = alarms + given, windows + (len(rest) - DriftPolicy().warm_up) // DriftPolicy().window
            assert len(watched.reference) >= DriftPolicy().warm_up
            found, right, _ = self._estimates(self._plain[rest[:WINDOW]], self._truth[rest[:WINDOW]], labelled)
            errors.append(found.accuracy - right)
            within += abs(errors[-1]) <= found.error
        say(
            f"as they are, {20 * self._streams} orders: the estimate is {mean(errors):+.1%} from the truth, by"
            f" {mean(map(abs, errors)):.1%} either way, within its bar in {within} of {len(errors)};"
            f" {alarms} false alarms in {windows} windows of {DriftPolicy().window} images"
        )

    def play(self, name: str, change: Callable[[Images, float], Images], strengths: tuple[float, ...]) -> None:
        """One stream, in several orders."""
        changed = {strength: self._ask(change(self._images, strength)) for strength in strengths}
        rows = [(name, "right", "estimate", "its bar", "mean confidence", "too low told", "change noticed")]
        told: dict[float, list[tuple[float, float, float, float, float, float]]] = {
            strength: [] for strength in strengths
        }
        for order in range(self._streams):
            drawn = np.random.default_rng(100 + order).permutation(len(self._truth))
            judged = drawn[: self._labelled]
            labelled = self._answered(self._plain[judged], self._truth[judged])
            stretches = np.array_split(drawn[self._labelled :], 10)
            _, watched = watch(self._plain[np.concatenate(stretches[:2])], Watched(), DriftPolicy())
            for stretch, strength in zip(stretches[2:], strengths, strict=False):
                # Every strength begins anew after the unchanged stretches: what is noticed is this one.
                alarms, _ = watch(changed[strength][stretch], watched, DriftPolicy())
                found, right, confidence = self._estimates(
                    changed[strength][stretch[-WINDOW:]], self._truth[stretch[-WINDOW:]], labelled
                )
                is_low = found.is_below(WatchPolicy().drop_max or 0)
                told[strength].append((right, found.accuracy, found.error, confidence, is_low, alarms > 0))
        for strength, figures in told.items():
            right_, found_, bar, sure, low, noticed = (list(column) for column in zip(*figures, strict=True))
            rows.append((
                f"{strength:g}", f"{mean(right_):.1%}", f"{mean(found_):.1%}", f"± {mean(bar):.1%}",
                f"{mean(sure):.1%}", f"{sum(low):.0f} of {len(low)}", f"{sum(noticed):.0f} of {len(noticed)}",
            ))  # fmt: skip
        say(f"\n{self._each} images of each strength, {self._streams} orders")
        say(table(rows))

    def _estimates(
        self, logits: npt.NDArray[np.float32], truth: npt.NDArray[np.int64], labelled: list[Answered]
    ) -> tuple[Estimate, float, float]:
        """The estimate, the truth, and the mean calibrated confidence beside them."""
        sharpness = calibrate(labelled)
        window = self._answered(logits)
        found = estimate(window, labelled, sharpness)
        assert isinstance(found, Estimate), found
        confidence = mean(max(probabilities(answer.logits, sharpness)) for answer in window)
        return found, float((logits.argmax(1) == truth).mean()), confidence

    def _answered(self, logits: npt.NDArray[np.float32], truth: npt.NDArray[np.int64] | None = None) -> list[Answered]:
        truths = [None] * len(logits) if truth is None else truth.tolist()
        return [
            Answered(logits=tuple(row), group=str(i), truth=known)
            for i, (row, known) in enumerate(zip(logits.tolist(), truths, strict=True))
        ]


def watch(logits: npt.NDArray[np.float32], watched: Watched, policy: DriftPolicy) -> tuple[int, Watched]:
    """How many alarms there are, and what is remembered."""
    alarms = 0
    for sample, row in enumerate(logits.tolist()):
        before = watched.shift
        watched = drift.after(watched, sample, max(probabilities(row)), policy)
        alarms += watched.shift is not None and watched.shift != before
    return alarms, watched


if __name__ == "__main__":
    raise SystemExit(main())
