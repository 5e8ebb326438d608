"""The daemon's status in words. Pure: a dict in, text out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edgetune import units
from edgetune.cli.forecast_words import met_lines
from edgetune.cli.readings import compare, explain, is_worth_a_line

_CLASSES_SHOWN = 6
_ESTIMATES_SHOWN = 5
_NEWS = 2  # a class is named once it has half of the sightings that it takes; fewer are errors more often than not


@dataclass(frozen=True)
class Paragraph:
    """A heading and its lines; `tone` is good, busy, bad or plain."""

    heading: str
    lines: tuple[str, ...]
    tone: str = "plain"


def describe(status: Mapping[str, Any]) -> list[Paragraph]:
    """What `edgetune status` says, top to bottom."""
    paragraphs = [
        _model(status),
        _requests(status),
        _buffer(status),
        _round(status),
        _last_round(status),
        _board(status),
    ]
    if status.get("warnings"):
        paragraphs.append(Paragraph("Warnings", tuple(status["warnings"]), "bad"))
    return [paragraph for paragraph in paragraphs if paragraph.lines]


def as_text(paragraphs: Iterable[Paragraph]) -> str:
    """The paragraphs without colours, for pipes and logs."""
    lines = []
    for paragraph in paragraphs:
        for index, line in enumerate(paragraph.lines):
            lines.append(f"{paragraph.heading if index == 0 else '':<11} {line}")
    return "\n".join(lines)


def percent(share: float | None) -> str:
    """0.873 -> '87.3 %'."""
    return "unknown" if share is None else f"{share * 100:.1f} %"


def ago(then_s: float | None, now_s: float | None = None) -> str:
    """How long ago a wall time was."""
    if then_s is None:
        return "at an unknown time"
    past_s = (time.time() if now_s is None else now_s) - then_s
    return f"{units.show(round(past_s), 'duration')} ago" if past_s >= 1 else "just now"


def count(number: int, noun: str) -> str:
    """1 sample, 1,200 samples."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else plural}"


def mark_words(mark: str) -> str:
    """never_seen_here -> 'never seen here'."""
    return mark.replace("_", " ")


def marked(marks: Mapping[str, str]) -> list[str]:
    """Each mark once, with its classes: 'provisional: gull, tern'."""
    return [
        f"{mark_words(mark)}: {', '.join(sorted(label for label, own in marks.items() if own == mark))}"
        for mark in sorted(set(marks.values()))
    ]


def round_line(status: Mapping[str, Any]) -> str:
    """What the round is doing, in one line for a progress bar."""
    lines = _round(status).lines
    return lines[1] if status["round"]["state"] == "training" and len(lines) > 1 else lines[0]


def _model(status: Mapping[str, Any]) -> Paragraph:
    served = status.get("served")
    if served is None:
        return Paragraph(
            "Model", ("none yet. Import one: edgetune models import --arch ARCH --weights FILE --classes FILE",), "bad"
        )
    origin = (
        "the factory model"
        if served["kind"] == "factory"
        else f"made by a round ({served['kind']}) from version {served['parent']}"
    )
    lines = [f"version {served['version']}, {served['architecture']}, {count(served['classes'], 'class')}; {origin}"]
    if served.get("accuracy") is not None:
        lines.append(
            f"{percent(served['accuracy'])} right on {count(served['accuracy_samples'], 'hold-out sample')} when it was published"
        )
    else:
        lines.append("not yet judged on this site's images: the first round does that")
    size = [f"{served['parameters']:,} parameters"]
    if served.get("pruned"):
        size.append(f"{percent(served['pruned'])} fewer than the factory model")
    if served.get("latency_ms") is not None:
        size.append(f"{served['latency_ms']:.2f} ms a prediction")
    lines.append(", ".join(size))
    lines += marked(served.get("marks") or {})
    lines += _absent(served.get("absent"))
    lines += _watching(status.get("watching") or {})
    probation = status.get("probation")
    if probation:
        left = units.show(probation["ends_in_s"], "duration")
        lines.append(f"on probation for another {left}; falls back to version {probation['fallback']} if it does worse")
    return Paragraph("Model", tuple(lines), "good")


def _absent(absent: Mapping[str, Any] | None) -> list[str]:
    """Classes that it was not trained on here, and how far its word on them can be trusted."""
    if not absent:
        return []
    who = f"{count(absent['classes'], 'class')} of it had no samples here"
    if not absent["reference_images"]:
        return [f"{who}: how well it still knows them is unknown, there are no reference images of them"]
    images = count(absent["reference_images"], "reference image")
    return [
        f"{who}: {percent(absent['accuracy'])} right on {images} of them, {percent(absent['accuracy_before'])} before"
    ]


