"""`edgetune doctor`: what is wrong with this board, its libraries and its rights, each with the way out."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgetune import __version__, units
from edgetune.cli.base import CONFIG, emit, with_config, with_json, with_socket
from edgetune.cli.libraries import FAULT, OK, WARNING, Finding, check_libraries
from edgetune.cli.readings import QUANTITIES, explain_source, show_quantity
from edgetune.cli.words import count
from edgetune.client import Client
from edgetune.errors import EXIT_FAILED, EXIT_OK, ConfigError, DaemonNotRunningError, EdgetuneError, TeacherError
from edgetune.types import Manifest, Preprocess
from edgetune.wire import from_json

if TYPE_CHECKING:
    from edgetune.config import Config
    from edgetune.device.board import Board
    from edgetune.types import Measurement

_MARKS = {OK: "ok", WARNING: "!", FAULT: "FAULT"}
_COLOURS = {OK: "green", WARNING: "yellow", FAULT: "red"}


@click.command()
@with_socket
@with_config
@with_json
@click.option("--quick", is_flag=True, help="Do not try to import the heavy libraries.")
def doctor(client: Client, config_path: Path, *, as_json: bool, quick: bool) -> int:
    """Check board, libraries and rights, and say what to mend. Exits 1 on a fault."""
    findings = []
    for finding in examine(client, config_path, is_quick=quick):
        findings.append(finding)
        if not as_json:
            _print(finding)
    faults = sum(finding.state == FAULT for finding in findings)
    if as_json:
        emit([asdict(finding) for finding in findings], "", as_json=True)
    else:
        click.echo(f"\n{faults} faults" if faults else "\nnothing that would keep edgetune from running")
    return EXIT_FAILED if faults else EXIT_OK


def _print(finding: Finding) -> None:
    mark = click.style(f"{_MARKS[finding.state]:>5}", fg=_COLOURS[finding.state])
    first, *rest = finding.says.splitlines() or [""]
    click.echo(f"{mark}  {finding.what:<15} {first}")
    for line in rest:
        click.echo(f"{'':<7}{'':<15} {line}")
    if finding.fix:
        click.echo(f"{'':<7}{'':<15} -> {finding.fix}")


def examine(client: Client, config_path: Path, *, is_quick: bool = False) -> Iterator[Finding]:
    """Look at everything, one finding after the other, none of which keeps the next from being made."""
    from edgetune.config import Config
    from edgetune.device.board import identify

    yield Finding("edgetune", OK, f"{__version__}, Python {sys.version.split()[0]}")
    finding, config = check_config(config_path)
    yield finding
    config = config or Config()
    board = identify()
    yield check_board(board)
    yield from check_sensors(config)
    yield check_memory_wall(config)
    disk_mib = shutil.disk_usage(_existing(config.paths.state_dir)).total / 2**20
    yield from check_affordable(config, board_mib=board.memory_mib, disk_mib=disk_mib)
    yield from check_libraries(is_quick=is_quick)
    yield check_state_dir(config)
    yield check_disk(config)
    yield check_teacher(config, is_quick=is_quick)
    yield from check_group(config)
    yield check_daemon(client)


def check_config(path: Path) -> tuple[Finding, Config | None]:
    """Whether the configuration is there and valid."""
    from edgetune.config import Config, load

    if str(path) == CONFIG and not path.exists():
        return Finding(
            "configuration",
            WARNING,
            f"{path} is not there; the defaults are used",
            f"edgetune config show --default > {path}",
        ), Config()
    try:
        return Finding("configuration", OK, f"{path} is valid"), load(path)
    except ConfigError as error:
        return Finding(
            "configuration", FAULT, error.message, "correct these lines; docs/configuration.md has every key"
        ), None


def check_board(board: Board) -> Finding:
    """What machine this is."""
    memory = "" if board.memory_mib is None else f", {units.show(board.memory_mib * 2**20, 'bytes')} of memory"
    jetpack = f", L4T {board.l4t} (JetPack {board.jetpack})" if board.l4t else ""
    jetpack += f", power mode {board.power_mode}" if board.power_mode else ""
    says = f"{board.model}: {board.cpu}, {count(board.cores, 'core')}{memory}\n{board.system}, {board.kernel}{jetpack}"
    return Finding("board", OK, says)


def check_sensors(config: Config) -> Iterator[Finding]:
    """What this board measures, and whether each budget can be kept."""
    from edgetune.clock import SystemClock
    from edgetune.config import limits
    from edgetune.daemon import settings
    from edgetune.decide.budget import budgeted
    from edgetune.types import Quantity

    needed = budgeted(limits(config))
    sensors = settings.board_sensors(config, SystemClock(), disk_path=_existing(config.paths.state_dir))
    try:
        supported = sensors.supported()
        gpu = sensors.gpu_memory()
    finally:
        sensors.close()
    for quantity, measured in supported.items():
        name = QUANTITIES[quantity.value][0]
        if quantity is Quantity.TRAINER_RSS_MIB:  # of a trainer, and none is running here
            if gpu is not None:
                yield judge_gpu_memory(gpu, is_budgeted=quantity in needed)
            continue
        if measured.value is not None:
            says = (
                f"{name}: {show_quantity(quantity.value, measured.value)} ({explain_source(quantity.value, measured)})"
            )
            is_held_down = quantity is Quantity.IS_THROTTLED and bool(measured.value)
            fix = "a stronger supply, better cooling, or a lower budgets.power_max" if is_held_down else ""
            yield Finding("sensor", WARNING if is_held_down else OK, says, fix)
        elif quantity in needed:
            key = settings.budget_key(quantity, config)
            fix = f"set {key} to null" + (", or budgets.estimate" if quantity is Quantity.POWER_W else "")
            yield Finding("sensor", FAULT, f"{key} is set, but {name} cannot be measured: {measured.why_unknown}", fix)
        else:
            yield Finding("sensor", OK, f"{name} cannot be measured ({measured.why_unknown}); no budget needs it")


def judge_gpu_memory(gpu: Measurement, *, is_budgeted: bool) -> Finding:
    """Whether what a trainer holds of the GPU's memory, which is the board's, is counted."""
    if gpu.value is not None:
        return Finding("sensor", OK, f"a trainer's GPU memory: counted (from {gpu.source})")
    says = f"a trainer's GPU memory is the board's and cannot be counted: {gpu.why_unknown}"
    if not is_budgeted:
        return Finding("sensor", OK, f"{says}; no budget needs it")
    return Finding(
        "sensor",
        WARNING,
        f"{says}\nbudgets.trainer_memory_max does not see it",
        "install jetson-stats, or rely on budgets.memory_available_min",
    )


def check_affordable(config: Config, *, board_mib: float | None, disk_mib: float) -> Iterator[Finding]:
    """Whether there is a budget that no round can ever keep on a board of that size."""
    from edgetune.daemon.settings import never_affordable

    for sentence in never_affordable(config, board_mib=board_mib, disk_mib=disk_mib):
        yield Finding("budgets", FAULT, sentence, "lower it")


def check_memory_wall(config: Config) -> Finding:
    """Whether the kernel can keep the trainer below its memory budget, or only readings do."""
    from edgetune.device.memory_wall import NO_CONTROLLER, kernel_lacks

    if config.budgets.trainer_memory_max is None:
        return Finding("memory limit", OK, "budgets.trainer_memory_max is null: nothing limits the trainer's memory")
    why = kernel_lacks()
    if not why:
        return Finding(
            "memory limit", OK, "the kernel can keep the trainer below budgets.trainer_memory_max (Delegate=)"
        )
    boot = "/boot/firmware/cmdline.txt" if Path("/boot/firmware/cmdline.txt").exists() else "the kernel's command line"
    fix = f"add cgroup_enable=memory to {boot} and restart the board"
    if why != NO_CONTROLLER:
        fix = "add systemd.unified_cgroup_hierarchy=1 to the kernel's command line and restart the board"
    says = f"{why}: the trainer's memory is kept below its budget by readings alone, which come seconds apart"
    return Finding("memory limit", WARNING, says, fix)


def check_state_dir(config: Config) -> Finding:
    """Whether the state directory is there and the service may write in it."""
    path = config.paths.state_dir
    try:
        info = path.stat()
    except PermissionError:
        return Finding("state", WARNING, f"you may not look into {path}", "run doctor with sudo to check it")
    except FileNotFoundError:
        return Finding(
            "state",
            WARNING,
            f"{path} is not there yet; the service makes it when it starts",
            "make install makes it with the right owner",
        )
    if not stat.S_ISDIR(info.st_mode):
        return Finding("state", FAULT, f"{path} is not a directory", "move it away, or set paths.state_dir")
    try:
        owner = pwd.getpwuid(info.st_uid).pw_name
    except KeyError:
        owner = str(info.st_uid)
    if os.access(path, os.W_OK):
        return Finding("state", OK, f"{path}, owned by {owner}")
    return Finding(
        "state",
        WARNING,
        f"{path} belongs to {owner}; you may not write in it",
        "edgetune run works as that user: systemctl start edgetune",
    )


def check_teacher(config: Config, *, is_quick: bool) -> Finding:
    """Whether the rounds' teacher is there, and knows what it shall teach. No image is sent."""
    from edgetune import config as configuration
    from edgetune.teach.asking import shared_classes, unseen_classes
    from edgetune.teach.opening import open_model

    if config.training.share == 0:
        return Finding("teacher", OK, "rounds learn from labels alone")
    if config.training.teacher == "ancestor":
        return Finding("teacher", OK, "the factory model; no image leaves this device")
    source, note = configuration.teacher(config), configuration.privacy_note(config)
    named = source.server or source.file
    if is_quick:
        return Finding("teacher", WARNING if note else OK, "\n".join(filter(None, (f"{named}, not asked", note))))
    served, why = _served_manifest(config)
    try:
        opened = open_model(
            source, preprocess=served.preprocess if served else Preprocess(height=224, width=224), threads=1
        )
        opened.model.close()
        says = f"{named} answers with {count(opened.form.outputs, 'class')}"
        if served is None:
            return Finding("teacher", WARNING, "\n".join(filter(None, (f"{says}; {why}", note))))
        more = unseen_classes(opened.form, served.classes, source.classes, wanted=source.unseen_classes)
        shared = shared_classes(opened.form, (*served.classes, *more), source.classes)
    except TeacherError as error:
        return Finding("teacher", FAULT, "\n".join(filter(None, (error.message, note))), error.hint)
    says += f", {len(shared.ours) - len(more)} of the served model's {len(served.classes)} among them"
    says += f", and {len(more)} that this site has not shown" if more else ""
    return Finding("teacher", WARNING if note else OK, "\n".join(filter(None, (says, note))))


