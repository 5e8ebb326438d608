"""The configuration: what is refused and how it is said, and that its files are current."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from edgetune import config as configuration
from edgetune.config import Config, parse
from edgetune.errors import EXIT_CONFIG, ConfigError
from edgetune.types import GatePolicy, Limits, Recipe, TeacherSource
from edgetune.wire import from_json, to_json

ROOT = Path(__file__).parents[2]


def problems(text: str) -> list[str]:
    """What is wrong with a text."""
    with pytest.raises(ConfigError) as raised:
        parse(text)
    return raised.value.problems


def test_the_shipped_file_is_written_from_the_model_and_equals_the_defaults() -> None:
    """config.yaml at the top is current, every key in it has a comment, and it changes nothing."""
    text = (ROOT / "config.yaml").read_text(encoding="utf-8")
    assert text == configuration.default_text(), "run: python -m edgetune.config"
    assert parse(text) == Config()
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.strip() and not line.lstrip().startswith("#"):
            assert lines[number - 1].lstrip().startswith("#"), f"no comment above {line!r}"


def test_the_reference_page_is_current_and_names_every_key() -> None:
    """docs/configuration.md has all keys of the model."""
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert text == configuration.reference_text(), "run: python -m edgetune.config"
    for key in configuration.known_keys():
        section, _, name = key.rpartition(".")
        assert (f"| `{name}` |" if section else f"## {name}") in text


def test_every_key_can_be_written_and_read_back() -> None:
    """What `config show` prints is a valid file that means the same."""
    plain = configuration.to_plain(Config())
    assert parse(yaml.safe_dump(plain)) == Config()


def test_a_trainer_has_as_many_threads_as_suit_the_cores_that_may_be_busy() -> None:
    """All of the board's at most, unless the operator says how many."""
    free, bounded = (configuration.recipe(parse(text)) for text in ("{}", "budgets: {cpu_max: 50%}"))
    assert free.threads == bounded.threads == free.cores_max
    assert bounded.cores_max == free.threads / 2


def test_defaults_are_those_of_the_types() -> None:
    """The shipped recipe, gate and limits agree with the dataclasses that document them."""
    assert configuration.gate_policy(Config()) == GatePolicy()
    made = configuration.recipe(parse("training: {threads: 2}"))
    assert made == replace(
        Recipe(),
        distillation=0.5,
        memory_max_mib=1536,
        memory_available_min_mib=300,
        search_time_max_s=0.8 * 7200,
        time_max_s=7200,
        old_classes_drop_max=0.01,
        old_class_drop_max=0.1,
    )
    assert made.cores_max is None  # the operator has said how many threads
    assert configuration.limits(Config()) == Limits(
        mem_available_min_mib=300, trainer_rss_max_mib=1536, disk_free_min_mib=500, hysteresis=0.05
    )


def test_a_recipe_takes_what_pruning_and_distilling_are_asked_for() -> None:
    """Each of these keys reaches the recipe; the multiple may be left to a measurement."""
    text = (
        "pruning: {level_of: latency, round_to: 8, order: prune_first, remove_branches: false}\n"
        "training: {distillation: 0.25, temperature: 4, schedule: paper}"
    )
    made = configuration.recipe(parse(text))
    assert (made.order, made.remove_branches, made.schedule) == ("prune_first", False, "paper")
    assert (made.level_of, made.round_to, made.distillation, made.temperature) == ("latency", 8, 0.25, 4.0)
    for level_of in ("parameters", "macs"):
        assert configuration.recipe(parse(f"pruning: {{level_of: {level_of}}}")).level_of == level_of
    for none in ("null", "~", ""):
        assert configuration.recipe(parse(f"pruning:\n  round_to: {none}\n")).round_to is None
    for edge in (0, 1):
        assert configuration.recipe(parse(f"training: {{distillation: {edge}}}")).distillation == edge
    again = parse(yaml.safe_dump(configuration.to_plain(parse(text))))
    assert configuration.recipe(again) == made


