"""
The engine: one published version in ONNX Runtime, loaded, checked, warmed and timed.

`learn` times its candidates with this very engine (`timing`), so that the gate compares what will be served. `Served` is the
one reference that a promotion changes: a request that has begun finishes on the engine it began with, and an engine
that was swapped out is closed when its last user has left.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from edgetune.errors import ModelError, NoModelError, SelfTestError, UsageError
from edgetune.types import Manifest
from edgetune.wire import from_json

Images = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]

MODEL_FILE = "model.onnx"
SELFTEST_FILE = "selftest.npz"
MANIFEST_FILE = "manifest.json"

WARMUP_RUNS = 3
# Float32 sums come out in another order with another thread count, ONNX Runtime version or CPU, and the recorded
# outputs may come from torch: such differences stay below 1e-4 of the largest logit on the networks we know. A graph
# that computes something else (another normalisation, a swapped channel, lost weights) is off by a tenth and more.
# One part in a thousand of the largest logit lies between the two.
SELFTEST_TOLERANCE = 1e-3

_ERRORS_ONLY = 3  # ONNX Runtime's log severity: its warnings are not for an operator


class Engine:
    """
    One loaded version. Thread-safe: any number of threads may predict at once.

    Attributes:
        manifest: what the version says about itself.
        version: its number.
        classes: the names of its outputs, in order.
        threads: how many threads one prediction uses.
        input_name: the name of the graph's only input, uint8 [N, H, W, 3].
        output_name: the name of the graph's only output, float32 [N, classes].
    """

    def __init__(self, manifest: Manifest, session: Any, directory: Path, *, threads: int) -> None:
        self.manifest = manifest
        self.version = manifest.version
        self.classes = manifest.classes
        self.threads = threads
        self._directory = directory
        self._session: Any = session
        self._image_shape = (manifest.preprocess.height, manifest.preprocess.width, 3)
        self.input_name, self.output_name = _checked_names(session, manifest)

    @classmethod
    def load(cls, directory: Path, *, threads: int, spinning: bool = False) -> Engine:
        """
        Load a version and run it a few times, so that the first request is as fast as the others.

        Args:
            directory: `models/v000042`, with manifest.json and model.onnx; the hashes are the store's business.
            threads: how many threads one prediction uses, 1 or more.
            spinning: let idle threads spin: a little faster, and a core is never at rest.

        Raises:
            ModelError: a file cannot be read, is not a model, or does not match its manifest.
        """
        if threads < 1:
            raise UsageError(f"an engine needs at least one thread, not {threads}")
        manifest = _read_manifest(directory)
        engine = cls(
            manifest, open_session(directory / MODEL_FILE, threads, spinning=spinning), directory, threads=threads
        )
        engine._warm_up()
        return_free_memory()
        return engine

    def predict(self, images: Images) -> Logits:
        """
        Run the model. The buffer is used in place when it is contiguous.

        Args:
            images: uint8 [N, H, W, 3], RGB, at the model's size, N >= 1.

        Returns:
            logits: float32 [N, classes].

        Raises:
            UsageError: the images have another shape or type.
            ModelError: the engine was closed, or the graph failed.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != self._image_shape or not len(images):
            wanted = ", ".join(str(size) for size in self._image_shape)
            raise UsageError(f"expected images uint8 [N, {wanted}], not {images.dtype} {list(images.shape)}")
        session = self._session
        if session is None:
            raise ModelError(f"version {self.version} was closed")
        try:
            (logits,) = session.run([self.output_name], {self.input_name: np.ascontiguousarray(images)})
        except Exception as error:  # ONNX Runtime's errors share no base of their own
            raise ModelError(f"version {self.version} failed to predict: {_first_line(error)}") from error
        output: Logits = logits
        return output

    def selftest(self) -> None:
        """
        Compare with the outputs recorded when the version was published, two images at a time, and the first one alone.

        A larger batch would raise the memory that the daemon holds from then on, and take the cores from the requests.

        Raises:
            SelfTestError: an output differs by more than `SELFTEST_TOLERANCE` of the largest recorded logit, or is
                not a number; or the record cannot be read.
        """
        images, recorded = self._read_selftest()
        allowed = SELFTEST_TOLERANCE * max(1.0, float(np.abs(recorded).max()))
        for batch in (slice(0, 1), *(slice(i, i + 2) for i in range(0, len(images), 2))):
            try:
                difference = float(np.abs(self.predict(images[batch]) - recorded[batch]).max())
            except (ModelError, UsageError, ValueError) as error:
                raise SelfTestError(f"version {self.version} cannot run its own self-test: {error}") from error
            if not difference <= allowed:  # NaN is not
                raise SelfTestError(
                    f"version {self.version} differs from its recorded outputs by {difference:.3g}; "
                    f"{allowed:.3g} is allowed",
                )
        return_free_memory()  # what loading and this test took, before the daemon comes to rest

    def close(self) -> None:
        """Give the session's memory back. A prediction that runs in another thread still finishes."""
        self._session = None
        return_free_memory()

    def _warm_up(self) -> None:
        images = np.zeros((1, *self._image_shape), dtype=np.uint8)
        for _ in range(WARMUP_RUNS - 1):
            self.predict(images)
        logits = self.predict(images)
        expected = (1, len(self.classes))
        if logits.shape != expected or logits.dtype != np.float32:
            raise ModelError(
                f"version {self.version} answers {logits.dtype} {list(logits.shape)} for one image; "
                f"its {len(self.classes)} classes ask for float32 {list(expected)}",
            )
        if not np.isfinite(logits).all():
            raise ModelError(f"version {self.version} answers NaN or infinity for a black image")

    def _read_selftest(self) -> tuple[Images, Logits]:
        path = self._directory / SELFTEST_FILE
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
                images, logits = arrays["images"], arrays["logits"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise SelfTestError(f"{path} cannot be read: {error}") from error
        if not len(images) or len(images) != len(logits):
            raise SelfTestError(f"{path} holds {len(images)} images and {len(logits)} outputs")
        return images, logits


class _Slot:
    """An engine with the number of its users."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.users = 0
        self.is_retired = False


class Served:
    """
    The one reference to the engine that answers requests.

    `swap` never waits: later users get the new engine at once, those in flight finish on theirs, and the old one is
    retired by whoever leaves last.
    """

    def __init__(self, engine: Engine | None = None, *, retire: Callable[[Engine], object] | None = None) -> None:
        """`retire` takes an engine that nobody uses any more; by default it is closed there and then."""
        self._retire = retire or Engine.close
        self._lock = threading.Lock()
        self._slot = None if engine is None else _Slot(engine)

    @property
    def engine(self) -> Engine | None:
        """The engine served now, to look at; predictions go through `use`."""
        slot = self._slot
        return None if slot is None else slot.engine

    @property
    def version(self) -> int | None:
        """The version served now."""
        engine = self.engine
        return None if engine is None else engine.version

    @contextlib.contextmanager
    def use(self) -> Iterator[Engine]:
        """
        Hold the engine served now for one request.

        Raises:
            NoModelError: nothing is served.
        """
        with self._lock:
            slot = self._slot
            if slot is None:
                raise NoModelError
            slot.users += 1
        try:
            yield slot.engine
        finally:
            with self._lock:
                slot.users -= 1
                is_last = slot.is_retired and not slot.users
            if is_last:
                self._retire(slot.engine)

    def swap(self, engine: Engine | None) -> Engine | None:
        """Serve another engine (None: nothing) from now on; return the old one, which closes when it is free."""
        with self._lock:
            old, self._slot = self._slot, None if engine is None else _Slot(engine)
            if old is None:
                return None
            old.is_retired = True
            is_free = not old.users
        if is_free:
            self._retire(old.engine)
        return old.engine


def runtime_version() -> str:
    """ONNX Runtime's version, for a version's manifest."""
    return str(onnxruntime.__version__)


def rank(logits: Logits, classes: Sequence[str], top_k: int) -> tuple[tuple[str, float], ...]:
    """
    Turn the logits of one image into the most likely classes.

    Args:
        logits: float32 [classes].
        classes: their names, in order.
        top_k: how many to name; more than there are means all.

    Returns:
        (class, softmax probability), best first; equals stay in the order of the classes.
    """
    shifted = logits.astype(np.float64) - float(logits.max())
    exponentials = np.exp(shifted)
    probabilities = exponentials / exponentials.sum()
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    return tuple((classes[i], float(probabilities[i])) for i in order)


def _read_manifest(directory: Path) -> Manifest:
    path = directory / MANIFEST_FILE
    try:
        return from_json(Manifest, path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error


def open_session(path: Path, threads: int, *, spinning: bool) -> Any:
    """
    Load an ONNX file as edgetune runs models.

    Raises:
        ModelError: it is missing, or no model that ONNX Runtime can run.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _ERRORS_ONLY
    options.enable_cpu_mem_arena = False  # as fast without (MobileNetV2: 7.8 and 8.4 ms), and 5 MiB smaller
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    if not path.is_file():
        raise ModelError(f"{path} is missing")
    try:
        return onnxruntime.InferenceSession(str(path), sess_options=options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base of their own
        raise ModelError(f"{path} cannot be loaded by ONNX Runtime: {_first_line(error)}") from error


def _checked_names(session: Any, manifest: Manifest) -> tuple[str, str]:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1:
        raise ModelError(f"{MODEL_FILE} has {len(inputs)} inputs and {len(outputs)} outputs; one of each is wanted")
    size = manifest.preprocess
    _check_tensor("input", inputs[0], "tensor(uint8)", (None, size.height, size.width, 3))
    _check_tensor("output", outputs[0], "tensor(float)", (None, len(manifest.classes)))
    return str(inputs[0].name), str(outputs[0].name)


def _check_tensor(role: str, tensor: Any, kind: str, shape: tuple[int | None, ...]) -> None:
    """A size that the graph leaves open is a name or None: it fits, and the warm-up settles it; the batch must be."""
    fits = len(tensor.shape) == len(shape) and all(
        not isinstance(size, int) or size == wanted for size, wanted in zip(tensor.shape, shape, strict=True)
    )
    if tensor.type != kind or not fits:
        wanted = ", ".join("N" if size is None else str(size) for size in shape)
        raise ModelError(
            f"{role} {tensor.name!r} of {MODEL_FILE} is {tensor.type} {tensor.shape}; "
            f"its manifest asks for {kind} [{wanted}], with any batch size",
        )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def return_free_memory() -> bool:
    """
    Hand what was freed back to the system; False where the C library has no such call.

    Without it the process kept growing by parts of models that were long gone: MobileNetV2 swapped 60 times went from
    138 to 186 MiB, with it it stays at 95. Only glibc has the call; elsewhere there is nothing to do.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return False
    return True