def _watching(watching: Mapping[str, Any]) -> list[str]:
    """What its own confidence says about it, and about the images."""
    found, shift, lines = watching.get("estimate"), watching.get("shift"), []
    if found:
        images = count(found["unlabelled"], "unlabelled image")
        lines.append(
            f"about {found['accuracy'] * 100:.0f} ± {found['error'] * 100:.0f} % right on the last {images}, by its calibrated"
            f" confidence ({percent(found['labelled_accuracy'])} on {count(found['labelled'], 'labelled image')})"
        )
    elif watching.get("is_watched"):
        lines.append(f"how often it is right on unlabelled images is unknown: {watching.get('why_unknown')}")
    if found and watching.get("kept"):
        kept = [f"{row['accuracy'] * 100:.0f} % (version {row['model_version']})" for row in watching["kept"]]
        lines.append(f"in the windows before: {', '.join(kept[-_ESTIMATES_SHOWN:])}")
    if watching.get("is_low"):
        lines.append("that is less than it was: label some images (edgetune data next)")
    if shift:
        lines.append(f"{shift['reason']}; label some (edgetune data next)")
    return lines + ([f"note: {watching['trouble']}"] if watching.get("trouble") else [])


def _requests(status: Mapping[str, Any]) -> Paragraph:
    serving = status.get("serving") or {}
    if not serving.get("requests"):
        return Paragraph("Requests", ("none since the start",) if serving else ())
    parts = [f"{serving['requests']:,} answered", f"{serving.get('failed') or 0:,} failed"]
    if serving.get("rejected"):
        parts.append(f"{serving['rejected']:,} turned away")
    if serving.get("p50_ms") is not None:
        p99 = "" if serving.get("p99_ms") is None else f", 99 of 100 within {serving['p99_ms']:.1f} ms"
        parts.append(f"half within {serving['p50_ms']:.1f} ms{p99}")
    lines = (", ".join(parts), *_reject(serving.get("reject") or {}))
    return Paragraph("Requests", lines, "bad" if serving.get("failed") else "plain")


def _reject(reject: Mapping[str, Any]) -> list[str]:
    """What became of answers that the served model was unsure of."""
    if reject.get("below") is None:
        return []
    line = f"below a confidence of {percent(reject['below'])} (serving.reject) {reject['by_factory']:,} were answered by the"
    lines = [f"{line} factory model and {reject['rejected']:,} rejected"]
    return [*lines, reject["trouble"]] if reject["trouble"] else lines


def _buffer(status: Mapping[str, Any]) -> Paragraph:
    buffer, inbox = status["buffer"], status.get("inbox") or {}
    used, quota = units.show(buffer["stored_bytes"], "bytes"), units.show(buffer["quota_bytes"], "bytes")
    lines = [
        f"{count(buffer['samples'], 'sample')} ({buffer['labelled']:,} labelled, {buffer['new_labelled']:,} of them new to"
        f" rounds), {used} of {quota}"
    ]
    classes = sorted(buffer.get("classes", ()), key=lambda entry: -_total(entry))
    accepted = [
        f"{entry['label']} {_total(entry)}" for entry in classes if entry["status"] == "accepted" and _total(entry)
    ]
    if accepted:
        more = f" and {len(accepted) - _CLASSES_SHOWN} more" if len(accepted) > _CLASSES_SHOWN else ""
        lines.append(", ".join(accepted[:_CLASSES_SHOWN]) + more)
    lines += [
        f"new class {entry['label']!r} with {count(_total(entry), 'sample')} waits for your word:"
        f" edgetune data accept {entry['label']}"
        for entry in classes
        if entry["status"] == "pending" and _total(entry)
    ]
    lines += _returning(status.get("returning") or {})
    lines.append(_inbox(inbox, buffer))
    return Paragraph("Buffer", tuple(line for line in lines if line))


def _returning(returning: Mapping[str, Any]) -> list[str]:
    """Classes that this site had not shown and that the factory model sees again; a few sightings are no news."""
    looked_at = count(returning.get("looked_at") or 0, "unlabelled image")
    lines = [
        f"class {entry['class']!r}, which this site had not shown, is back: the factory model sees it in {entry['count']}"
        f" of {count(entry['looked_at'], 'unlabelled image')}"
        for entry in returning.get("returned") or ()
    ]
    lines += [
        f"class {entry['class']!r}, which this site had not shown, may be coming back: so far {entry['count']} of"
        f" {returning['wanted']} sightings in the last {looked_at}"
        for entry in returning.get("sightings") or ()
        if returning.get("wanted") and entry["count"] >= returning["wanted"] / _NEWS
    ]
    return lines + ([f"note: {returning['trouble']}"] if returning.get("trouble") else [])


