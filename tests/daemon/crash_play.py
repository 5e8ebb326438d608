"""
One board's life in a process that may die at any durable step: ingest, two rounds, promotion, sweep.

Run as `python crash_play.py ROOT`; with EDGETUNE_FAULT=n it kills itself at the n-th faultpoint.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from site_on_disk import Site  # noqa: E402 - found by the path above

GOAL = 3  # two rounds promoted


async def live(root: Path) -> None:
    """Go on until the second round was promoted and recorded, wherever the last process died."""
    async with Site(root) as site:
        for _ in range(300):
            ended = (await site.daemon.status())["last_round"]
            if site.daemon.serving.served.version is not None and site.daemon.serving.served.version >= GOAL and ended:
                return
            assert site.daemon.inbox is not None
            site.daemon.inbox.wake.set()
            await site.tick()
            await asyncio.sleep(0.005)
            if site.daemon.serving.served.version == GOAL - 1 and site.state.value == "idle":
                more = root / "more"
                if more.exists():
                    more.rename(root / "state" / "inbox" / "dog" / "more")
        raise SystemExit(f"stuck: {site.daemon.rounds.machine} {site.daemon.want}")


if __name__ == "__main__":
    asyncio.run(live(Path(sys.argv[1])))