def test_the_measured_multiple_and_the_factory_models_say_are_the_defaults() -> None:
    """What a configuration without these keys does; what is absent may be forgotten, and a share given counts."""
    made = configuration.recipe(Config())
    assert (made.level_of, made.round_to, made.distillation, made.temperature) == ("parameters", None, 0.5, 2.0)
    for text, share in (
        ("absent_classes: may_forget", 0.0),
        ("absent_classes: keep, distillation: 0", 0.0),
        ("absent_classes: may_forget, distillation: 0.2", 0.2),
    ):
        assert configuration.recipe(parse(f"training: {{{text}}}")).distillation == share


def test_limits_come_in_the_units_of_their_names() -> None:
    """MiB, degrees, watts, shares and minutes of the day."""
    text = "budgets: {memory_available_min: 1GiB, temperature_max: 75C, power_max: 9500mW, cpu_max: 60%, hours: [22:00-06:30]}"
    made = configuration.limits(parse(text))
    assert (made.mem_available_min_mib, made.soc_temp_max_c, made.power_max_w) == (1024, 75, 9.5)
    assert made.cpu_share_max == pytest.approx(0.6)
    assert made.hours == ((22 * 60, 6 * 60 + 30),)


def test_all_problems_are_told_at_once_in_the_order_of_the_lines() -> None:
    """An operator mends a file in one go."""
    found = problems(
        "buffer:\n  quota: 12\n  store: everything\nbudgets:\n  power_max: -3W\nserving: {tcp: '0.0.0.0:80'}\n"
    )
    assert [line.split(":")[1] for line in found] == ["2", "3", "5", "6"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("buffr: {}", "config.yaml:1: unknown key 'buffr'; did you mean 'buffer'?"),
        ("buffer:\n  qota: 1GiB", "config.yaml:2: unknown key 'buffer.qota'; did you mean 'buffer.quota'?"),
        (
            "buffer:\n  power_max: 1W",
            "config.yaml:2: unknown key 'buffer.power_max'; did you mean 'budgets.power_max'?",
        ),
        (
            "buffer:\n  quota: 1GiB\n  quota: 2GiB",
            "config.yaml:3: key 'buffer.quota' is given twice; the first is on line 2",
        ),
        ("log: {}\nlog: {}", "config.yaml:2: key 'log' is given twice; the first is on line 1"),
    ],
)
def test_unknown_and_duplicate_keys_are_named_with_their_line(text: str, expected: str) -> None:
    """A key that means nothing is never passed over in silence."""
    assert problems(text) == [expected]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("buffer: {quota: 1073741824}", "has no unit"),
        ("buffer: {quota: 1gib}", "did you mean 'GiB'?"),
        ("buffer: {quota: 0B}", "must be more than zero"),
        ("budgets: {power_max: .nan}", "has no unit"),
        ("budgets: {power_max: nanW}", "expected a power"),
        ("budgets: {temperature_max: -5C}", "below zero"),
        ("budgets: {cpu_max: 120%}", "more than 100 %"),
        ("training: {learning_rate: .nan}", "expected a finite number"),
        ("training: {learning_rate: .inf}", "finite"),
        ("training: {learning_rate: -0.1}", "greater than 0"),
        ("training: {batch_size: 1.5}", "a whole number"),
        ("training: {batch_size: '64'}", "a whole number"),
        ("training: {augment: flop}", "expected 'none', 'crop' or 'crop_flip'"),
        ("pruning: {level_of: flops}", "expected 'parameters', 'macs' or 'latency'"),
        ("pruning: {criterion: tayler}", "pruning.criterion: unknown criterion 'tayler': use l1, taylor"),
        ("pruning: {criterion: 'mine:'}", "pruning.criterion: unknown criterion 'mine:'"),
        ("pruning: {criterion: 3}", "pruning.criterion"),
        ("pruning: {round_to: 0}", "pruning.round_to: must be"),
        ("pruning: {round_to: 257}", "pruning.round_to: must be less than or equal to 256"),
        ("training: {distillation: 1.1}", "training.distillation: must be less than or equal to 1"),
        ("training: {distillation: -0.1}", "training.distillation: must be greater than or equal to 0"),
        ("training: {distillation: 50%}", "training.distillation: expected a number"),
        ("training: {distillation: .nan}", "finite"),
        ("training: {temperature: 0}", "training.temperature: must be greater than 0"),
        ("training: {temperature: 101}", "training.temperature: must be less than or equal to 100"),
        ("training: {temperature: 75C}", "training.temperature: expected a number"),
        ("training: {transfer: labelfree}", "training.transfer: expected 'hinton', 'replay' or 'label_free'"),
        ("training: {transfer: label_free, distillation: 0.5}", "label_free is all the teacher's"),
        ("training: {transfer: label_free, distillation: 0}", "label_free is all the teacher's"),
        ("training: {transfer: replay, distillation: 0}", "transfer: replay needs a share of the loss for the teacher"),
        ("training: {transfer: replay, absent_classes: may_forget}", "may_forget gives it none; set distillation"),
        ("training: {unlabelled: use, distillation: 0}", "unlabelled: use needs a share of the loss for the teacher"),
        ("training: {unlabelled_confidence_min: 1}", "training.unlabelled_confidence_min: must be less than 1"),
        ("training: {unseen_classes: all}", "unseen_classes needs a teacher that knows more than the factory model"),
        ("training: {unseen_classes: [heron]}", "unseen_classes needs a teacher that knows more"),
        ("training: {unseen_classes: some}", "training.unseen_classes"),
        ("training: {unseen_classes: [1]}", "training.unseen_classes"),
        (
            "training: {unseen_classes: all, teacher: file, teacher_file: /t.onnx, distillation: 0}",
            "unseen_classes needs a share of the loss",
        ),
        ("training: {teacher: cloud}", "training.teacher: expected 'ancestor', 'file' or 'server'"),
        ("training: {teacher: file}", "teacher: file needs teacher_file"),
        ("training: {teacher: server}", "teacher: server needs teacher_server"),
        ("gate: {protected_classes: ['cat']}", "protected_classes needs protected_drop_max"),
        ("training: {teacher_server: 'http://10.0.0.2/v2/models/m'}", "would send images in the clear"),
        ("training: {teacher_server: 'https://10.0.0.2/'}", "does not name a model"),
        ("training: {teacher_server: 8000}", "expected https://HOST:PORT/v2/models/NAME"),
        ("training: {teacher_file: model.onnx}", "expected an absolute path"),
        ("training: {teacher_classes: {cat: -1}}", "training.teacher_classes.cat"),
        ("training: {teacher_classes: {cat: yes}}", "training.teacher_classes.cat"),
        ("training: {teacher_std: [0.2, 0, 0.2]}", "teacher_std has to be more than zero"),
        ("training: {teacher_mean: [0.2, 0.2]}", "training.teacher_mean"),
        ("budgets: {estimate: true}", "estimate needs estimated_idle and estimated_busy"),
        ("budgets: {hours: [25:00-26:00]}", "not a time of the day"),
        ("budgets: {hours: ['06:00-06:00']}", "is empty"),
        ("buffer: {validation: 50%, holdout: 45%}", "less than 20 %"),
        ("triggers: {cooldown: 2h, cooldown_max: 1h}", "cooldown_max is shorter"),
        ("serving: {tcp: '192.168.0.4:8090'}", "not a loopback address"),
        ("serving: {tcp: '127.0.0.1:99999'}", "expected host:port"),
        ("paths: {state_dir: var/lib}", "expected an absolute path"),
        ("paths: {runtime_dir: /" + "x" * 100 + "}", "runtime_dir is too long"),
        ("builders: {mine: 'os; rm'}", "expected package.module:function"),
        ("paths: {state_dir: null}", "absolute path"),
        ("buffer: 3", "this is a section"),
        ("- a\n- b", "mapping of sections"),
        ("a: [", "not valid YAML"),
        ("a: &x 1\nb: *x", "anchors"),
        ("a: !!python/object:os.system {}", "unknown key"),
        ("log: {level: !!timestamp 2026-01-01}", "cannot read"),
    ],
)
def test_nonsense_is_refused_with_a_sentence(text: str, said: str) -> None:
    """Each mistake is told in the operator's words."""
    assert any(said in problem for problem in problems(text)), problems(text)