def _total(entry: Mapping[str, Any]) -> int:
    return int(entry["training"]) + int(entry["validation"]) + int(entry["holdout"])


def _inbox(inbox: Mapping[str, Any], buffer: Mapping[str, Any]) -> str:
    if not inbox:
        return ""
    parts = [f"{inbox.get('taken') or 0:,} taken since the start"]
    if inbox.get("waiting"):
        parts.append(f"{inbox['waiting']:,} waiting")
    if inbox.get("duplicates"):
        parts.append(f"{inbox['duplicates']:,} seen before")
    if buffer.get("quarantined"):
        parts.append(f"{buffer['quarantined']:,} in quarantine (edgetune data quarantine)")
    return f"inbox ({inbox.get('watch', 'unknown')}): {', '.join(parts)}"


def _round(status: Mapping[str, Any]) -> Paragraph:
    now, trigger = status["round"], status["trigger"]
    is_paused = bool(status.get("operator", {}).get("paused"))
    lines, tone = _STATES.get(now["state"], _unknown)(now, trigger)
    if is_paused:
        lines.append("training is paused by the operator; go on with: edgetune resume")
    if now["state"] in ("training", "paused", "suspended"):
        lines += [
            f"the budget says {status['verdict']['kind']}: {explain(reason)}" for reason in status["verdict"]["reasons"]
        ]
    return Paragraph("Round", tuple(lines), tone)


def _idle(_now: Mapping[str, Any], trigger: Mapping[str, Any]) -> tuple[list[str], str]:
    if trigger["wanted"]:
        return [f"about to start: {trigger['reason']}"], "busy"
    missing = trigger.get("missing") or ()
    lines = [f"none is running: {trigger['reason'] or 'not enough that is new'}"]
    lines += [_progress_words(entry) for entry in missing]
    return lines, "plain"


def _progress_words(missing: str) -> str:
    return f"so far {missing}" if missing[:1].isdigit() and " of " in missing else f"it needs {missing}"


def _held(now: Mapping[str, Any], trigger: Mapping[str, Any]) -> tuple[list[str], str]:
    return [f"wanted ({trigger['reason']}), but held back: {_why(now) or 'the budget does not allow it yet'}"], "busy"


def _training(now: Mapping[str, Any], _trigger: Mapping[str, Any]) -> tuple[list[str], str]:
    lines = [f"{_name(now)} is running: {now.get('reason') or ''}".rstrip(": ")]
    parts = [now.get("phase") or "starting"]
    if now.get("steps"):
        parts.append(f"step {now['step']:,} of {now['steps']:,} ({percent(now['progress'])})")
    if now.get("loss") is not None:
        parts.append(f"loss {now['loss']:.3f}")
    if now.get("eta_s") is not None:
        parts.append(f"about {units.show(now['eta_s'], 'duration')} left")
    if now.get("duty") is not None and now["duty"] < 1:
        parts.append(f"slowed to {now['duty']:.0%} of the time")
    return [*lines, ", ".join(parts)], "busy"


def _waiting(words: str) -> Any:
    def describe_state(now: Mapping[str, Any], _trigger: Mapping[str, Any]) -> tuple[list[str], str]:
        why = _why(now)
        return [f"{_name(now)} {words}" + (f": {why}" if why else "")], "busy"

    return describe_state


def _why(now: Mapping[str, Any]) -> str:
    return "; ".join(explain(part) for part in str(now.get("message") or "").split("; ") if part)


def _cooldown(now: Mapping[str, Any], _trigger: Mapping[str, Any]) -> tuple[list[str], str]:
    left = f" for another {units.show(now['cooldown_s'], 'duration')}" if now.get("cooldown_s") else ""
    failures = f" after {count(now['failures'], 'failure')} in a row" if now.get("failures") else ""
    why = f": {now['message']}" if now.get("message") else ""
    return [f"cooling down{left}{failures}{why}", "start one all the same: edgetune train"], "plain"


def _unknown(now: Mapping[str, Any], _trigger: Mapping[str, Any]) -> tuple[list[str], str]:
    return [f"{_name(now)} is {now['state']}"], "plain"


_STATES = {
    "idle": _idle,
    "held": _held,
    "training": _training,
    "paused": _waiting("is paused"),
    "stopping": _waiting("is stopping"),
    "suspended": _waiting("is stopped and will go on from its checkpoint"),
    "verifying": _waiting("has a candidate, which is being checked"),
    "cooldown": _cooldown,
}


def _name(now: Mapping[str, Any]) -> str:
    number = "the round" if now.get("id") is None else f"round {now['id']}"
    return f"{number} ({now['kind']})" if now.get("kind") else number


