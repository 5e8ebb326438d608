"""`edgetune train`, `pause`, `resume`, `cancel`, `rounds`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import click

from edgetune.cli.base import columns, emit, with_json, with_socket
from edgetune.cli.forecast_words import forecast_words, met_lines
from edgetune.cli.words import ago, round_line, unlabelled_lines
from edgetune.client import Client
from edgetune.errors import EXIT_FAILED, EXIT_OK, EXIT_REFUSED, NotFoundError

_POLL_S = 0.5
_SECONDS_UNTIL_GONE = 60.0
_PLANNING_MAX_S = 630.0  # the daemon gives up after ten minutes


@click.command()
@with_socket
@with_json
@click.option(
    "--kind",
    type=click.Choice(["adapt", "reshape"]),
    help="Fine-tune the served version, or prune the factory model anew.",
)
@click.option("--force", is_flag=True, help="Even with few samples.")
@click.option("--dry-run", is_flag=True, help="Only say what would happen.")
@click.option("--wait", is_flag=True, help="Show progress until the round is over; exits 4 when the gate refused it.")
def train(client: Client, *, as_json: bool, kind: str | None, force: bool, dry_run: bool, wait: bool) -> int:
    """Start a round now, as soon as the budget allows."""
    order = {"force": force, "dry_run": dry_run} | ({"kind": kind} if kind else {})
    if dry_run:
        with _told("a trainer plans the round; that may take minutes"):
            plan = client.patient(_PLANNING_MAX_S).post("/v1/rounds", order)
    else:
        plan = client.post("/v1/rounds", order)
    if not wait or dry_run:
        emit(plan, _plan_words(plan), as_json=as_json)
        return EXIT_OK
    round_id = int(plan["id"])
    ended = _wait(client, round_id, is_quiet=as_json)
    emit(ended, _round_words(ended), as_json=as_json)
    if ended["outcome"] == "promoted":
        return EXIT_OK
    return EXIT_REFUSED if ended["outcome"] == "refused" else EXIT_FAILED


def _told(words: str) -> AbstractContextManager[object]:
    """Say what goes on, where there is somebody to see it."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(words)


def _plan_words(plan: Mapping[str, Any]) -> str:
    if not plan.get("wanted", True):
        return f"no round would start: it needs {'; '.join(plan['missing'])} (--force tries all the same)"
    verb = "would start" if plan.get("dry_run") else "asked for"
    number = f"round {plan['id']} " if "id" in plan else "a round "
    words = f"{number}({plan['kind']}) {verb}: {plan['reason']}"
    if plan.get("verdict") in ("pause", "stop"):
        words += f"\nthe budget holds it back for now: {'; '.join(plan['verdict_reasons'])}"
    if plan.get("forecast"):
        words += f"\n{forecast_words(plan['forecast'], plan.get('budgets') or {})}"
    elif plan.get("no_forecast"):
        words += f"\nthere is no forecast: {plan['no_forecast']}"
    return words


def _wait(client: Client, round_id: int, *, is_quiet: bool) -> dict[str, Any]:
    """Poll until the round is over; draw a bar where there is somebody to see it."""
    if is_quiet or not sys.stderr.isatty():
        for _share, _words, ended in _progress(client, round_id):
            if ended is not None:
                return ended
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    bar = Progress(TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
                   console=Console(stderr=True), transient=True)  # fmt: skip
    with bar:
        task = bar.add_task(f"round {round_id}", total=1.0)
        for share, words, ended in _progress(client, round_id):
            bar.update(task, completed=share, description=words)
            if ended is not None:
                return ended
    raise AssertionError("the rounds of _progress end with an outcome")


