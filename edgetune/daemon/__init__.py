"""`edgetune run`: the daemon. It never imports torch."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
import sys
from pathlib import Path

from edgetune.clock import SystemClock
from edgetune.config import Config, split_address
from edgetune.daemon.core import Daemon
from edgetune.daemon.service import DaemonService
from edgetune.daemon.settings import api_limits
from edgetune.daemon.status import in_words
from edgetune.errors import EXIT_OK, ConfigError, SensorError
from edgetune.serve.api import build_app
from edgetune.serve.server import SocketServer
from edgetune.store.writable import check_writable

log = logging.getLogger("edgetune")

__all__ = ["Daemon", "DaemonService", "run"]


def run(config: Config, config_path: Path) -> int:
    """
    Serve until SIGTERM or SIGINT.

    Returns:
        The exit code.

    Raises:
        EdgetuneError: the daemon cannot start; `exit_code` says how to exit.
    """
    logging.basicConfig(
        level=config.log.level.upper(), stream=sys.stderr, format="%(levelname)s %(name)s %(message)s", force=True
    )
    return asyncio.run(_main(config, config_path))


async def _main(config: Config, config_path: Path) -> int:
    check_writable(config.paths.state_dir)
    daemon = Daemon(config, config_path, clock=SystemClock())
    stop, reload = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    await daemon.open()
    server: SocketServer | None = None
    try:
        server = _server(daemon, config)
        await server.start()
        await daemon.tick()
        daemon.notifier.ready(in_words(await daemon.status()))
        log.info("ready on %s", config.paths.socket)
        await _forever(daemon, stop, reload)
    except BaseException:
        await _end(server, daemon, is_clean=False)
        raise
    await _end(server, daemon, is_clean=True)
    return EXIT_OK


async def _end(server: SocketServer | None, daemon: Daemon, *, is_clean: bool) -> None:
    if server is not None:
        await server.stop()
    await daemon.close(is_clean=is_clean)


async def _forever(daemon: Daemon, stop: asyncio.Event, reload: asyncio.Event) -> None:
    while not stop.is_set():
        if reload.is_set():
            reload.clear()
            with contextlib.suppress(ConfigError, SensorError):  # said by the daemon; the old configuration stays
                await daemon.reload()
        await daemon.tick()
        waiters = [asyncio.create_task(event.wait()) for event in (stop, reload)]
        await asyncio.wait(waiters, timeout=_irregular(daemon.tick_interval_s()), return_when=asyncio.FIRST_COMPLETED)
        for waiter in waiters:
            waiter.cancel()


def _irregular(interval_s: float) -> float:
    """Up to a quarter less: a paced trainer works and sleeps in turn, and readings must not fall into step with it."""
    return interval_s * random.uniform(0.75, 1.0)


def _server(daemon: Daemon, config: Config) -> SocketServer:
    limits = api_limits(config)
    config.paths.runtime_dir.mkdir(parents=True, exist_ok=True)
    return SocketServer(
        build_app(DaemonService(daemon), limits),
        config.paths.socket,
        group=config.serving.socket_group,
        admin_group=config.serving.admin_group,
        limits=limits,
        tcp=None if config.serving.tcp is None else split_address(config.serving.tcp),
    )
