"""
`python -m edgetune.device.jtop_probe`: one JSON reading a line from jetson-stats, until its reader goes away.

A program of its own because `import jtop` changes the process-wide multiprocessing start method, because its client
may hang and cannot reconnect after `jtop.service` restarts, and because it is AGPL-3.0. It imports nothing of edgetune.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

_INTERVAL_S = 1.0
_OFFLINE_C = -256.0
_CHIP = ("cpu", "gpu", "soc", "tj", "cv")


def reading(stats: Any) -> dict[str, float | None]:
    """
    What a jtop client says now.

    Args:
        stats: a `jtop.jtop` that is connected: `temperature` maps names to {"temp", "online"}, `power` holds
            {"tot": {"power": milliwatts}}.

    Returns:
        `soc_temp_c`, the hottest online part of the chip, and `power_w`; None for what jtop does not give.
    """
    return {"soc_temp_c": _hottest_c(stats.temperature), "power_w": _total_w(stats.power)}


def _hottest_c(temperatures: Mapping[str, Any]) -> float | None:
    values = []
    for name, state in temperatures.items():
        value = state.get("temp") if isinstance(state, Mapping) else state
        is_online = state.get("online", True) if isinstance(state, Mapping) else True
        if is_online and isinstance(value, (int, float)) and value > _OFFLINE_C and name.lower().startswith(_CHIP):
            values.append(float(value))
    return max(values, default=None)


def _total_w(power: Mapping[str, Any]) -> float | None:
    total = power.get("tot")
    value = total.get("power") if isinstance(total, Mapping) else None
    return value / 1000 if isinstance(value, (int, float)) else None


def _say(line: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Print readings for ever; 1 with {"error": ...} when jtop is missing or does not answer."""
    try:
        from jtop import jtop  # noqa: PLC0415  only here, see above

        with jtop(interval=_INTERVAL_S) as stats:
            while stats.ok():
                _say(reading(stats))
    except BrokenPipeError:
        return 0
    except Exception as error:  # noqa: BLE001  whatever jtop raises is said to the daemon, and ends this program
        _say({"error": f"{type(error).__name__}: {error}"})
        return 1
    _say({"error": "jtop.service went away"})
    return 1


if __name__ == "__main__":
    sys.exit(main())
