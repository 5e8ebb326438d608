"""What a search keeps so that it goes on after a kill: its trials as JSON, its networks as checkpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from edgetune.learn.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from edgetune.learn.goal import Goal, Material
from edgetune.learn.network import Network, rebuild, state_tensors
from edgetune.store.durable import make_dir, remove_dir, write_atomic
from edgetune.types import Recipe
from edgetune.wire import to_json

_FILE = "search.json"
_RUNNING = "running"


class SearchState:
    """
    A directory of one search. What is of another search, or damaged, counts as not there.

    Attributes:
        trials: every trial so far, as JSON.
        facts: what was settled on the way: "epochs", "seconds" and "joules" spent, "base", "layout", "best" (which directory),
            "lineage" (the epochs that the best one's trials trained it), "used" (those of the trial under way) and its "cut",
            "tuned" (the epochs of the tuning that are counted),
            "pruned_first" (why, or nothing) and "scoring_batch": see `Tuner.prunes_first`, "accumulation": see `Workbench.fit`.
    """

    def __init__(self, directory: Path, digest: str, builders: Mapping[str, str]) -> None:
        """`digest` is of everything that the search depends on."""
        self._directory, self._digest, self._builders = directory, digest, builders
        make_dir(directory)
        self.trials: list[dict[str, Any]] = []
        self.facts: dict[str, Any] = {
            "epochs": 0.0,
            "seconds": 0.0,
            "joules": None,
            "base": None,
            "layout": None,
            "best": None,
            "pruned_first": None,
            "scoring_batch": 0,
            "accumulation": None,
            "lineage": 0.0,
            "used": 0.0,
            "cut": None,
            "tuned": 0.0,
        }
        self._read()
        if self.facts["base"] is None:  # what was under way belongs to a search that is lost
            remove_dir(directory / _RUNNING)

    def _read(self) -> None:
        path = self._directory / _FILE
        if not path.exists():
            return
        try:
            plain = json.loads(path.read_bytes())
        except ValueError:  # the disk lost its end: search again
            return
        if not isinstance(plain, dict) or plain.get("of") != self._digest or plain["facts"].keys() != self.facts.keys():
            return
        self.trials, self.facts = plain["trials"], plain["facts"]
        if self.facts["best"] is not None and self.network(self.facts["best"]) is None:
            self.trials, self.facts["best"] = [], None  # the network that was found is damaged: find it again

    def write(self) -> None:
        """Make trials and facts durable."""
        plain = {"of": self._digest, "trials": self.trials, "facts": self.facts}
        write_atomic(self._directory / _FILE, json.dumps(plain, indent=1).encode())

    def keep(self, name: str, network: Network) -> None:
        """Make a network durable under a name."""
        self.save(Checkpoint(phase=name, description=network.describe(), network=state_tensors(network.module)), name)

    def keep_best(self, network: Network) -> None:
        """Keep a success beside the last one, which the trials on disk still name; `write` makes it the best."""
        name = "best-0" if self.facts["best"] == "best-1" else "best-1"
        self.keep(name, network)
        self.facts["best"] = name

    def network(self, name: str) -> Network | None:
        """A network that was kept, on the CPU."""
        found = load_checkpoint(self._directory / name, self._digest)
        return None if found is None else rebuild(found.description, found.network, self._builders)

    def save(self, checkpoint: Checkpoint, name: str = _RUNNING) -> None:
        """Where a training is, in steps."""
        make_dir(self._directory / name)
        save_checkpoint(self._directory / name, checkpoint, self._digest)

    def running(self, phase: str) -> tuple[Network, Checkpoint] | None:
        """A training of that phase that was interrupted, and its network."""
        found = load_checkpoint(self._directory / _RUNNING, self._digest)
        if found is None or found.phase != phase:
            return None
        return rebuild(found.description, found.network, self._builders), found


def digest_of(network: Network, material: Material, recipe: Recipe, goal: Goal) -> str:
    """Of what the trials depend on: another network, other images or another goal start anew; more time goes on."""
    total = hashlib.sha256(to_json(recipe))
    total.update(json.dumps(asdict(replace(goal, epochs_max=None, seconds_max=None, joules_max=None))).encode())
    total.update(json.dumps([material.classes, asdict(material.preprocess)], default=list).encode())
    for data in (material.training, material.validation):
        total.update(data.sample_ids.tobytes())
        total.update(data.labels.tobytes())
        total.update(data.pixels.tobytes())
    for name, tensor in sorted(state_tensors(network.module).items()):
        total.update(name.encode())
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()
