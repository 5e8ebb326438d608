"""The sections about a round: what is cut, how it is tuned, when it is good enough. Defaults come from `types`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from edgetune.config.quantities import (
    AbsolutePath,
    Bytes,
    Count,
    Criterion,
    Duration,
    Name,
    Points,
    PositiveCount,
    PositiveDuration,
    ServerUrl,
    Share,
)
from edgetune.config.section import Section, key
from edgetune.types import OUTSIDE_VIEWS, GatePolicy, Recipe, TeacherSource

_RECIPE, _GATE, _TEACHER = Recipe(), GatePolicy(), TeacherSource()
_KEEPING = 0.5  # the factory model's share of the loss where absent classes are to be kept


class Pruning(Section):
    """What is cut from the factory model."""

    criterion: Criterion = key(
        _RECIPE.criterion,
        "Which filters go: taylor or fisher (least loss on this site's samples), l1 (smallest weights), activation, "
        "nonzeros, class_activation or class_activation_count (weakest answers), random, or package.module:Class.",
    )
    level: Share = key("50%", "Most of the factory model's cost to remove, as a share; 0% only fine-tunes.")
    search: Literal["steps", "dapr", "none"] = key(
        _RECIPE.search,
        "steps: as far towards `level` as accuracy allows; dapr: likewise, by binary search, slower; none: exactly `level`.",
    )
    accuracy_drop_max: Points = key("1pp", "What a search may lose on validation samples, against what is served.")
    trial_epochs: float = key(_RECIPE.trial_epochs, "Most epochs of one trial of a search by steps.", gt=0, le=1000)
    level_of: Literal["parameters", "macs", "latency"] = key(
        _RECIPE.level_of, "What `level` is a share of: parameters, macs (operations), or latency as measured here."
    )
    order: Literal["auto", "tune_first", "prune_first"] = key(
        _RECIPE.order,
        "tune_first: fine-tune, then score and cut; prune_first: cut at once, in smaller batches, which takes less "
        "memory; auto: the second where the first is forecast to pass budgets.trainer_memory_max.",
    )
    remove_branches: bool = key(
        _RECIPE.remove_branches,
        "With level_of: latency, take whole residual branches out too: fewer layers are faster than thinner ones.",
    )
    round_to: PositiveCount | None = key(
        None, "Channels kept are a multiple of this; null: 1, 4, 8, 16 and 32 are timed on this board.", le=256
    )
    scoring_batches: PositiveCount = key(_RECIPE.scoring_batches, "Batches of samples that filters are scored on.")

    @model_validator(mode="after")
    def _check(self) -> Pruning:
        if self.level > 0.98:
            raise ValueError("level is above 98%: nothing would be left to tune")
        return self


class Training(Section):
    """How a round fine-tunes."""

    epochs_before: float = key(
        _RECIPE.epochs_before, "Epochs on this site's samples before filters are scored.", ge=0, le=1000
    )
    epochs_after: float = key(_RECIPE.epochs_after, "Epochs after pruning.", ge=0, le=1000)
    schedule: Literal["auto", "cosine", "paper"] = key(
        _RECIPE.schedule,
        "cosine: the rates and epochs here; paper: for the CIFAR AlexNet, ResNet20, MobileNetV2 and SqueezeNet those of "
        "arXiv 2006.08554, 5 + 25 epochs in batches of 128; auto: paper for the CIFAR AlexNet where no rate, epochs or batch"
        " is set here, for it is better there, else cosine.",
    )
    max_steps: PositiveCount | None = key(None, "Most optimiser steps in a round, over all epochs.", example="5000")
    samples_max: PositiveCount | None = key(
        20_000, "Most training samples in a round, balanced over the classes; null: all."
    )
    batch_size: int = key(
        _RECIPE.batch_size,
        "Images in a step; less takes less memory. Where memory is short they go through in parts, and their gradients are"
        " added up: batch norm then sees the smaller part.",
        ge=2,
        le=4096,
    )
    learning_rate_before: float = key(_RECIPE.learning_rate_before, "Learning rate before pruning.", gt=0, le=10)
    learning_rate: float = key(_RECIPE.learning_rate, "Learning rate after pruning, at its highest.", gt=0, le=10)
    momentum: float = key(_RECIPE.momentum, "Momentum of SGD.", ge=0, lt=1)
    weight_decay: float = key(_RECIPE.weight_decay, "Weight decay of SGD.", ge=0, le=1)
    augment: Literal["none", "crop", "crop_flip"] = key(
        _RECIPE.augment, "Random changes to training images: none, crop, or crop_flip (also mirrored)."
    )
    augment_views: PositiveCount | None = key(
        None,
        "Ways in which each image is changed so, the same in all epochs and rounds, so that a teacher's answers can be kept;"
        f" null: {OUTSIDE_VIEWS} with a teacher that is a file or a server, else another way every time.",
        le=10_000,
    )
    checkpoint_steps: PositiveCount = key(_RECIPE.checkpoint_steps, "Steps between checkpoints.")
    timing_runs: PositiveCount = key(
        _RECIPE.timing_runs, "Predictions that base and candidate are timed on.", le=10_000
    )
    seed: int = key(_RECIPE.seed, "Where the trainer's random numbers start.", ge=0, lt=2**31)
    threads: PositiveCount | None = key(
        None, "Threads of the trainer; null: as many as train fastest within budgets.cpu_max.", le=256
    )
    absent_classes: Literal["keep", "may_forget"] = key(
        "keep",
        "Classes the samples do not show: keep (the factory model has its say) or may_forget (best on this site).",
    )
    distillation: float | None = key(
        None,
        "Share of the loss, from 0 to 1, in which the teacher has its say, put right by the labels; "
        "null: 0.5 with absent_classes: keep or another teacher than the factory model, else 0.",
        ge=0,
        le=1,
        example="0.3",
    )
    temperature: float = key(_RECIPE.temperature, "Temperature of the distillation.", gt=0, le=100)
    update: Literal["full", "tail", "head", "latent", "auto"] = key(
        _RECIPE.update,
        "What an adapt round trains: full (everything), tail (the last stage), head (the output layer), latent (the last stage,"
        " on what the layers below make of each image, worked out once, without random changes), or auto: full unless it is"
        " forecast to pass a budget even in the smallest parts of a step, then latent, then head. Reshape rounds train everything.",
    )
    replay_max: Bytes | None = key(
        None,
        "Most decoded images of old classes that an adapt round learns from beside new classes, evenly over the classes;"
        " null: all there are.",
        example="16MiB",
    )
    replay: Literal["random", "herding"] = key(
        _RECIPE.replay, "How these are chosen: random, or herding (their mean feature stays nearest to the class's)."
    )
    rehearsal: Literal["plain", "er_ace", "der++"] = key(
        _RECIPE.rehearsal,
        "The loss of such a round: plain cross-entropy, er_ace (new classes do not push old ones down), or der++ (old images"
        " also keep the served model's logits).",
    )
    transfer: Literal["hinton", "replay", "label_free"] = key(
        _RECIPE.transfer,
        "How to learn from the teacher: hinton (its probabilities, softened by the temperature), replay (its logits), or "
        "label_free (its logits alone: no label is looked at).",
    )
    unlabelled: Literal["use", "ignore"] | None = key(
        None,
        "Training images that nobody has labelled: use those that the teacher is sure of, with its word for a label, or "
        "ignore them; null: use with another teacher than the factory model, which knows no more than what is served.",
        example="use",
    )
    unlabelled_confidence_min: float = key(
        _RECIPE.unlabelled_confidence_min,
        "How sure the teacher must be of such an image, from 0 to 1, as it is and shifted and mirrored.",
        ge=0,
        lt=1,
    )
    teacher: Literal["ancestor", "file", "server"] = key(
        _TEACHER.kind,
        "Who has its say: ancestor (the factory model), file (teacher_file), or server (teacher_server): then rounds send "
        "this board's images to that host.",
    )
    teacher_file: AbsolutePath | None = key(
        None,
        "An ONNX file that answers logits, or the directory of a version, whose manifest names its classes.",
        example="/srv/teacher/resnet50.onnx",
    )
    teacher_server: ServerUrl | None = key(
        None,
        "A model on a server that speaks the Open Inference Protocol: Triton, KServe, another edgetune. http:// only for "
        "this board itself.",
        example="https://teacher.example:8443/v2/models/resnet50",
    )
    teacher_ca: AbsolutePath | None = key(
        None,
        "Certificates (PEM) that alone may vouch for the server; null: those whom the system trusts.",
        example="/etc/edgetune/teacher-ca.pem",
    )
    teacher_classes: dict[Name, Name | Count] = key(
        {},
        "Classes of this site and the teacher's output for each, by name or by number from 0; classes left out are matched "
        "by equal names, and those that it does not know it has no say in.",
        example="{tabby: cat, salmon: 391}",
    )
    unseen_classes: Literal["none", "all"] | Annotated[tuple[Name, ...], Field(strict=False)] = key(
        "none",
        "Classes that the teacher knows and this site has never shown, and that rounds shall learn from its word on other "
        "images: none, all, or a list of names. Their answers are marked; take transfer: label_free or replay.",
        example='["heron", "stork"]',
    )
    teacher_size: PositiveCount | None = key(
        None,
        "Side in pixels of the images that it takes, where it leaves that open; null: the served model's.",
        le=4096,
    )
    teacher_mean: Annotated[tuple[float, float, float], Field(strict=False)] | None = key(
        None,
        "Mean of RGB, from 0 to 1, that a teacher of normalised inputs wants; null: the served model's.",
        example="[0.485, 0.456, 0.406]",
    )
    teacher_std: Annotated[tuple[float, float, float], Field(strict=False)] | None = key(
        None, "Likewise the standard deviation.", example="[0.229, 0.224, 0.225]"
    )
    teacher_memory_max: Bytes = key("512MiB", "A teacher's process that holds more ends the round.")
    teacher_cache_max: Bytes = key("64MiB", "Answers kept on disk, so that the same image is not asked about twice.")
    teacher_timeout: PositiveDuration = key("30s", "Longest wait for one answer, to a whole batch.")
    memory_format: Literal["auto", "contiguous", "channels_last"] = key(
        _RECIPE.memory_format, "Layout of tensors while training; auto: the faster one is measured at a round's start."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = key(
        _RECIPE.dtype, "What convolutions compute in; auto: measured, where the processor has bfloat16."
    )

    @property
    def share(self) -> float:
        """The teacher's, of the loss; 0: nobody is asked."""
        if self.transfer == "label_free":
            return 1.0
        if self.distillation is not None:
            return self.distillation
        return _KEEPING if self.absent_classes == "keep" or self.teacher != "ancestor" else 0.0

    @property
    def views(self) -> int | None:
        """Of each image; None: another in every epoch."""
        return self.augment_views or (OUTSIDE_VIEWS if self.teacher != "ancestor" and self.share > 0 else None)

    @property
    def uses_unlabelled(self) -> bool:
        """Whether unlabelled images are learnt from."""
        return self.share > 0 and (self.unlabelled or ("ignore" if self.teacher == "ancestor" else "use")) == "use"

    @model_validator(mode="after")
    def _check(self) -> Training:
        if self.teacher != "ancestor" and getattr(self, f"teacher_{self.teacher}") is None:
            raise ValueError(f"teacher: {self.teacher} needs teacher_{self.teacher}")
        if self.unseen_classes not in ("none", ()) and self.teacher == "ancestor":
            raise ValueError(
                "unseen_classes needs a teacher that knows more than the factory model, whose classes are all served: "
                "set teacher to file or server"
            )
        if self.rehearsal != "plain" and self.transfer != "hinton":
            raise ValueError(f"rehearsal: {self.rehearsal} goes with transfer: hinton, not with {self.transfer}")
        if self.transfer == "label_free" and self.distillation not in (None, 1):
            raise ValueError(
                "transfer: label_free is all the teacher's: leave distillation out, or take hinton or replay"
            )
        if self.share == 0:
            asking = {
                "transfer: replay": self.transfer == "replay",
                "unlabelled: use": self.unlabelled == "use",
                "unseen_classes": self.unseen_classes not in ("none", ()),
            }
            for what in (name for name, is_asked in asking.items() if is_asked):
                why = "distillation is 0" if self.distillation == 0 else "absent_classes: may_forget gives it none"
                raise ValueError(f"{what} needs a share of the loss for the teacher, and {why}; set distillation")
        if self.teacher_std is not None and min(self.teacher_std) <= 0:
            raise ValueError("teacher_std has to be more than zero")
        return self