@pytest.mark.parametrize(
    ("word", "reading"), [("no", "false"), ("on", "true"), ("yes", "true"), ("1", "a number"), ("1.5", "a number")]
)
def test_yaml_booleans_and_numbers_as_class_names_are_caught(word: str, reading: str) -> None:
    """A class called no must not become False."""
    (problem,) = problems(f"classes:\n  accepted:\n    - cat\n    - {word}\n")
    assert problem.startswith("config.yaml:4: classes.accepted[1]: YAML reads " + word)
    assert reading in problem
    assert f'"{word}"' in problem
    assert parse(f'classes: {{accepted: [cat, "{word}"]}}').classes.accepted == ("cat", word)


def test_yaml_booleans_in_other_text_are_caught_too() -> None:
    """`socket_group: no` is a question, not a group."""
    assert "YAML reads no as false" in problems("serving: {socket_group: no}")[0]
    assert "YAML reads off as false" in problems("classes: {new: off}")[0]


def test_plain_exponents_and_words_mean_what_they_say() -> None:
    """5e-4 is a number, 22:00 no base-60 one, and a section with all keys commented out has its defaults."""
    assert parse("training: {weight_decay: 5e-4}").training.weight_decay == pytest.approx(5e-4)
    assert "'22:00'" in problems("budgets: {hours: [22:00]}")[0]
    assert parse("buffer:\n  # quota: 1GiB\n") == Config()
    assert parse("") == Config()


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    """Missing, not text, or absurdly large: exit code 78 and no traceback."""
    with pytest.raises(ConfigError, match="cannot read") as raised:
        configuration.load(tmp_path / "none.yaml")
    assert raised.value.exit_code == EXIT_CONFIG
    (tmp_path / "latin.yaml").write_bytes(b"log:\n  level: \xff\n")
    with pytest.raises(ConfigError, match=r"latin.yaml:2: not UTF-8"):
        configuration.load(tmp_path / "latin.yaml")
    (tmp_path / "large.yaml").write_bytes(b"# " + b"x" * 2**20)
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        configuration.load(tmp_path / "large.yaml")