def _last_round(status: Mapping[str, Any]) -> Paragraph:
    last = status.get("last_round")
    if last is None:
        return Paragraph("Last round", ("there was none",))
    when = ago(last["ended_at_s"]) if last.get("ended_at_s") is not None else ""
    what = "was promoted" if last["promoted"] else f"ended as {str(last['outcome']).replace('_', ' ')}"
    lines = [f"round {last['id']} ({last['kind']}) {what} {when}".rstrip()]
    change = _change(last)
    lines += [change] if change else []
    lines += [f"trained for {_spent(last)}"] if last.get("trained_s") else []
    lines += met_lines(last) if last.get("actual") else []
    lines += _asked(last.get("teacher") or {}) + unlabelled_lines(last.get("unlabelled") or {})
    lines += [str(reason) for reason in last.get("reasons") or ()]
    lines += [f"note: {warning}" for warning in last.get("warnings") or ()]
    return Paragraph("Last round", tuple(lines), "good" if last["promoted"] else "bad")


def _asked(teacher: Mapping[str, Any]) -> list[str]:
    """What it took to ask a teacher outside the trainer."""
    if "images_asked" not in teacher:
        return []
    line = (
        f"its teacher was asked about {count(teacher['images_asked'], 'image')}, {teacher['images_kept']:,} times its"
    )
    line += " answer was kept from before"
    if teacher["kind"] != "server":
        return [line]
    sent, got = (units.show(teacher[key], "bytes") for key in ("sent_bytes", "received_bytes"))
    return [line, f"images left this device: {sent} were sent to {teacher['server']}, {got} came back"]


def unlabelled_lines(unlabelled: Mapping[str, Any]) -> list[str]:
    """What became of a round's unlabelled images."""
    if not unlabelled:
        return []
    left_out = unlabelled["unsure"] + unlabelled["inconsistent"]
    return [
        f"it learnt from {count(unlabelled['used'], 'unlabelled image')} by the teacher's word and left {left_out:,} out:"
        f" of {unlabelled['unsure']:,} the teacher was not sure, of {unlabelled['inconsistent']:,} not twice"
    ]


def energy(joules: float, *, is_estimated: bool) -> str:
    """As the operator reads it."""
    return units.show(joules, "energy") + (" (estimated)" if is_estimated else "")


def _spent(last: Mapping[str, Any]) -> str:
    spent = units.show(last["trained_s"], "duration")
    if last.get("trained_j") is not None:
        spent += f", in which the board used {energy(last['trained_j'], is_estimated=last['is_energy_estimated'])}"
    return spent


def _change(last: Mapping[str, Any]) -> str:
    parts = []
    if last.get("accuracy_before") is not None and last.get("accuracy_after") is not None:
        parts.append(f"accuracy {percent(last['accuracy_before'])} -> {percent(last['accuracy_after'])}")
    if last.get("latency_before_ms") and last.get("latency_after_ms"):
        parts.append(f"{last['latency_before_ms']:.2f} -> {last['latency_after_ms']:.2f} ms")
    if last.get("parameters_before") and last.get("parameters_after"):
        parts.append(f"{last['parameters_before']:,} -> {last['parameters_after']:,} parameters")
    return ", ".join(parts)


def _day(day: Mapping[str, Any]) -> list[str]:
    """What is used of the day's account, against what is allowed."""
    if not day:
        return []
    written = units.show(day["written_bytes"], "bytes") + _of(day["writes_max_bytes"], "bytes")
    all_of_disk = "" if day["disk_bytes"] is None else f" (all on its disk: {units.show(day['disk_bytes'], 'bytes')})"
    parts = [f"{written} written{all_of_disk}"]
    if day["board_j"]:
        rounds = energy(day["trained_j"], is_estimated=day["is_energy_estimated"]) + _of(day["energy_max_j"], "energy")
        parts.append(f"{rounds} used while training, {units.show(day['board_j'], 'energy')} in all")
    return [f"{day['date']}: {', '.join(parts)}"]


def _of(limit: float | None, kind: str) -> str:
    return "" if limit is None else f" of {units.show(limit, kind)}"


def _board(status: Mapping[str, Any]) -> Paragraph:
    board = status.get("board") or {}
    facts = [
        board.get("model") or "",
        count(board["cores"], "core") if board.get("cores") else "",
        board.get("system") or "",
        f"power mode {board['power_mode']} at the start" if board.get("power_mode") else "",
    ]
    lines = [", ".join(fact for fact in facts if fact)] if any(facts) else []
    lines += _day(status.get("day") or {})
    is_over = False
    for name, reading in (status.get("readings") or {}).items():
        if not is_worth_a_line(name, reading):
            continue
        line, bad = compare(name, reading)
        lines.append(line)
        is_over = is_over or bad
    return Paragraph("Board", tuple(lines), "bad" if is_over else "plain")
