"""
Classes that a site never shows, learnt from a teacher's word in the daemon's own rounds: how far their answers are right.

    python -m benchmarks.never_seen --data DIR --weights benchmarks/bases/resnet20_cifar10_without_ship_truck.safetensors
        --teacher-weights resnet56_cifar10.safetensors [--old 250] [--epochs 12] [--learning-rate 0.02] [--seed 0]
        [--threads 2]

A given ResNet20 knows eight classes of CIFAR-10, and its site shows these eight alone: so many images of each that it was not
trained on, labelled, as files. The teacher, a ResNet56 in a process of its own, knows ten; `training.unseen_classes: all` and
`transfer: label_free` make the other two classes of the served model. Accuracy is asked over the socket on 250 test images of
each class, among all outputs: chance is 10 % then. Answers that name one of the two carry the mark `never_seen_here`.

DIR holds cifar10_train.zip and cifar10_test.zip, with entries train/<class>/<name> and test/...
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.new_classes import PER_SECOND, TESTED, Site, as_tests, classes_of_cifar10, staged
from benchmarks.site import drop
from benchmarks.stage import edgetune, machine, need, say, table
from edgetune.images import decode, to_input
from edgetune.serve.engine import Engine

TEACHER = "cifar:resnet56a"
IMAGENET_MEAN, IMAGENET_STD = "0.485,0.456,0.406", "0.229,0.224,0.225"  # as the teacher was trained
CONFIG = """
inbox: {settle: 500ms, scan_interval: 2s}
buffer: {validation: 10%, holdout: 20%}
classes: {new: accept}
triggers: {new_samples: ENOUGH, cooldown: 5s}
budgets: {interval: 1s, memory_available_min: 200MiB, disk_free_min: 200MiB}
pruning: {level: 0%}
training:
  {epochs_after: EPOCHS, learning_rate: RATE, seed: SEED, threads: THREADS, transfer: label_free, teacher: file, teacher_file: "TEACHER",
   unseen_classes: all}
"""


def teacher_version(weights: Path, classes: Sequence[str], root: Path) -> Path:
    """The directory of a version that another board might have exported."""
    root.mkdir()
    (root / "classes.txt").write_text("".join(f"{label}\n" for label in classes))
    (root / "config.yaml").write_text(f'paths: {{state_dir: "{root}/state", runtime_dir: "{root}/run"}}\n')
    edgetune(
        "models", "import", "--config", str(root / "config.yaml"), "--arch", TEACHER, "--weights", str(weights),
        "--classes", str(root / "classes.txt"), "--size", "32x32", "--mean", IMAGENET_MEAN, "--std", IMAGENET_STD,
    )  # fmt: skip
    return root / "state" / "models" / "v000001"


def play(arguments: argparse.Namespace, root: Path) -> list[tuple[str, ...]]:
    """One run: a row before, a row after each round."""
    site = Site(arguments)
    classes = classes_of_cifar10(arguments.data)
    never = [label for label in classes if label not in site.classes]
    tests = as_tests(arguments.data, never, TESTED["cifar10"])
    teacher = teacher_version(arguments.teacher_weights, classes, root / "teacher")
    config = CONFIG
    for word, value in (
        ("ENOUGH", round(0.64 * len(site.old))), ("EPOCHS", arguments.epochs), ("RATE", arguments.learning_rate),
        ("SEED", arguments.seed),
        ("THREADS", arguments.threads), ("TEACHER", teacher),
    ):  # fmt: skip
        config = config.replace(word, str(value))
    board = root / "board"
    board.mkdir()
    rows: list[tuple[str, ...]] = [
        ("served", "classes shown here", f"never seen: {', '.join(never)}", "kept of training", "seconds")
    ]
    with staged(board, config, arguments.weights, site.classes) as stage:
        began_s = time.monotonic()

        def note(words: str, kept: float | None = None) -> None:
            figures = (f"{stage.accuracy(each):.1%}" for each in (site.old_tests, tests))
            rows.append((words, *figures, f"{kept:.0%}" if kept else "", f"{time.monotonic() - began_s:.0f}"))
            say("  " + "  ".join(rows[-1]))

        note("factory model")
        say(f"dropping {len(site.old)} images of {len(site.classes)} classes")
        drop(stage.inbox, site.old, PER_SECOND)
        status = stage.wait_for_round(0)
        last = status["last_round"]
        say(f"round {last['id']} ({last['kind']}) {last['outcome']}: {'; '.join(last['reasons'])}")
        details = stage.client().get(f"/v1/rounds/{last['id']}")["details"]
        note(f"{status['served']['version']}, {last['kind']} {last['outcome']}", details.get("kept_of_training"))
        refused = board / "state" / "quarantine" / "models" / "v000002"
        if refused.exists():
            figures = (f"{accuracy_of(refused, each):.1%}" for each in (site.old_tests, tests))
            rows.append(("what was refused", *figures, "", ""))
    return rows


def accuracy_of(version: Path, pictures: Sequence[tuple[bytes, str]]) -> float:
    """Share of right answers of a version that is not served."""
    engine = Engine.load(version, threads=1)
    size, right = engine.manifest.preprocess, 0
    for picture, label in pictures:
        logits = engine.predict(to_input(decode(picture), size)[None])
        right += engine.classes[int(logits.argmax())] == label
    engine.close()
    return right / len(pictures)


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--teacher-weights", type=Path, required=True)
    parser.add_argument("--old", type=int, default=250, help="images of each class on the board")
    parser.add_argument("--epochs", type=float, default=12)
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="of the trainer")
    parser.set_defaults(new=[], images=0)
    arguments = parser.parse_args()
    need(parser, arguments, weights="a ResNet20 as safetensors", teacher_weights="a ResNet56 as safetensors")
    with tempfile.TemporaryDirectory(prefix="edgetune-never-seen-") as directory:
        rows = play(arguments, Path(directory))
    say(f"\n{machine()}, {time.strftime('%Y-%m-%d')}, {arguments.threads} threads\n{table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