def test_changes_are_told_apart_by_whether_they_need_a_restart() -> None:
    """`reload` says what waits for a restart."""
    old, new = Config(), parse("serving: {threads: 3}\nbudgets: {power_max: 5W}\nbuilders: {mine: a.b:c}")
    assert configuration.changed_keys(old, new) == ["budgets.power_max", "serving.threads", "builders"]
    assert configuration.needs_restart(old, new) == ["serving.threads"]
    assert configuration.changed_keys(old, old) == []


def test_the_schema_knows_every_key_and_refuses_others() -> None:
    """An editor helps with every key."""
    schema = configuration.json_schema()
    json.dumps(schema)
    for key in configuration.known_keys():
        section, _, name = key.rpartition(".")
        properties = schema["$defs"][section.capitalize()]["properties"] if section else schema["properties"]
        assert properties[name]["description"]
    assert schema["additionalProperties"] is False


def test_a_teacher_is_what_the_rounds_are_told_of() -> None:
    """Its keys with their units turned to plain numbers; another teacher than the factory model has its say by default."""
    assert configuration.teacher(Config()) == TeacherSource()
    text = """
training:
  absent_classes: may_forget
  teacher: server
  teacher_server: https://cloud.example:8443/v2/models/m
  teacher_ca: /etc/ca.pem
  teacher_classes: {tabby: cat, salmon: 391}
  teacher_mean: [0.1, 0.2, 0.3]
  teacher_memory_max: 1GiB
  teacher_timeout: 1min
"""
    config = parse(text)
    assert configuration.teacher(config) == TeacherSource(
        kind="server", server="https://cloud.example:8443/v2/models/m", ca_file="/etc/ca.pem",
        classes={"tabby": "cat", "salmon": 391}, mean=(0.1, 0.2, 0.3), memory_max_mib=1024, timeout_s=60,
    )  # fmt: skip
    assert configuration.recipe(config).distillation == 0.5
    assert configuration.recipe(parse("training: {absent_classes: may_forget}")).distillation == 0
    assert "training images, unlabelled ones too, to cloud.example:8443" in configuration.privacy_note(config)
    ignoring = parse(text + "  unlabelled: ignore\n")
    assert "send training images to cloud.example:8443" in configuration.privacy_note(ignoring)
    assert configuration.privacy_note(parse("training: {teacher: file, teacher_file: /t.onnx}")) == ""


