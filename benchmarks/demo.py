"""
The whole loop in a few minutes: `make demo`.

A factory model learns ten handwritten digits (scikit-learn's, 1,797 real scans). Then a site shows only six of them
through another camera: turned, of low contrast, noisy. The real daemon takes the images from its inbox, prunes and
fine-tunes the model to them in its own trainer process, and swaps it, while a client keeps asking for predictions. The
site then changes once more. At the end stands a table: accuracy on images of the site that the daemon never got, size,
latency, and how many requests were answered.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from benchmarks.stage import Asker, Stage, say, table

SIDE = 32
SITE_DIGITS = (1, 3, 4, 6, 7, 9)
CAMERAS = {"site": "turned, dim, noisy", "site2": "turned further, dimmer"}
CONFIG = """
inbox: {settle: 500ms, scan_interval: 2s}
buffer: {validation: 15%, holdout: 20%}
triggers: {new_samples: 800, cooldown: 5s}
budgets: {interval: 500ms, memory_available_min: 200MiB, disk_free_min: 200MiB, temperature_max: null}
pruning: {level: 60%, round_to: 8, scoring_batches: 10}
training: {epochs_before: 1, epochs_after: 5, batch_size: 32, augment: crop}
gate: {holdout_min: 50, accuracy_drop_max: 1pp, accuracy_risk_max: 8pp}
"""


def capture(scan: np.ndarray[Any, Any], camera: str, draw: np.random.Generator) -> bytes:
    """What a camera makes of a scan [8, 8] in 0..16: a PNG, 32 x 32."""
    picture = Image.fromarray((scan * (255 / 16)).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = np.asarray(picture, dtype=np.float32)
    if camera != "factory":
        angle = 18.0 if camera == "site" else 36.0
        turned = picture.rotate(
            angle + draw.normal(0, 5), Image.Resampling.BILINEAR, translate=tuple(draw.integers(-2, 3, 2))
        )
        contrast, floor = (0.7, 30.0) if camera == "site" else (0.6, 40.0)
        pixels = np.asarray(turned, dtype=np.float32) * contrast + floor
    noisy = pixels + draw.normal(0, 4 if camera == "factory" else 12, pixels.shape)
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert("RGB").save(file, "PNG")
    return file.getvalue()


def train_factory_model(scans: np.ndarray[Any, Any], digits: np.ndarray[Any, Any], path: Path) -> None:
    """Train a CIFAR ResNet20 on clean scans of all ten digits; what a user brings along."""
    import torch
    from safetensors.torch import save_file
    from torch.nn import functional

    from edgetune.learn.network import new_network

    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    files = [capture(scan, "factory", draw) for scan in scans]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(file)), dtype=np.float32) for file in files])
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    labels = torch.from_numpy(digits).long()
    model = new_network("cifar:resnet20", 10, None).module.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    epochs, batch = 8, 64
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, total_steps=epochs * (len(images) // batch))
    for _ in range(epochs):
        order = torch.randperm(len(images))
        for i in range(len(images) // batch):
            chosen = order[i * batch : (i + 1) * batch]
            loss = functional.cross_entropy(model(images[chosen]), labels[chosen])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimiser.step()
            schedule.step()
    save_file(model.state_dict(), path)


def drop(inbox: Path, scans: list[tuple[int, np.ndarray[Any, Any], int]], camera: str, copies: int, seed: int) -> int:
    """The camera application: files into inbox/<class>/, each with a sidecar that says which scan it shows."""
    draw = np.random.default_rng(seed)
    count = 0
    for number, scan, digit in scans:
        for copy in range(copies):
            name = f"{camera}-{number:04d}-{copy}"
            folder = inbox / f"digit {digit}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.json").write_text(json.dumps({"group": f"scan-{number}"}))
            part = folder / f"{name}.png.part"
            part.write_bytes(capture(scan, camera, draw))
            part.rename(folder / f"{name}.png")
            count += 1
    return count


def play(root: Path, *, copies: int) -> int:
    """The demo; returns the exit code."""
    started_s = time.monotonic()
    digits = load_digits()
    scans = list(zip(range(len(digits.target)), digits.images, (int(d) for d in digits.target), strict=True))
    factory, site = scans[:900], [s for s in scans[900:] if s[2] in SITE_DIGITS]
    seen, unseen = site[: len(site) * 2 // 3], site[len(site) * 2 // 3 :]
    draw = np.random.default_rng(99)
    tests = {camera: [(capture(s, camera, draw), f"digit {d}") for _, s, d in unseen] for camera in CAMERAS}

    say("1  a factory model learns ten digits from 900 clean scans")
    train_factory_model(
        np.stack([s[1] for s in factory]), np.array([s[2] for s in factory]), root / "factory.safetensors"
    )
    (root / "classes.txt").write_text("".join(f"digit {d}\n" for d in range(10)))
    stage = Stage(root, CONFIG)
    stage.import_model(
        "cifar:resnet20", "--weights", str(root / "factory.safetensors"), "--classes", str(root / "classes.txt"),
        "--size", f"{SIDE}x{SIDE}", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5",
    )  # fmt: skip
    say("2  the daemon starts, and a client begins to ask for predictions without pause")
    with stage:
        asker = Asker(stage.client(), tests["site"][0][0], pause_s=0.005)
        asker.start()
        try:
            rows, promoted = visit(stage, seen, tests, copies)
        finally:
            asker.stop()
    say(f"\n{table(rows)}\n")
    say(f"  {asker.answered} requests answered, {len(asker.failures)} failed; by version: {asker.versions}")
    say(f"  {promoted} of 2 rounds promoted; {time.monotonic() - started_s:.0f} s in all; no image left this machine")
    for failure in asker.failures[:5]:
        say(f"  failed: {failure}")
    return 0 if promoted == len(tests) and not asker.failures else 1


def visit(
    stage: Stage, seen: list[Any], tests: dict[str, list[tuple[bytes, str]]], copies: int
) -> tuple[list[tuple[str, ...]], int]:
    """Show the site through one camera after the other; the rows of the table, and how many rounds were promoted."""
    rows: list[tuple[str, ...]] = [("", "accuracy on the site", "parameters", "latency here", "model file")]
    last_id, promoted = 0, 0

    def add(name: str, served: Any, share: float, latency_ms: float) -> None:
        size = f"{stage.model_bytes(served['version']) / 1024:.0f} KiB"
        rows.append((name, f"{share:.1%}", f"{served['parameters']:,}", f"{latency_ms:.2f} ms", size))

    for camera, words in CAMERAS.items():
        served = stage.status()["served"]
        share = stage.accuracy(tests[camera])
        say(f"3  the site's camera ({words}): the served model is right on {share:.1%} of its images")
        count = drop(stage.inbox, seen, camera, copies, seed=len(camera))
        say(f"   {count} files dropped into the inbox")
        status = stage.wait_for_round(last_id)
        last = status["last_round"]
        last_id = last["id"]
        say(f"   round {last_id} {last['outcome']}: {'; '.join(last['reasons'])}")
        if not last["promoted"]:
            continue
        promoted += 1
        add(f"version {served['version']}, camera {words}", served, share, last["latency_before_ms"])
        after = stage.accuracy(tests[camera])
        add(
            f"version {status['served']['version']}, after {last['kind']}",
            status["served"],
            after,
            last["latency_after_ms"],
        )
    return rows, promoted


def main() -> int:
    """Run in a temporary directory, or in one that is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="work in this directory and leave everything there to look at")
    parser.add_argument("--copies", type=int, default=4, help="pictures of each scan that the site takes")
    arguments = parser.parse_args()
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
        return play(arguments.keep.resolve(), copies=arguments.copies)
    with tempfile.TemporaryDirectory(prefix="edgetune-demo-") as directory:
        return play(Path(directory), copies=arguments.copies)


if __name__ == "__main__":
    sys.exit(main())