def _served_manifest(config: Config) -> tuple[Manifest | None, str]:
    """The served version's, or why it cannot be read."""
    path = config.paths.state_dir / "models" / "current" / "manifest.json"
    try:
        return from_json(Manifest, path.read_bytes()), ""
    except (OSError, ValueError) as error:
        return None, f"its classes cannot be compared with ours: {getattr(error, 'strerror', None) or error} ({path})"


def check_disk(config: Config) -> Finding:
    """Whether there is room for the buffer's quota and the disk budget."""
    path = _existing(config.paths.state_dir)
    free, budget = shutil.disk_usage(path).free, config.budgets.disk_free_min or 0
    says = f"{units.show(free, 'bytes')} free at {path}"
    if free < budget:
        return Finding(
            "disk",
            FAULT,
            f"{says}, less than budgets.disk_free_min ({units.show(budget, 'bytes')})",
            "make room; no round will run",
        )
    if free < budget + config.buffer.quota:
        return Finding("disk", WARNING, f"{says}, too little for buffer.quota ({units.show(config.buffer.quota, 'bytes')}) beside it",
                       "lower buffer.quota, or put paths.state_dir on a larger disk")  # fmt: skip
    return Finding("disk", OK, says)


def _existing(path: Path) -> Path:
    """The path, or the nearest directory above it that is there."""
    while not os.path.exists(path):  # noqa: PTH110 - Path.exists raises where one may not look
        path = path.parent
    return path


