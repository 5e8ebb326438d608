"""`make bench`: the benchmarks that need nothing but this checkout, one after the other."""

from __future__ import annotations

import subprocess
import sys

ALONE = (
    "benchmarks.serving",
    "benchmarks.swap",
    "benchmarks.rest",
    "benchmarks.memory",
    "benchmarks.depth_or_width",
)


def main() -> int:
    """Run them all; the number of those that failed."""
    failed = 0
    for name in ALONE:
        sys.stdout.write(f"\n== {name}\n")
        sys.stdout.flush()
        failed += subprocess.run([sys.executable, "-m", name], check=False).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