def test_paths_follow_from_the_state_directory() -> None:
    """The inbox is inside it unless it is put elsewhere."""
    assert parse("paths: {state_dir: /data/e}").paths.inbox == Path("/data/e/inbox")
    assert parse("paths: {inbox_dir: /srv/in}").paths.inbox == Path("/srv/in")
    assert configuration.split_address("[::1]:80") == ("::1", 80)


def test_a_teacher_names_unlabelled_images_unless_it_is_the_factory_model() -> None:
    """That one does so where it is asked to, and none does without a share of the loss."""
    file = "teacher: file, teacher_file: /t.onnx"
    assert not Config().training.uses_unlabelled
    assert parse("training: {unlabelled: use}").training.uses_unlabelled
    assert parse(f"training: {{{file}}}").training.uses_unlabelled
    assert not parse(f"training: {{{file}, unlabelled: ignore}}").training.uses_unlabelled
    assert not parse(f"training: {{{file}, distillation: 0}}").training.uses_unlabelled
    for written, wanted in (("none", ()), ("all", "all"), ("[heron, all]", ("heron", "all"))):
        config = parse(f"training: {{{file}, unseen_classes: {written}}}")
        assert configuration.teacher(config).unseen_classes == wanted
        assert from_json(TeacherSource, to_json(configuration.teacher(config))).unseen_classes == wanted
    recipe = configuration.recipe(parse("training: {transfer: label_free, absent_classes: may_forget}"))
    assert (recipe.transfer, recipe.distillation) == ("label_free", 1.0)


CONTRADICTIONS = """\
serving: {latency_max: 50ms}
budgets:
  estimate: true
  estimated_idle: 5W
  estimated_busy: 9W
  power_max: 4W
  round_energy_max: 20Wh
  energy_per_day_max: 10Wh
  trainer_memory_max: 100MiB
  window: 1s
  hours: ["22:00-06:00"]
"""


def test_budgets_that_contradict_each_other_are_named_one_by_one_with_their_lines() -> None:
    """No round could run under any of them; all are told at once, as every mistake is."""
    with pytest.raises(ConfigError) as caught:
        parse(CONTRADICTIONS, name="c.yaml")
    problems = caught.value.problems
    assert [problem.split(": ")[0] for problem in problems] == ["c.yaml:6", "c.yaml:7", "c.yaml:9", "c.yaml:10"]
    assert "budgets.power_max: the idle board is estimated to take 5W (estimated_idle)" in problems[0]
    assert "budgets.round_energy_max: a round may not use more than a whole day, 10Wh" in problems[1]
    assert "budgets.trainer_memory_max: Python and torch alone take" in problems[2]
    assert "budgets.window: it is shorter than interval" in problems[3]
