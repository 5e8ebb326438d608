"""
One tree of errors. A class's docstring is the sentence an operator reads when no better one is at hand.

`code` names the error on the socket and in logs, `exit_code` is what the command line exits with, and
`hint` tells the operator what to do about it.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_RUNNING = 3
EXIT_REFUSED = 4
EXIT_CONFIG = 78

# The trainer's own exit codes (it is a program of its own); 0 means that it published a candidate.
EXIT_TRAINER_CHECKPOINTED = 20
EXIT_TRAINER_OUTCOME = 21


class EdgetuneError(Exception):
    """Something failed."""

    code: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = EXIT_FAILED
    http_status: ClassVar[int] = 500
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str = "", *, hint: str = "") -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())
        self.hint = hint or self.default_hint

    @property
    def message(self) -> str:
        """The sentence for the operator."""
        return str(self.args[0])


class UsageError(EdgetuneError):
    """The request does not make sense."""

    code = "usage"
    exit_code = EXIT_USAGE
    http_status = 400


class NotFoundError(EdgetuneError):
    """There is no such thing."""

    code = "not_found"
    http_status = 404


class ForbiddenError(EdgetuneError):
    """The caller may not do this."""

    code = "forbidden"
    http_status = 403
    default_hint = "run it as root or as a member of the admin group (serving.admin_group)"


class TooLargeError(EdgetuneError):
    """The request is larger than this service accepts."""

    code = "too_large"
    http_status = 413


class BusyError(EdgetuneError):
    """The service has as many requests in hand as it accepts."""

    code = "busy"
    http_status = 503
    default_hint = "try again in a moment"


class ConflictError(EdgetuneError):
    """The service is in a state in which this cannot be done."""

    code = "conflict"
    http_status = 409


class DaemonNotRunningError(EdgetuneError):
    """The edgetune daemon does not answer on its socket."""

    code = "not_running"
    exit_code = EXIT_NOT_RUNNING
    default_hint = "start it: systemctl start edgetune (or: edgetune run --config config.yaml)"


class RefusedError(EdgetuneError):
    """The gate or a budget refused this."""

    code = "refused"
    exit_code = EXIT_REFUSED
    http_status = 409


class ConfigError(EdgetuneError):
    """The configuration is not valid."""

    code = "config"
    exit_code = EXIT_CONFIG
    http_status = 422
    default_hint = "see docs/configuration.md, or run: edgetune config check"

    def __init__(self, problems: list[str] | str, *, hint: str = "") -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems), hint=hint)


class ImageError(EdgetuneError):
    """The file is not an image that edgetune can use."""

    code = "bad_image"
    http_status = 400


class StoreError(EdgetuneError):
    """The sample buffer cannot be read or written."""

    code = "store"


class BufferCorruptError(StoreError):
    """The sample buffer's database is damaged."""

    code = "buffer_corrupt"


class QuotaError(StoreError):
    """The sample buffer is full and nothing in it may be evicted."""

    code = "quota"
    http_status = 507
    default_hint = "raise buffer.quota, or purge samples: edgetune data purge"


class ModelError(EdgetuneError):
    """The model cannot be used."""

    code = "bad_model"
    http_status = 422


class NoModelError(ModelError):
    """No model is served yet."""

    code = "no_model"
    http_status = 503
    default_hint = "import one: edgetune models import --arch ARCH --weights FILE --classes FILE"


class ArtefactError(ModelError):
    """A published model is damaged: a file is missing or its hash differs."""

    code = "bad_artefact"


class SelfTestError(ModelError):
    """The model does not reproduce the outputs recorded when it was published."""

    code = "selftest"


class UnprunableError(ModelError):
    """This architecture cannot be pruned."""

    code = "unprunable"


class OutOfReachError(UnprunableError):
    """It can be pruned, but not that far."""

    code = "out_of_reach"


class MissingLibraryError(EdgetuneError):
    """A library that this needs is not installed."""

    code = "missing_library"


class SensorError(EdgetuneError):
    """A sensor that a budget needs cannot be read on this board."""

    code = "sensor"
    exit_code = EXIT_CONFIG


class RoundError(EdgetuneError):
    """The round ended without a candidate."""

    code = "round_failed"


class NoSamplesError(RoundError):
    """The buffer holds too few labelled samples for a round."""

    code = "no_samples"


class OneClassError(RoundError):
    """All labelled samples are of one class: there is nothing to tell apart."""

    code = "one_class"


class LossNotFiniteError(RoundError):
    """The training loss became NaN or infinite."""

    code = "nan_loss"
    default_hint = "lower training.learning_rate, or look for damaged samples: edgetune data stats"


class OutOfMemoryError(RoundError):
    """The trainer ran out of memory."""

    code = "out_of_memory"
    default_hint = "lower training.batch_size, or raise budgets.trainer_memory_max"


class WillNotFitError(RoundError):
    """By its forecast the round does not fit into the budgets."""

    code = "will_not_fit"
    default_hint = (
        "raise that budget, or train less: training.update: auto, fewer epochs, a smaller training.batch_size"
    )


class NoGradientError(RoundError):
    """A prunable layer got no gradient, so its filters cannot be ranked."""

    code = "no_gradient"


class TeacherError(RoundError):
    """The teacher that the round is to learn from cannot be used."""

    code = "teacher"
    default_hint = "see training.teacher; with training.teacher: ancestor rounds need nobody else"


class TeacherSilentError(TeacherError):
    """The server gave no answer at all; what it has said before may do."""
