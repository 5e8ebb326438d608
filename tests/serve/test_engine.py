"""The engine and the reference to it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from serving_fakes import CLASSES, SIZE, model_bytes, write_version

from edgetune.errors import ModelError, NoModelError, SelfTestError, UsageError
from edgetune.serve.engine import Engine, Served, rank
from edgetune.serve.timing import as_latency, time_interleaved


def images(count: int = 2) -> np.ndarray:
    """The same random images every time."""
    return np.random.default_rng(3).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def expected(batch: np.ndarray, seed: int = 1) -> np.ndarray:
    """The tiny model in numpy."""
    weights = np.random.default_rng(seed).normal(size=(3, len(CLASSES))).astype(np.float32)
    return batch.astype(np.float32).mean(axis=(1, 2)) @ weights


@pytest.mark.parametrize("count", [1, 2, 17])
def test_predict_computes_what_the_graph_says_for_any_batch(version_dir: Path, count: int) -> None:
    """An engine's logits are the graph's."""
    engine = Engine.load(version_dir, threads=2)
    np.testing.assert_allclose(engine.predict(images(count)), expected(images(count)), rtol=1e-4, atol=1e-3)
    assert (engine.version, engine.classes) == (1, CLASSES)


def test_a_read_only_and_a_strided_batch_are_taken(version_dir: Path) -> None:
    """What a request's body gives is read-only, and what a crop gives has strides."""
    engine = Engine.load(version_dir, threads=1)
    batch = np.frombuffer(images().tobytes(), np.uint8).reshape(2, SIZE, SIZE, 3)
    np.testing.assert_array_equal(engine.predict(batch), engine.predict(images()))
    np.testing.assert_array_equal(engine.predict(batch[::-1]), engine.predict(images())[::-1])


@pytest.mark.parametrize(
    "batch",
    [np.zeros((1, SIZE, SIZE, 3), np.float32), np.zeros((SIZE, SIZE, 3), np.uint8), np.zeros((1, 9, SIZE, 3), np.uint8),
     np.zeros((0, SIZE, SIZE, 3), np.uint8)],
)  # fmt: skip
def test_a_batch_of_another_kind_is_refused(version_dir: Path, batch: np.ndarray) -> None:
    """A wrong type, rank, size or number is the caller's mistake."""
    with pytest.raises(UsageError, match="expected images uint8"):
        Engine.load(version_dir, threads=1).predict(batch)


def nan_model() -> bytes:
    """A model whose weights are not numbers."""
    model = onnx.load_from_string(model_bytes())
    weights = np.full((3, len(CLASSES)), np.nan, np.float32)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "weights"))
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: b"garbage", "cannot be loaded"),
        (lambda: model_bytes()[:100], "cannot be loaded"),
        (lambda: model_bytes(classes=4), "output 'out'"),
        (lambda: model_bytes(size=9), "input 'pixels'"),
        (lambda: model_bytes(kind=onnx.TensorProto.INT32), "input 'pixels'"),
        (nan_model, "NaN"),
    ],
)
def test_a_model_that_does_not_fit_its_manifest_is_refused(
    tmp_path: Path, model: Callable[[], bytes], why: str
) -> None:
    """Nothing that cannot answer is ever loaded."""
    directory = write_version(tmp_path / "v", model=model(), images=images(), logits=expected(images()))
    with pytest.raises(ModelError, match=why):
        Engine.load(directory, threads=1)


def test_a_missing_file_is_named(version_dir: Path) -> None:
    """The operator reads which file is missing."""
    (version_dir / "model.onnx").unlink()
    with pytest.raises(ModelError, match=r"model\.onnx is missing"):
        Engine.load(version_dir, threads=1)
    (version_dir / "manifest.json").write_text("{}")
    with pytest.raises(ModelError, match=r"manifest\.json cannot be read"):
        Engine.load(version_dir, threads=1)


def test_selftest_passes_on_the_recorded_model_within_rounding(version_dir: Path) -> None:
    """Outputs that differ by float32 rounding are the same outputs."""
    Engine.load(version_dir, threads=1).selftest()
    logits = expected(images()) * np.float32(1 + 1e-5)
    np.savez(version_dir / "selftest.npz", images=images(), logits=logits)
    Engine.load(version_dir, threads=2).selftest()


