"""
`python -m edgetune.device.jtop_probe`: one JSON reading a line from jetson-stats, until its reader goes away.

A program of its own because `import jtop` changes the process-wide multiprocessing start method, because its client
may hang and cannot reconnect after `jtop.service` restarts, and because it is AGPL-3.0. It imports nothing of edgetune.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

_INTERVAL_S = 1.0
_OFFLINE_C = -256.0
_CHIP = ("cpu", "bcpu", "mcpu", "gpu", "soc", "tj", "cv")
_PID, _GPU_KIB = 0, 8  # columns of jtop's table of processes


def reading(stats: Any) -> dict[str, Any]:
    """
    What a jtop client says now. A version that says something in another way leaves that one out.

    Args:
        stats: a `jtop.jtop` that is connected: `temperature` maps names to {"temp", "online"}, `power` holds
            {"tot": {"power": milliwatts}}, `processes` rows with a process number and the KiB it holds of the GPU's memory.

    Returns:
        `soc_temp_c`, the hottest online part of the chip, `power_w` and `gpu_mib` by process number; None for what jtop
        does not give.
    """
    return {
        "soc_temp_c": _tried(lambda: _hottest_c(stats.temperature)),
        "power_w": _tried(lambda: _total_w(stats.power)),
        "gpu_mib": _tried(lambda: _gpu_mib(stats.processes)),
    }


def _tried(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None


def _hottest_c(temperatures: Mapping[str, Any]) -> float | None:
    values = []
    for name, state in temperatures.items():
        value = state.get("temp") if isinstance(state, Mapping) else state
        is_online = state.get("online", True) if isinstance(state, Mapping) else True
        if is_online and isinstance(value, (int, float)) and value > _OFFLINE_C and name.lower().startswith(_CHIP):
            values.append(float(value))
    return max(values, default=None)


def _total_w(power: Any) -> float | None:
    """Milliwatts of {"tot": {"power"}} since jtop 4, of (total, rails) with {"cur"} before."""
    total = power.get("tot") if isinstance(power, Mapping) else power[0]
    value = total.get("power", total.get("cur")) if isinstance(total, Mapping) else None
    return value / 1000 if isinstance(value, (int, float)) else None


def _gpu_mib(processes: Any) -> dict[str, float]:
    held: dict[str, float] = {}
    for row in processes:
        pid = str(int(row[_PID]))
        held[pid] = held.get(pid, 0.0) + float(row[_GPU_KIB]) / 1024
    return held


def _mark(stats: Any) -> Any:
    """What differs between two readings of the service: its up time. The client may repeat the last one."""
    return _tried(lambda: stats.uptime)


def _say(line: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Print readings for ever; 1 with {"error": ...} when jtop is missing or does not answer."""
    try:
        from jtop import jtop  # noqa: PLC0415  only here, see above

        last = None
        with jtop(interval=_INTERVAL_S) as stats:
            while stats.ok():
                mark = _mark(stats)
                if mark is None or mark != last:
                    _say(reading(stats))
                last = mark
    except BrokenPipeError:
        return 0
    except Exception as error:  # noqa: BLE001  whatever jtop raises is said to the daemon, and ends this program
        _say({"error": f"{type(error).__name__}: {error}"})
        return 1
    _say({"error": "jtop.service went away"})
    return 1


if __name__ == "__main__":
    sys.exit(main())