def check_group(config: Config) -> Iterator[Finding]:
    """Whether the groups that the socket is given to are there, and whether you are in one."""
    for key, name in (
        ("serving.socket_group", config.serving.socket_group),
        ("serving.admin_group", config.serving.admin_group),
    ):
        if name is None:
            continue
        try:
            group = grp.getgrnam(name)
        except KeyError:
            yield Finding(
                "group",
                WARNING,
                f"there is no group {name} ({key})",
                f"sudo groupadd --system {name}, or set {key} to null",
            )
            continue
        is_in = group.gr_gid in os.getgroups() or os.geteuid() == 0
        yield Finding("group", OK if is_in else WARNING, f"you are {'' if is_in else 'not '}in {name} ({key})",
                      "" if is_in else f"sudo usermod -aG {name} $USER, and log in again")  # fmt: skip


def check_daemon(client: Client) -> Finding:
    """Whether the daemon answers, and serves."""
    try:
        ready = client.get("/readyz")
    except DaemonNotRunningError as error:
        return Finding("service", WARNING, error.message, error.hint)
    except EdgetuneError as error:
        return Finding("service", FAULT, error.message, error.hint)
    if ready["ready"]:
        return Finding("service", OK, ready["why"] or "answers and serves a model")
    return Finding("service", WARNING, f"answers, but does not serve: {ready['why']}", "edgetune models import --help")
