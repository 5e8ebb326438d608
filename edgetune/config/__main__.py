"""`python -m edgetune.config [ROOT]` writes ROOT/config.yaml and ROOT/docs/configuration.md from the model."""

from __future__ import annotations

import sys
from pathlib import Path

from edgetune.config.text import default_text, reference_text


def main(root: Path) -> None:
    """Write both files below `root`."""
    for path, text in ((root / "config.yaml", default_text()), (root / "docs" / "configuration.md", reference_text())):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