class Gate(Section):
    """When a candidate is good enough to be served."""

    holdout_min: PositiveCount = key(_GATE.holdout_min, "Fewer hold-out samples than this promote nothing.")
    class_min: Count = key(
        _GATE.class_min,
        "A class with fewer hold-out samples is reported, not judged, unless gate.protected_classes names it.",
    )
    accuracy_drop_max: Points = key(
        "1pp",
        "How much accuracy a candidate may lose, in percentage points; classes that are new in a round are held back to take no"
        " more from the others.",
    )
    accuracy_risk_max: Points = key("5pp", "Loss of accuracy that the hold-out must rule out, at the confidence below.")
    class_drop_max: Points = key(
        "10pp", "How much accuracy any one class may lose; less than chance explains is told, not judged."
    )
    protected_drop_max: Points | None = key(
        None,
        "How much accuracy a protected class may lose, where that is less, even where chance would explain it; null: class_drop_max"
        " alone.",
        example="2pp",
    )
    protected_classes: Annotated[tuple[Name, ...], Field(strict=False)] | None = key(
        None, "The classes that protected_drop_max is about; null: all.", example='["person", "forklift"]'
    )
    confidence: float = key(_GATE.confidence, "Confidence of the paired test.", ge=0.5, lt=1)
    latency_ratio_max: float = key(
        _GATE.latency_ratio_max,
        "Candidate's latency over the served model's, at most; timed in turn, refused when three turns of four are above, or median and quickest runs by 5 %.",
        gt=0,
        le=10,
    )
    size_ratio_max: float = key(_GATE.size_ratio_max, "Candidate's size over the served model's, at most.", gt=0, le=10)
    absent_drop_max: Points | None = key(
        None,
        "Most accuracy lost on reference images of classes not shown here; null: told, not judged.",
        example="20pp",
    )
    accuracy_gain_min: Points = key("0.5pp", "A candidate neither faster nor smaller must be better by this.")
    worthwhile_ratio: float = key(
        _GATE.worthwhile_ratio, "Latency or parameters below this ratio count as faster or smaller.", gt=0, le=1
    )

    @model_validator(mode="after")
    def _check(self) -> Gate:
        if self.protected_classes is not None and self.protected_drop_max is None:
            raise ValueError("protected_classes needs protected_drop_max: how much these may lose")
        return self


class Probation(Section):
    """When a promoted version is taken back by itself."""

    duration: Duration = key("24h", "How long after promotion; 0s: no probation.")
    feedback_min: PositiveCount = key(
        20, "Labelled predictions of both versions before one is judged; five times as many where labels play no part."
    )
    accuracy_drop_max: Points = key("5pp", "Fall of accuracy on labelled feedback that rolls back.")
    confidence_drop_max: float = key(0.15, "Fall of the mean confidence, from 0 to 1, that rolls back.", gt=0, le=1)
    latency_ratio_max: float = key(2.0, "Median latency over the former version's that rolls back.", gt=1, le=100)