@pytest.mark.parametrize(
    "record",
    [
        {"images": images(), "logits": expected(images(), seed=2)},
        {"images": images(), "logits": expected(images()) + 5.0},
        {"images": images(), "logits": np.full((2, 3), np.nan, np.float32)},
        {"images": images(), "logits": np.zeros((2, 4), np.float32)},
        {"images": images()[:, :4], "logits": expected(images())},
        {"images": images()},
        {"images": images()[:0], "logits": expected(images())[:0]},
    ],
)
def test_selftest_refuses_other_outputs(tmp_path: Path, record: dict[str, np.ndarray]) -> None:
    """A model that does not do what it did when published does not pass."""
    directory = write_version(tmp_path / "v", **record)
    with pytest.raises(SelfTestError):
        Engine.load(directory, threads=1).selftest()


def test_a_selftest_that_is_a_pickle_or_absent_is_refused(version_dir: Path) -> None:
    """No artefact is ever unpickled."""
    np.savez(version_dir / "selftest.npz", images=np.array([{}], dtype=object), logits=np.zeros((1, 3), np.float32))
    with pytest.raises(SelfTestError):
        Engine.load(version_dir, threads=1).selftest()
    (version_dir / "selftest.npz").unlink()
    with pytest.raises(SelfTestError):
        Engine.load(version_dir, threads=1).selftest()


def test_an_engine_in_use_outlives_its_swap_and_closes_with_its_last_user(tmp_path: Path) -> None:
    """A request in flight finishes on the engine it began with."""
    old, new = (Engine.load(write_version(tmp_path / str(v), v), threads=1) for v in (1, 2))
    served = Served(old)
    with served.use() as first:
        with served.use() as second:
            assert served.swap(new) is old
            assert served.version == 2
            second.predict(images())
        first.predict(images())
        with served.use() as third:
            assert third is new
    with pytest.raises(ModelError, match="was closed"):
        old.predict(images())
    new.predict(images())
    assert served.swap(None) is new
    with pytest.raises(NoModelError), served.use():
        pass
    with pytest.raises(ModelError, match="was closed"):
        new.predict(images())


def test_a_hundred_swaps_under_threads_fail_no_prediction(tmp_path: Path) -> None:
    """Promotion never costs a request, and every answer is the one of the version it names."""
    directories = [write_version(tmp_path / str(v), v) for v in (1, 2)]
    batch, wanted = images(), {v: expected(images(), v) for v in (1, 2)}
    served, stop = Served(Engine.load(directories[0], threads=1)), threading.Event()
    failures: list[object] = []
    answered = [0] * 4

    def ask(client: int) -> None:
        while not stop.is_set():
            try:
                with served.use() as engine:
                    np.testing.assert_allclose(engine.predict(batch), wanted[engine.version], rtol=1e-4, atol=1e-3)
                answered[client] += 1
            except Exception as error:  # noqa: BLE001 - whatever it is, the main thread shows it
                failures.append(error)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for swap in range(100):
        served.swap(Engine.load(directories[(swap + 1) % 2], threads=1))
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert min(answered) > 0


def test_rank_gives_a_softmax_best_first() -> None:
    """Probabilities add up to one, large logits do not overflow, and equals keep their order."""
    top = rank(np.array([1000.0, 1001.0, 1000.0], np.float32), CLASSES, 10)
    assert [name for name, _ in top] == ["dog", "cat", "fish"]
    assert sum(p for _, p in top) == pytest.approx(1.0)
    assert top[0][1] == pytest.approx(np.e / (np.e + 2))
    assert len(rank(np.zeros(3, np.float32), CLASSES, 2)) == 2


def test_timing_interleaves_its_engines(version_dir: Path) -> None:
    """Each engine is called as often as the other, one image at a time, and takes turns at going first."""
    calls: list[str] = []
    engine = Engine.load(version_dir, threads=2)

    def one(batch: np.ndarray) -> None:
        assert batch.shape == (1, SIZE, SIZE, 3)
        calls.append("a")

    latencies = time_interleaved([one, lambda _batch: calls.append("b"), engine], images(3), runs=4)
    assert "".join(calls[6:]) == "abbaabba"
    assert [latency.threads for latency in latencies] == [1, 1, 2]
    assert latencies[0].ratio == 1.0 and all(latency.ratio > 0 for latency in latencies)
    assert all(latency.runs == 4 and 0 <= latency.median_ms <= latency.p90_ms for latency in latencies)
    with pytest.raises(UsageError):
        time_interleaved([one], images(), runs=0)


def test_a_latency_tells_turns_apart_from_slow_stretches() -> None:
    """A board that is ten times slower for half of the time changes the medians, not what the turns say."""
    base = np.array([1.0, 10, 1, 10, 1])
    latency = as_latency(base * [1.1, 1.2, 1.3, 1.4, 1.5], base, threads=3)
    assert (latency.runs, latency.threads, latency.median_ms) == (5, 3, 1.5)
    assert latency.ratio == pytest.approx(1.3)
    assert latency.ratio_quartiles == pytest.approx((1.2, 1.4))
