"""What the API can ask of the daemon (serve.api.Service), each in a few lines."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetune import __version__, images
from edgetune.config import to_plain as config_to_plain
from edgetune.daemon import labelling, metrics
from edgetune.decide import trigger
from edgetune.decide.trigger import ManualRequest, Want
from edgetune.errors import ConflictError, NoModelError, RefusedError, UsageError
from edgetune.serve.service import Inferred
from edgetune.types import AddOutcome, Answer, LabelSource, Manifest, NewSample, RoundKind, RoundState
from edgetune.wire import to_plain

if TYPE_CHECKING:
    from edgetune.daemon.core import Daemon
    from edgetune.serve.service import Metric

_NUMBER_LENGTH_MAX = 18  # what SQLite takes for a number; what is longer is a digest or nothing


class DaemonService:
    """The daemon as the socket sees it. Who may call what is the API's business."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    # --------------------------------------------------------------------------------------------- predictions

    async def predict(self, image: bytes, *, top_k: int, record: bool = True) -> Answer:
        """Answer for one image."""
        return await self._daemon.serving.predict(image, top_k=top_k, record=record)

    async def infer(self, model_version: int | None, batch: np.ndarray[Any, Any]) -> Inferred:
        """Run tensors as they are."""
        return await self._daemon.serving.infer(model_version, batch)

    async def label_prediction(self, prediction_id: str, label: str) -> dict[str, Any]:
        """Say what a prediction should have been."""
        await self._daemon.serving.flush()
        is_right = await self._daemon.store(self._daemon.buffer.predictions.label, prediction_id, label)
        return {"prediction_id": prediction_id, "label": label, "agrees": is_right}

    async def add_sample(self, image: bytes, label: str | None, group: str | None) -> dict[str, Any]:
        """Take a sample over the socket, through the same decode and resize as the inbox."""
        daemon = self._daemon
        sample = await asyncio.to_thread(self._make_sample, image, label, group)
        (outcome,) = await daemon.store(daemon.buffer.add, [sample])
        return {"digest": sample.digest, "outcome": outcome.value, "is_new": outcome is AddOutcome.STORED}

    def _make_sample(self, image: bytes, label: str | None, group: str | None) -> NewSample:
        daemon = self._daemon
        upright = images.decode(image, daemon.image_limits)
        digest = images.digest(image)
        stored = images.encode(upright, daemon.preprocess()) if daemon.stores_model_size else image
        now_s = daemon.clock.wall_s()
        block_s = daemon.config.buffer.group_block
        block = int(now_s // block_s) if block_s else digest
        return NewSample(
            digest=digest,
            image=stored,
            width=upright.width,
            height=upright.height,
            label=label,
            label_source=None if label is None else LabelSource.API,
            group=group or f"api:{block}",
            origin="api",
            taken_at_s=now_s,
        )

    # ------------------------------------------------------------------------------------------------- looking

    async def status(self) -> dict[str, Any]:
        """Everything `edgetune status` shows."""
        return await self._daemon.status()

    def health(self) -> dict[str, Any]:
        """The process is alive and its loop runs."""
        return {"status": "ok", "version": __version__}

    def readiness(self) -> tuple[bool, str]:
        """Whether predictions are answered. A round never makes this fail."""
        version = self._daemon.serving.served.version
        return (False, "no model: edgetune models import") if version is None else (True, f"serving version {version}")

    async def events(self, after: int, limit: int) -> list[dict[str, Any]]:
        """Events after a sequence number."""
        return await self._daemon.events.after(after, limit)

    async def wait_event(self, after: int) -> None:
        """Return once there is a newer event."""
        await self._daemon.events.wait(after)

    async def rounds(self, limit: int) -> list[dict[str, Any]]:
        """The last rounds, newest first."""
        return await self._daemon.store(self._daemon.history.rounds, limit)

    async def round(self, round_id: int) -> dict[str, Any]:
        """One round."""
        return await self._daemon.store(self._daemon.rounds.records.row, round_id)

    async def models(self) -> list[dict[str, Any]]:
        """The published versions, oldest first, and the quarantined ones with their reasons."""
        return await self._daemon.store(self._list_models)

    def _list_models(self) -> list[dict[str, Any]]:
        daemon = self._daemon
        served, factory = daemon.serving.served.version, daemon.models.factory()
        rows = []
        for version in daemon.models.versions():
            plain = to_plain(daemon.models.manifest(version))
            rows.append(
                {**plain, "is_served": version == served, "is_factory": version == factory, "quarantined": None}
            )
        for version, why in daemon.models.quarantined().items():
            rows.append({"version": version, "is_served": False, "is_factory": False, "quarantined": why})
        return sorted(rows, key=lambda row: int(row["version"]))

    async def model(self, version: int) -> dict[str, Any]:
        """One version's manifest."""
        plain: dict[str, Any] = to_plain(await self._daemon.store(self._daemon.models.manifest, version))
        return plain

    async def config(self) -> dict[str, Any]:
        """The configuration in force."""
        return config_to_plain(self._daemon.config)

    def metrics(self) -> list[Metric]:
        """The figures for Prometheus."""
        return metrics.collect(self._daemon)

    def manifest(self) -> Manifest | None:
        """The served version's manifest, or None."""
        return self._daemon.serving.manifest()

    # -------------------------------------------------------------------------------------------------- acting

    async def start_round(self, *, kind: str | None, force: bool, dry_run: bool) -> dict[str, Any]:
        """Ask for a round; 'held' until the budget allows it."""
        if kind not in (None, RoundKind.ADAPT.value, RoundKind.RESHAPE.value):  # imprints are the daemon's own idea
            raise UsageError(f"there is no kind of round {kind!r} to ask for; use adapt or reshape")
        wanted = None if kind is None else RoundKind(kind)
        daemon, state = self._daemon, self._daemon.rounds.machine.state
        if state not in (RoundState.IDLE, RoundState.HELD, RoundState.COOLDOWN):
            raise ConflictError(f"a round is {state.value} already", hint="watch it: edgetune status --watch")
        request = ManualRequest(kind=wanted, is_forced=force)
        want = await daemon.consider(request)
        plan = {
            "wanted": want.is_wanted,
            "kind": want.kind.value,
            "reason": want.reason,
            "missing": list(want.missing),
            "verdict": daemon.budgeting.verdict.kind.value,
            "verdict_reasons": list(daemon.budgeting.verdict.reasons),
        }
        if dry_run:
            forecast, why = await self._plan(want) if want.is_wanted else (None, "no round would start")
            return {"dry_run": True, **plan, "forecast": forecast, "no_forecast": why, "budgets": _budgets(daemon)}
        if not want.is_wanted:
            raise RefusedError(
                f"a round needs {'; '.join(want.missing)}", hint="edgetune train --force tries all the same"
            )
        daemon.ask_for_round(request)
        return {"id": await daemon.store(daemon.rounds.records.next_round_id), **plan}

    async def _plan(self, want: Want) -> tuple[dict[str, Any] | None, str]:
        daemon = self._daemon
        return await daemon.planning.plan(
            want, daemon.serving.manifest(), daemon.rounds.settings, generation=daemon.serving.generation
        )

    async def pause(self) -> dict[str, Any]:
        """Withhold training until resume, also over a restart. Predictions go on."""
        return await self._daemon.set_paused(True)

    async def resume(self) -> dict[str, Any]:
        """Let training go on."""
        return await self._daemon.set_paused(False)

    async def cancel(self) -> dict[str, Any]:
        """End the round under way; it is never promoted."""
        if self._daemon.rounds.machine.state in (RoundState.IDLE, RoundState.COOLDOWN):
            raise ConflictError("no round is under way")
        await self._daemon.cancel()
        return {"state": self._daemon.rounds.machine.state.value}

    async def promote(self, version: int) -> dict[str, Any]:
        """Serve this version from now on."""
        await self._daemon.serving.change_to(version, "promoted by hand", is_by_hand=True)
        return {"version": version}

    async def rollback(self) -> dict[str, Any]:
        """Serve the version before this one."""
        version = await self._daemon.serving.fallback()
        await self._daemon.serving.change_to(version, "rolled back by hand", is_by_hand=True)
        return {"version": version}

    async def reload(self) -> dict[str, Any]:
        """Read the configuration again; swap it whole or keep the old one. Also serves a model imported since."""
        return await self._daemon.reload()

    # ---------------------------------------------------------------------------------------------------- data

    async def data_samples(self, **filters: Any) -> list[dict[str, Any]]:
        """Rows of the buffer, without their images."""
        return await self._daemon.store(self._daemon.buffer.samples, **filters)

    async def data_classes(self) -> list[dict[str, Any]]:
        """What the buffer holds of each class."""
        plain: list[dict[str, Any]] = [to_plain(c) for c in await self._daemon.store(self._daemon.buffer.classes)]
        return plain

    async def data_next(self, *, count: int) -> dict[str, Any]:
        """What to label next, and why."""
        daemon, manifest = self._daemon, self._daemon.serving.manifest()
        if manifest is None:
            raise NoModelError
        holdout = trigger.judging(await daemon.store(daemon.buffer.classes), manifest.classes)
        wanted = daemon.config.gate.holdout_min
        material = await daemon.store(labelling.read, daemon.buffer, manifest.version, count)
        return await asyncio.to_thread(
            labelling.next_rows,
            material,
            manifest,
            count=count,
            sharpness=daemon.watching.sharpness_of(manifest.version),
            holdout=(holdout, wanted),
        )

    async def data_accept(self, name: str) -> dict[str, Any]:
        """Let a pending class into rounds."""
        await self._daemon.store(self._daemon.buffer.accept_class, name)
        await self._daemon.events.emit("class.accepted", f"class {name!r} is accepted")
        return {"class": name, "status": "accepted"}

    async def data_refuse(self, name: str) -> dict[str, Any]:
        """Keep a class out of rounds, of the one under way too: its candidate will not be promoted."""
        await self._daemon.store(self._daemon.buffer.refuse_class, name)
        await self._daemon.events.emit("class.refused", f"class {name!r} is refused")
        return {"class": name, "status": "refused", "in_round": self._round_that_brings(name)}

    def _round_that_brings(self, label: str) -> int | None:
        """The round under way, if its candidate would have an output for a class that the served version has not."""
        rounds, manifest = self._daemon.rounds, self._daemon.serving.manifest()
        is_under_way = rounds.machine.state not in (RoundState.IDLE, RoundState.HELD, RoundState.COOLDOWN)
        if not is_under_way or rounds.spec is None or label not in rounds.spec.classes:
            return None
        return rounds.spec.round_id if manifest is None or label not in manifest.classes else None

    async def data_label(self, sample: str, label: str) -> dict[str, Any]:
        """Say what a sample (its number or digest) shows; answers with what becomes of the class's samples."""
        buffer = self._daemon.buffer
        await self._daemon.store(buffer.label, _number_or_digest(sample), label, LabelSource.API)
        classes = {entry.label: entry.status for entry in await self._daemon.store(buffer.classes)}
        return {"sample": sample, "label": label, "class_status": classes.get(label)}

    async def data_image(self, sample: str) -> bytes:
        """The image of a sample (its number or digest), as it is stored."""
        return await self._daemon.store(self._daemon.buffer.image, _number_or_digest(sample))

    async def data_purge(self, **which: Any) -> dict[str, Any]:
        """Remove samples for good, out of the free pages and the write-ahead log too."""
        async with self._daemon.long_store_work():
            removed = await self._daemon.store(self._daemon.buffer.purge, **which)
        await self._daemon.events.emit("data.purged", f"{removed} samples were purged", removed=removed)
        return {"removed": removed}

    async def data_export(self, directory: str) -> dict[str, Any]:
        """Write the samples as files below a directory on this board."""
        count = await asyncio.to_thread(self._daemon.buffer.export, Path(directory))
        return {"samples": count, "directory": directory}

    async def data_backup(self, path: str) -> dict[str, Any]:
        """Copy the database, consistent while the service runs."""
        await asyncio.to_thread(self._daemon.buffer.backup, Path(path))
        return {"path": path}


def _budgets(daemon: Daemon) -> dict[str, float | None]:
    """What a round may take."""
    recipe = daemon.rounds.settings.recipe
    return {
        "peak_mib": recipe.memory_max_mib,
        "duration_s": recipe.time_max_s,
        "energy_j": recipe.energy_max_j,
    }


def _number_or_digest(sample: str) -> int | str:
    return int(sample) if sample.isdecimal() and len(sample) <= _NUMBER_LENGTH_MAX else sample