def _progress(client: Client, round_id: int) -> Iterator[tuple[float, str, dict[str, Any] | None]]:
    """(share done, words, the round's row once it is over), again and again."""
    waited_s = 0.0
    while True:
        row = _row(client, round_id)
        if row is not None and row["ended_at_s"] is not None:
            yield 1.0, f"round {round_id}", row
            return
        status = client.get("/v1/status")
        now = status["round"]
        if row is None:  # not begun: the daemon's next tick does, or the budget holds it back
            waited_s = 0.0 if now["state"] == "held" else waited_s + _POLL_S
            if waited_s > _SECONDS_UNTIL_GONE:
                raise NotFoundError(f"round {round_id} never began", hint="see why: edgetune status")
        yield float(now.get("progress") or 0.0), round_line(status), None
        time.sleep(_POLL_S)


def _row(client: Client, round_id: int) -> dict[str, Any] | None:
    try:
        row: dict[str, Any] = client.get(f"/v1/rounds/{round_id}")
    except NotFoundError:
        return None
    return row


@click.command()
@with_socket
@with_json
def pause(client: Client, *, as_json: bool) -> None:
    """Withhold training until `edgetune resume`, also over a restart. Predictions go on."""
    emit(client.post("/v1/pause"), "training is paused; go on with: edgetune resume", as_json=as_json)


@click.command()
@with_socket
@with_json
def resume(client: Client, *, as_json: bool) -> None:
    """Allow training again."""
    emit(client.post("/v1/resume"), "training may go on", as_json=as_json)


@click.command()
@with_socket
@with_json
def cancel(client: Client, *, as_json: bool) -> None:
    """Give up the round under way; its result is never promoted."""
    answer = client.post("/v1/cancel")
    emit(answer, f"the round is cancelled ({answer.get('state', 'stopping')})", as_json=as_json)


@click.command()
@with_socket
@with_json
@click.argument("round_id", metavar="[ID]", type=int, required=False)
@click.option("--limit", "-n", type=click.IntRange(min=1, max=1000), default=20, show_default=True, help="How many.")
def rounds(client: Client, *, as_json: bool, round_id: int | None, limit: int) -> None:
    """List the last rounds, or tell everything about one."""
    if round_id is not None:
        row = client.get(f"/v1/rounds/{round_id}")
        emit(row, f"{_round_words(row)}\n{json.dumps(row['details'], indent=2, ensure_ascii=False)}", as_json=as_json)
        return
    found = client.get("/v1/rounds", limit=limit)
    heading = ("round", "kind", "outcome", "when", "why")
    lines = [heading] + [
        (str(row["id"]), str(row["kind"]), str(row["outcome"] or row["state"]), ago(row["ended_at_s"] or row["started_at_s"]),
         str(row["message"] or row["reason"]))
        for row in found
    ]  # fmt: skip
    emit(found, columns(lines, right=(0,)) if found else "there was no round yet", as_json=as_json)


def _round_words(row: Mapping[str, Any]) -> str:
    details = row.get("details") or {}
    decision = details.get("decision") or {}
    lines = [
        f"round {row['id']} ({row['kind']}): {row['outcome'] or row['state']}",
        f"  wanted because: {row['reason']}",
    ]
    if row.get("message"):
        lines.append(f"  {row['message']}")
    lines += [f"  {line}" for line in met_lines(details)]
    lines += [f"  {line}" for line in unlabelled_lines((details.get("summary") or {}).get("unlabelled") or {})]
    lines += [f"  {reason}" for reason in decision.get("reasons") or () if reason != row.get("message")]
    lines += [f"  note: {warning}" for warning in decision.get("warnings") or ()]
    if details.get("left_whole"):
        lines.append(f"  {details['left_whole']}")
    if (details.get("update") or {}).get("why"):
        lines.append(f"  training.update came to {details['update']['update']}: {details['update']['why']}")
    if details.get("kept_of_training", 1.0) < 1:
        lines.append(
            f"  kept {details['kept_of_training']:.0%} of what training changed, for the classes that are shown here"
        )
    worst = (details.get("doubts") or {}).get("worst") or ()
    lines += [
        "  training samples whose labels the served version contradicted most (edgetune data label ID LABEL):"
    ] * bool(worst)
    lines += [
        f"    {each['sample']}: labelled {each['label']!r}, it says {each['says']!r} ({each['confidence']:.0%})"
        for each in worst
    ]
    return "\n".join(lines)
