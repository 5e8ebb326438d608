"""
A CIFAR-100 site: the given ResNet20 knows a hundred classes, the board sees the ten aquatic ones.

    python -m benchmarks.site --data DIR_WITH_cifar100.zip --weights resnet20_cifar100.safetensors [--csv FILE]

The daemon runs as a user runs it. Images are dropped into the inbox at 50 a second, drawn from those that the given model
was not trained on (it had the first 400 of each class; the last 100 are dropped). Accuracy is asked over the socket, on the
test images of these classes, before and after two rounds; parameters and latency are the round's own measurement with
ONNX Runtime, base and candidate interleaved.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from benchmarks.stage import Asker, Stage, machine, need, say, table

AQUATIC = (
    "beaver", "dolphin", "otter", "seal", "whale", "aquarium_fish", "flatfish", "ray", "shark", "trout",
)  # fmt: skip
TRAINED_ON = 400  # the first images of each class, in the archive's order
MEAN, STD = "0.4914,0.4822,0.4465", "0.2023,0.1994,0.2010"
CONFIG = """
inbox: {settle: 500ms, scan_interval: 2s}
buffer: {validation: 10%, holdout: 20%}
triggers: {new_samples: 320, cooldown: 10s}
budgets: {interval: 1s, memory_available_min: 200MiB, disk_free_min: 200MiB}
pruning: {level: LEVEL, criterion: CRITERION, search: SEARCH}
training: {epochs_after: EPOCHS, seed: SEED, threads: THREADS}
"""


def archive(data: Path) -> zipfile.ZipFile:
    """cifar100.zip, with entries train/<class>/<name> and test/<class>/<name>."""
    path = data / "cifar100.zip"
    if not path.exists():
        raise SystemExit(f"{path} is missing: a zip of CIFAR-100 with entries train/<class>/<name>.webp and test/...")
    return zipfile.ZipFile(path)


def of_class(names: list[str], part: str, label: str) -> list[str]:
    """The entries of one class, in the archive's order."""
    return [name for name in names if name.startswith(f"{part}/{label}/")]


def png(data: bytes) -> bytes:
    """A camera writes JPEG or PNG; PNG keeps the pixels as they are."""
    from PIL import Image

    file = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").save(file, "PNG")
    return file.getvalue()


def drop(inbox: Path, pictures: list[tuple[str, str, bytes]], per_second: float) -> None:
    """Write (name, label, bytes) into the inbox at a steady pace, each image a group of its own."""
    began_s = time.monotonic()
    for i, (name, label, data) in enumerate(pictures):
        folder = inbox / label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps({"group": name}))
        (folder / f"{name}.png.part").write_bytes(data)
        (folder / f"{name}.png.part").rename(folder / f"{name}.png")
        time.sleep(max(0.0, began_s + (i + 1) / per_second - time.monotonic()))


def play(arguments: argparse.Namespace, root: Path) -> int:
    """The benchmark; returns the exit code."""
    with archive(arguments.data) as zipped:
        names = zipped.namelist()
        classes = sorted({name.split("/")[1] for name in names if name.startswith("test/")})
        fresh = {label: of_class(names, "train", label)[TRAINED_ON:] for label in AQUATIC}
        rounds = [
            [
                (Path(n).stem, label, png(zipped.read(n)))
                for i in range(50)
                for label in AQUATIC
                for n in fresh[label][half + i : half + i + 1]
            ]
            for half in (0, 50)
        ]
        tests = [(png(zipped.read(n)), label) for label in AQUATIC for n in of_class(names, "test", label)]
    (root / "classes.txt").write_text("".join(f"{label}\n" for label in classes))
    config = CONFIG.replace("LEVEL", arguments.level).replace("CRITERION", arguments.criterion)
    config = config.replace("SEARCH", arguments.search).replace("SEED", str(arguments.seed))
    config = config.replace("EPOCHS", str(arguments.epochs)).replace("THREADS", str(arguments.threads))
    stage = Stage(root, config)
    stage.import_model(
        "cifar:resnet20", "--weights", str(arguments.weights), "--classes", str(root / "classes.txt"),
        "--size", "32x32", "--mean", MEAN, "--std", STD,
    )  # fmt: skip
    rows: list[tuple[str, ...]] = [("version", "top-1 on the site", "parameters", "latency", "of the base")]
    with stage:
        asker = Asker(stage.client(), tests[0][0], pause_s=0.02)
        asker.start()
        try:
            served = stage.status()["served"]
            rows.append(("factory", f"{stage.accuracy(tests):.1%}", f"{served['parameters']:,}", "", ""))
            last_id = 0
            for pictures in rounds:
                say(f"dropping {len(pictures)} images at 50 a second")
                drop(stage.inbox, pictures, 50.0)
                status = stage.wait_for_round(last_id)
                last = status["last_round"]
                last_id = last["id"]
                say(f"round {last_id} {last['outcome']}: {'; '.join(last['reasons'])}")
                name = f"{status['served']['version']} ({last['kind']}, {last['outcome']})"
                rows.append((
                    name, f"{stage.accuracy(tests):.1%}", f"{status['served']['parameters']:,}",
                    f"{last['latency_after_ms']:.3f} ms", f"{last['latency_ratio']:.2f}x",
                ))  # fmt: skip
        finally:
            asker.stop()
    say(f"\n{machine()}, {time.strftime('%Y-%m-%d')}\n{table(rows)}\n")
    say(f"  {asker.answered} requests answered meanwhile, {len(asker.failures)} failed")
    if arguments.csv:
        with arguments.csv.open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    return 0 if not asker.failures else 1


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--level", default="30%")
    parser.add_argument("--criterion", default="taylor")
    parser.add_argument("--search", default="steps", choices=["steps", "dapr", "none"])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--threads", type=int, default=2, help="of the trainer")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--keep", type=Path, help="work in this directory and leave everything there")
    arguments = parser.parse_args()
    need(parser, arguments, weights="a CIFAR-100 ResNet20, 278,324 parameters, as safetensors,")
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
        return play(arguments, arguments.keep.resolve())
    with tempfile.TemporaryDirectory(prefix="edgetune-site-") as directory:
        return play(arguments, Path(directory))


if __name__ == "__main__":
    sys.exit(main())
