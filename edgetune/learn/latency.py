"""Latency on the runtime that serves: timed side by side with the unpruned network, and pruning until it is reached."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetune.learn.data import Images
from edgetune.learn.export import artefact_files, draft_manifest, selftest_images, stage
from edgetune.learn.network import Network
from edgetune.learn.prune import Limit
from edgetune.serve.engine import Engine
from edgetune.serve.timing import as_latency, taken_in_turn, undisturbed_ratio
from edgetune.types import Latency, Preprocess

_SURE = 3  # times as many turns where one measurement decides
_TRIALS = 6  # each halves what is left of the range: 1/64 of the operations at the end
_LESS = (0.97, 0.94, 0.88, 0.76)  # of the operations of what was found and then timed too slow, one after the other


def export_engine(network: Network, preprocess: Preprocess, *, threads: int) -> Engine:
    """A network in the serving engine, as a published version would be: exported, loaded, warmed."""
    other = copy.deepcopy(network)
    other.module.to("cpu")
    files = artefact_files(other, preprocess, lambda: None)
    classes = [str(number) for number in range(network.num_classes)]
    manifest = draft_manifest(other, preprocess, classes, len(files["model.onnx"]))
    with tempfile.TemporaryDirectory(prefix="edgetune-timing-") as scratch:
        stage(Path(scratch), files, manifest)
        return Engine.load(Path(scratch), threads=threads)


class Stopwatch:
    """Times networks against one that stays, interleaved with it, so that heat and other work hit all of them alike."""

    def __init__(self, base: Engine, preprocess: Preprocess, *, runs: int, beat: Callable[[], None]) -> None:
        """`base` is timed with every measurement; `runs` predictions each, with its number of threads."""
        self._base, self._preprocess, self._runs, self._beat = base, preprocess, runs, beat

    def ratios(self, networks: Sequence[Network]) -> list[float]:
        """Each network's latency over the base's; see `undisturbed_ratio`."""
        return [ratio for ratio, _ in self.compared(networks)[:-1]]

    def ratio(self, network: Network) -> float:
        """The same of one."""
        return self.ratios([network])[0]

    def sure_ratio(self, network: Network) -> float:
        """The same in more turns, which strays less."""
        return self.compared([network], runs=_SURE * self._runs)[0][0]

    def compared(self, networks: Sequence[Network], *, runs: int | None = None) -> list[tuple[float, Latency]]:
        """
        The same ratio of each, and what all turns say: median and spread. The base, in the same turns, is the last.

        Of several each finds a processor's caches full of the others, so that all ratios are up to a tenth higher than of one.
        """
        taken_ms = self._taken(networks, self._runs if runs is None else runs)
        threads, base_ms = self._base.threads, taken_ms[-1]
        return [(undisturbed_ratio(row, base_ms), as_latency(row, base_ms, threads=threads)) for row in taken_ms]

    def _taken(self, networks: Sequence[Network], runs: int) -> npt.NDArray[np.float64]:
        """Milliseconds [networks + 1, runs], the base last."""
        engines = []
        for network in networks:
            engines.append(export_engine(network, self._preprocess, threads=self._base.threads))
            self._beat()
        # The last in turn is not timed for its own sake: it says that work is done, outside the others' time.
        turns: list[Engine | Callable[[Images], object]] = [*engines, self._base, lambda _: self._beat()]
        taken_ms = taken_in_turn(turns, selftest_images(self._preprocess), runs=runs)
        for engine in engines:
            engine.close()
        return taken_ms[:-1]


def cut_to_latency(
    smaller: Callable[[Limit], Network],
    *,
    macs: int,
    ratio: Callable[[Network], float],
    sure_ratio: Callable[[Network], float],
    at_most: float,
) -> tuple[Network, float]:
    """
    The largest network, by multiply-accumulates, that is fast enough.

    Latency is taken to fall with the operations that are left. Where it does not (a width that the runtime dislikes),
    a network may be found that is smaller than need be. Of several that were timed the largest that seemed fast enough is
    the one that was timed too fast most likely, so it is timed once more, and made smaller until it is fast enough again.

    Args:
        smaller: cuts a copy to a limit.
        macs: of the whole network.
        ratio: a network's measured latency over that of the whole one.
        sure_ratio: the same, measured more thoroughly.
        at_most: the ratio that is wanted, 0..1.

    Returns:
        That network, or the smallest one tried when none was fast enough, and the ratio of its last measurement.
    """
    low, high, share = 0.0, 1.0, at_most  # shares of the operations: fast enough, and too slow, as far as is known
    best: Network | None = None
    for _ in range(_TRIALS):
        candidate = smaller(Limit("macs", round(macs * share)))
        taken = ratio(candidate)
        if taken <= at_most:
            low, best = share, candidate
        else:
            high = share
        share = (low + high) / 2
    if best is None:
        return candidate, taken
    taken = sure_ratio(best)
    for less in _LESS:
        if taken <= at_most:
            break
        low *= less
        best = smaller(Limit("macs", round(macs * low)))
        taken = sure_ratio(best)
    return best, taken
