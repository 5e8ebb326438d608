"""`python -m edgetune`."""

from __future__ import annotations

import sys

from edgetune.cli import main

if __name__ == "__main__":
    sys.exit(main())
