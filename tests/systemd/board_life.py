"""What happens on a board in these tests, said once: a first model, pictures from a camera, requests, rounds."""

from __future__ import annotations

import json
import time
from typing import Any

from debian_root import Finished, Machine

PYTHON = "/opt/edgetune/bin/python"
CLASSES = ("dusk", "noon")

_MAKE_WEIGHTS = """
import torch
from safetensors.torch import save_file
from edgetune.learn.network import new_network
torch.manual_seed(0)
module = new_network("cifar:resnet20", 2).module
save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, "/root/weights.safetensors")
"""

_MAKE_PICTURES = """
import json
import sys
from pathlib import Path
import numpy as np
from PIL import Image
first, count = int(sys.argv[1]), int(sys.argv[2])
for number, (name, level) in enumerate((("dusk", 60), ("noon", 190))):
    folder = Path("pictures", name)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(first, first + count):
        noise = np.random.default_rng((number, index)).normal(level, 40, (32, 32, 3))
        # Each its own group: taken within a second, all would be near-twins and in one split.
        (folder / f"{index:04}.json").write_text(json.dumps({"group": f"{name}-{index}"}))
        Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / f"{index:04}.png")
"""

_CALL = """
import json, sys
from edgetune.client import Client
from edgetune.errors import EdgetuneError
method, path, body, query = json.loads(sys.argv[1])
client = Client("/run/edgetune/edgetune.sock", timeout_s=60)
try:
    if method == "GET":
        answer = client.get(path, **query)
    else:
        answer = client.post(path, open(body, "rb").read() if isinstance(body, str) else body, **query)
except EdgetuneError as error:
    sys.exit(f"{error.code}: {error.message}")
print(json.dumps(answer))
"""


def call(
    machine: Machine, method: str, path: str, body: object = None, *, user: str = "root", **query: object
) -> Finished:
    """Ask the service something as somebody; a body that is text names a file inside."""
    return machine.run(
        PYTHON, "-c", _CALL, json.dumps([method, path, body, query]), user=None if user == "root" else user
    )


def answer(
    machine: Machine, method: str, path: str, body: object = None, *, user: str = "root", **query: object
) -> Any:
    """Ask something that has to be granted."""
    done = call(machine, method, path, body, user=user, **query)
    assert done.code == 0, f"{method} {path}: {done}\n{machine.journal()}"
    return json.loads(done.out)


def status(machine: Machine) -> dict[str, Any]:
    """GET /v1/status."""
    told = answer(machine, "GET", "/v1/status")
    assert isinstance(told, dict)
    return told


def is_answering(machine: Machine) -> bool:
    """Whether the socket answers."""
    return call(machine, "GET", "/healthz").code == 0


def import_first_model(machine: Machine) -> None:
    """An untrained ResNet-20 of two classes becomes the factory model, if there is none yet."""
    if status(machine)["served"] is not None:
        return
    machine.must(PYTHON, "-c", _MAKE_WEIGHTS)
    machine.write("/root/classes.txt", "\n".join(CLASSES) + "\n")
    machine.must(
        "edgetune", "models", "import", "--arch", "cifar:resnet20",
        "--weights", "/root/weights.safetensors", "--classes", "/root/classes.txt",
    )  # fmt: skip
    machine.wait_until(lambda: status(machine)["served"] is not None, "serving the first model")


def take_pictures(machine: Machine, *, first: int, count: int) -> None:
    """Alice's camera makes pictures of both classes in her home directory."""
    machine.must("sh", "-c", f'cd /home/alice && {PYTHON} -c "$0" {first} {count}', _MAKE_PICTURES, user="alice")


def drop_pictures(machine: Machine) -> None:
    """Alice moves all her pictures into the inbox, with the umask that most people have."""
    machine.must(
        "sh", "-c",
        "umask 022; inbox=/var/lib/edgetune/inbox; cd /home/alice/pictures"
        " && mkdir -p $inbox/dusk $inbox/noon && cp dusk/* $inbox/dusk/ && cp noon/* $inbox/noon/ && rm -r dusk noon",
        user="alice",
    )  # fmt: skip


def fill_buffer(machine: Machine, *, at_least: int) -> None:
    """Enough samples for a round, if there are not yet."""
    have = status(machine)["buffer"]["labelled"]
    if have < at_least:
        take_pictures(machine, first=have, count=(at_least - have + 1) // 2)
        drop_pictures(machine)
        machine.wait_until(lambda: status(machine)["buffer"]["labelled"] >= at_least, "taking the pictures in")


def start_round(machine: Machine, kind: str = "adapt") -> int:
    """Root asks for a round; the trainer's process id once there is one."""
    answer(machine, "POST", "/v1/rounds", {"kind": kind, "force": True})
    machine.wait_until(lambda: bool(trainers(machine)), "the start of the trainer")
    return trainers(machine)[0]


def end_round(machine: Machine) -> None:
    """Cancel whatever round is under way or suspended, and wait until a new one could start."""
    if status(machine)["round"]["state"] not in {"idle", "cooldown"}:
        answer(machine, "POST", "/v1/cancel")
    machine.wait_until(lambda: status(machine)["round"]["state"] in {"idle", "cooldown"}, "the end of the round")
    assert trainers(machine) == []


def trainers(machine: Machine) -> list[int]:
    """Process ids of running trainers."""
    return [int(word) for word in machine.run("pgrep", "--full", "edgetune.trainer").out.split()]


def rounds(machine: Machine) -> list[dict[str, Any]]:
    """The rounds so far, newest first."""
    told = answer(machine, "GET", "/v1/rounds")
    assert isinstance(told, list)
    return sorted(told, key=lambda row: -int(row["id"]))


def seconds(action: Any) -> float:
    """How long a call takes."""
    start_s = time.monotonic()
    action()
    return time.monotonic() - start_s
