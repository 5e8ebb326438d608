"""`make docs`: writes what is made from the code into docs/ and config.yaml. A test fails when they are out of date."""

from __future__ import annotations

import sys
from pathlib import Path

from edgetune import errors
from edgetune.cli import reference
from edgetune.config import default_text, reference_text
from edgetune.decide.rounds import diagram

ROOT = Path(__file__).resolve().parent.parent


def between(text: str, name: str, body: str) -> str:
    """`text` with what stands between the two markers of `name` replaced by `body`."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    head, rest = text.split(begin)
    return f"{head}{begin}\n{body}\n{end}{rest.split(end)[1]}"


def error_table() -> str:
    """Every error class with its code, exit code and meaning."""
    rows = ["| code | HTTP | exit | meaning |", "|---|---|---|---|"]
    classes = [errors.EdgetuneError]
    for kind in classes:
        classes += kind.__subclasses__()
        rows.append(f"| `{kind.code}` | {kind.http_status} | {kind.exit_code} | {(kind.__doc__ or '').strip()} |")
    return "\n".join(rows)


def pages() -> dict[Path, str]:
    """Every generated file with the text it should have."""
    architecture, operations = ROOT / "docs/architecture.md", ROOT / "docs/operations.md"
    return {
        ROOT / "config.yaml": default_text(),
        ROOT / "docs/configuration.md": reference_text(),
        ROOT / "docs/cli.md": reference.reference_text(),
        architecture: between(architecture.read_text(), "rounds", f"```mermaid\n{diagram()}\n```"),
        operations: between(operations.read_text(), "errors", error_table()),
    }


def main() -> int:
    """Write the pages; with --check only say which are out of date."""
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if "--check" not in sys.argv:
            path.write_text(pages()[path])
        sys.stdout.write(f"{path.relative_to(ROOT)}\n")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
