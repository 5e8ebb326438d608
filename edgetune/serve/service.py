"""What the HTTP interface needs from the daemon, and what it allows a client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from edgetune.types import Answer, Manifest

# (name, "counter" | "gauge", help, [(labels, value)]); a value of None is unknown and left out.
Metric = tuple[str, str, str, Iterable[tuple[Mapping[str, str], "float | None"]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiLimits:
    """How much a client may ask for."""

    body_max_bytes: int = 32 * 2**20
    bodies_max_bytes: int = 128 * 2**20  # of all requests in hand together; at least `body_max_bytes` counts
    connections_max: int = 64  # root and the admin group may open a few more, so that nobody locks them out
    queue_max: int = 64  # predictions, tensors and samples in hand
    header_timeout_s: float = 5.0
    body_timeout_s: float = 30.0
    request_timeout_s: float = 60.0  # for a prediction; also for a client that does not read its answer
    keep_alive_s: float = 75.0


class Inferred(NamedTuple):
    """What tensors were answered with."""

    manifest: Manifest  # of the version that answered
    logits: npt.NDArray[np.float32]  # [N, classes]
    rejected: tuple[int, ...] = ()  # rows that neither it nor the factory model is sure of


class Service(Protocol):
    """The daemon as the interface sees it. Every method may raise an `EdgetuneError`, which becomes its answer."""

    async def predict(self, image: bytes, *, top_k: int, record: bool = True) -> Answer:
        """Answer for one encoded image."""

    async def infer(self, model_version: int | None, images: npt.NDArray[np.uint8]) -> Inferred:
        """Run images uint8 [N, H, W, 3]."""

    def manifest(self) -> Manifest | None:
        """The served version's, or None."""

    async def label_prediction(self, prediction_id: str, label: str) -> dict[str, Any]:
        """Say what a prediction should have been."""

    async def add_sample(self, image: bytes, label: str | None, group: str | None) -> dict[str, Any]:
        """Put one encoded image into the buffer."""

    async def status(self) -> dict[str, Any]:
        """Everything `edgetune status` shows."""

    def health(self) -> dict[str, Any]:
        """That the process answers."""

    def readiness(self) -> tuple[bool, str]:
        """Whether predictions are answered, and why not."""

    async def events(self, after: int, limit: int) -> list[dict[str, Any]]:
        """Events with a "seq" above `after`, oldest first."""

    async def wait_event(self, after: int) -> None:
        """Return once there is an event above `after`."""

    async def rounds(self, limit: int) -> list[dict[str, Any]]:
        """The last rounds, newest first."""

    async def round(self, id: int) -> dict[str, Any]:  # noqa: A002 - the path's own word
        """One round."""

    async def models(self) -> list[dict[str, Any]]:
        """The published versions."""

    async def model(self, v: int) -> dict[str, Any]:
        """One version with its manifest."""

    async def config(self) -> dict[str, Any]:
        """The configuration in force."""

    async def start_round(self, *, kind: str | None, force: bool, dry_run: bool) -> dict[str, Any]:
        """Ask for a round."""

    async def pause(self) -> dict[str, Any]:
        """Withhold training until `resume`."""

    async def resume(self) -> dict[str, Any]:
        """Allow training again."""

    async def cancel(self) -> dict[str, Any]:
        """Give the running round up."""

    async def promote(self, version: int) -> dict[str, Any]:
        """Serve this version."""

    async def rollback(self) -> dict[str, Any]:
        """Serve the version before."""

    async def reload(self) -> dict[str, Any]:
        """Read the configuration again."""

    async def data_samples(
        self, *, label: str | None, split: str | None, labelled: bool | None, limit: int, offset: int
    ) -> list[dict[str, Any]]:
        """Rows of the buffer."""

    async def data_classes(self) -> list[dict[str, Any]]:
        """The classes the buffer knows."""

    async def data_next(self, *, count: int) -> dict[str, Any]:
        """What a person should label next, and why."""

    async def data_accept(self, name: str) -> dict[str, Any]:
        """Let a pending class into training."""

    async def data_refuse(self, name: str) -> dict[str, Any]:
        """Keep a class out of training."""

    async def data_image(self, sample: str) -> bytes:
        """The image of a sample (its number or digest), as it is stored."""

    async def data_label(self, sample: str, label: str) -> dict[str, Any]:
        """Say what a sample (its number or digest) shows."""

    async def data_purge(
        self, *, sample_id: int | None, digest: str | None, label: str | None, everything: bool
    ) -> dict[str, Any]:
        """Remove samples for good."""

    async def data_export(self, directory: str) -> dict[str, Any]:
        """Write the buffer as folders."""

    async def data_backup(self, path: str) -> dict[str, Any]:
        """Write a consistent copy of the database."""

    def metrics(self) -> Iterable[Metric]:
        """What Prometheus plots."""
