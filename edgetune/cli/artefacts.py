"""The model that a verb is given, and the directory that it leaves."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgetune.cli.installing import check_options, make_preprocess, read_classes
from edgetune.errors import UsageError
from edgetune.learn.control import Control
from edgetune.learn.data import LabelledImages
from edgetune.learn.export import artefact_files, check_export, draft_manifest, selftest_images, stage
from edgetune.learn.folders import Folders
from edgetune.learn.importer import assemble, read_artefact
from edgetune.learn.measure import ask, summarise
from edgetune.learn.network import Network
from edgetune.serve.engine import Engine
from edgetune.serve.timing import time_interleaved
from edgetune.store import durable
from edgetune.store.models import publish, version_name
from edgetune.types import Comparison, Latency, Manifest, Metrics, Preprocess, Pruning

_NO_VERSION = 0  # a directory of its own is no published version


@dataclass(frozen=True, slots=True)
class Source:
    """The model as given."""

    network: Network
    classes: tuple[str, ...]
    preprocess: Preprocess
    name: str  # of the file or directory it came from
    marks: Mapping[str, str] = field(default_factory=dict)  # of its classes, see `Manifest`


def read_model(model: str, given: Mapping[str, Any], builders: Mapping[str, str]) -> Source:
    """
    Read MODEL: a directory that was exported, or an architecture with what the options say.

    Raises:
        UsageError: it is neither, or the options do not go together.
        ModelError: it cannot be read.
    """
    path = Path(model)
    if path.is_dir():
        check_options(given, directory=model, needed=())
        manifest, network = read_artefact(path, builders)
        return Source(network, manifest.classes, manifest.preprocess, path.resolve().name, manifest.marks)
    if ":" not in model and model not in builders:
        raise UsageError(
            f"{model} is neither a directory nor an architecture",
            hint="name a directory that `edgetune models export` wrote, or cifar:<net>, torchvision:<builder> or "
            "package.module:function with --weights and --classes",
        )
    check_options(given, directory=None, needed=("weights", "classes_file"))
    preprocess = make_preprocess(model, given["size"], given["resize"], given["mean"], given["std"])
    classes = read_classes(given["classes_file"])
    network = assemble(model, weights=given["weights"], classes=classes, builders=builders)
    return Source(network, tuple(classes), preprocess, given["weights"].name)


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the two networks, exported and loaded as it would be served."""

    engine: Engine
    files: Mapping[str, bytes]
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Result:
    """What was written, beside what it was made from."""

    given: Manifest
    final: Manifest
    given_latency: Latency
    final_latency: Latency
    given_test: Metrics | None  # None: there is no test folder
    final_test: Metrics | None


def write_result(
    out: Path,
    source: Source,
    network: Network,
    data: Folders,
    *,
    kind: str,
    is_trained: bool,
    pruning: Callable[[float], Pruning | None],
    threads: int,
    timing_runs: int,
    control: Control,
) -> Result:
    """
    Export a network into a new directory, after it was compared with the model as given, in turn and as served.

    Args:
        out: does not exist.
        source: the model as given.
        network: what became of it.
        data: its test images are asked of both.
        kind: of the manifest.
        is_trained: on the data's training images; else it is the model as given.
        pruning: what was cut, given the network's latency over that of the model as given.
        threads: of the serving engine.
        timing_runs: predictions a side.
        control: hears of every step.

    Raises:
        ModelError: the exported graph does not answer as the network does.
    """
    control.phase("export")
    with _exported(source, source.network, threads) as given, _exported(source, network, threads) as final:
        control.phase("time")
        pictures = selftest_images(source.preprocess)
        given_latency, final_latency = time_interleaved([given.engine, final.engine], pictures, runs=timing_runs)
        comparison = None
        if data.test is not None and len(data.test):
            control.phase("measure")
            comparison = _compare(given, final, data.test, (given_latency, final_latency), control)
        manifest = replace(
            final.manifest,
            kind=kind,
            source=source.name,
            latency=final_latency,
            comparison=comparison,
            marks=_marks(source, data.training if is_trained else None),
            pruning=pruning(final_latency.median_ms / given_latency.median_ms),
            samples_digest=data.samples_digest,
            sample_count=data.count,
        )
        _publish(out, final.files, manifest)
    return Result(
        given=given.manifest,
        final=manifest,
        given_latency=given_latency,
        final_latency=final_latency,
        given_test=None if comparison is None else comparison.base,
        final_test=None if comparison is None else comparison.candidate,
    )


@contextlib.contextmanager
def _exported(source: Source, network: Network, threads: int) -> Iterator[_Side]:
    network.module.to("cpu")
    files = artefact_files(network, source.preprocess, lambda: None)
    manifest = draft_manifest(network, source.preprocess, source.classes, len(files["model.onnx"]))
    with tempfile.TemporaryDirectory(prefix="edgetune-export-") as scratch:
        stage(Path(scratch), files, manifest)
        engine = Engine.load(Path(scratch), threads=threads)
        try:
            check_export(engine, network, source.preprocess)
            yield _Side(engine, files, manifest)
        finally:
            engine.close()


def _compare(
    given: _Side, final: _Side, test: LabelledImages, latencies: tuple[Latency, Latency], control: Control
) -> Comparison:
    classes = given.manifest.classes
    before = ask(given.engine.predict, classes, test, classes, control.beat)
    after = ask(final.engine.predict, classes, test, classes, control.beat)
    return Comparison(
        base=summarise(before, test, classes),
        candidate=summarise(after, test, classes),
        only_base_correct=int((before.is_correct & ~after.is_correct).sum()),
        only_candidate_correct=int((after.is_correct & ~before.is_correct).sum()),
        base_latency=latencies[0],
        candidate_latency=latencies[1],
        base_cost=given.manifest.cost,
        candidate_cost=final.manifest.cost,
    )


def _marks(source: Source, training: LabelledImages | None) -> dict[str, str]:
    """The model's as given, less those of classes that it was shown since."""
    shown = set() if training is None else {source.classes[number] for number in set(training.labels.tolist())}
    return {label: mark for label, mark in source.marks.items() if label not in shown}


def _publish(out: Path, files: Mapping[str, bytes], manifest: Manifest) -> None:
    """Whole or not at all: built beside its place, hashed as every version is, and renamed."""
    place = out.with_name(f".{out.name}.tmp")
    durable.remove_dir(place)
    durable.make_dir(place)
    publish(place, _NO_VERSION, files, manifest)
    durable.move(place / version_name(_NO_VERSION), out)
    durable.remove_dir(place)


def learnt_classes(classes: Sequence[str], data: Folders) -> frozenset[str]:
    """Those that there are training images of."""
    return frozenset(classes[number] for number in np.unique(data.training.labels))


def describe_side(
    manifest: Manifest, latency: Latency, accuracy: float, test: Metrics | None, *, learnt: Collection[str]
) -> dict[str, Any]:
    """One of the two for JSON; test images of the classes that were learnt, and of others, are told apart."""
    return {
        **asdict(manifest.cost),
        "latency_ms": latency.median_ms,
        "latency_p90_ms": latency.p90_ms,
        "validation_accuracy": accuracy,
        "test_accuracy": _share_right(test, lambda label: label in learnt),
        "test_accuracy_others": _share_right(test, lambda label: label not in learnt),
    }


def _share_right(test: Metrics | None, is_meant: Callable[[str], bool]) -> float | None:
    """Of the images of those classes; None where there are none."""
    scores = [] if test is None else [score for label, score in test.per_class.items() if is_meant(label)]
    count = sum(score.count for score in scores)
    return sum(score.correct for score in scores) / count if count else None
