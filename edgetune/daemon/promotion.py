"""From a published candidate to the served version: verify and judge off the request path, promote, swap, or refuse."""

from __future__ import annotations

from dataclasses import replace

from edgetune.daemon.parts import StoreThread
from edgetune.daemon.round_records import RoundRecords
from edgetune.daemon.round_told import contradicted_throughout, doubted
from edgetune.daemon.serving import Serving
from edgetune.decide import gate
from edgetune.decide.probation import Observed
from edgetune.decide.rounds import Event, EventKind
from edgetune.errors import ConflictError, EdgetuneError, ModelError
from edgetune.serve.engine import Engine
from edgetune.store import durable
from edgetune.store.models import Models
from edgetune.types import Comparison, GateDecision, GatePolicy, Manifest, RoundKind, RoundSpec


class Promotion:
    """What stands between a round's candidate and its being served."""

    def __init__(self, *, models: Models, records: RoundRecords, store: StoreThread, serving: Serving) -> None:
        self._models, self._records, self._store, self._serving = models, records, store, serving
        self.decision: GateDecision | None = None
        self._candidate: Engine | None = None
        self._baseline = Observed()

    def discard(self) -> None:
        """Let a candidate go that was verified too late to count."""
        if self._candidate is not None:
            self._candidate.close()
            self._candidate = None

    def forget(self, decision: GateDecision | None = None) -> None:
        """Begin with another round, or with what a round before a restart was known to have decided."""
        self.decision, self._baseline = decision, Observed()

    async def verify(self, spec: RoundSpec, policy: GatePolicy) -> Event:
        """Judge, then load and self-test: Verified, or Refused with every reason."""
        try:
            manifest = await self._store(self._models.manifest, spec.candidate_version)
            self.decision = await self._refused_since(spec)
            if self.decision is None:
                shown = await self._store(self._records.shown_anew, spec)
                shown_anew = tuple(label for label in shown if label not in manifest.marks)
                self.decision = self._judge(spec, manifest, policy, shown_anew)
                if self._is_current(spec):
                    self.decision = await self._with_doubts(self.decision, spec, manifest.comparison, policy)
            if self.decision.is_promoted:
                self._candidate = await self._serving.prepare(spec.candidate_version)
        except (EdgetuneError, OSError) as error:
            self.decision = GateDecision(is_promoted=False, reasons=(str(error),))
        kind = EventKind.VERIFIED if self.decision.is_promoted else EventKind.REFUSED
        return Event(kind=kind, reason="; ".join(self.decision.reasons))

    async def _refused_since(self, spec: RoundSpec) -> GateDecision | None:
        """The refusal of a candidate with a class that the operator refused while it was made; None: there is none."""
        refused = await self._store(self._records.refused_since, spec)
        if not refused:
            return None
        names = ", ".join(repr(label) for label in refused)
        reason = f"the operator refused {names} while this candidate was made, which has an output for it"
        return GateDecision(is_promoted=False, reasons=(reason,), uses_up_samples=False)

    def _judge(
        self, spec: RoundSpec, manifest: Manifest, policy: GatePolicy, shown_anew: tuple[str, ...]
    ) -> GateDecision:
        if not self._is_current(spec):
            reason = "the served version was changed while this candidate was in training"
            return GateDecision(is_promoted=False, reasons=(reason,))
        if manifest.comparison is None or manifest.round_id != spec.round_id:
            raise ModelError(f"version {manifest.version} is not what round {spec.round_id} should have published")
        return gate.judge(manifest.comparison, policy, shown_anew=shown_anew)

    async def _with_doubts(
        self, decision: GateDecision, spec: RoundSpec, comparison: Comparison | None, policy: GatePolicy
    ) -> GateDecision:
        """
        A refusal for lost accuracy also says which labels may be the cause.

        Where wrong labels have come for as long as the hold-out reaches, a candidate that learnt them looks better. Nothing
        here can tell that from a site that has changed, so a promotion against most labels of a class says so.
        """
        journal = await self._store(self._records.journal, spec.round_id)
        if decision.is_promoted:
            doubts = contradicted_throughout(journal)
            return replace(decision, warnings=(*decision.warnings, doubts)) if doubts else decision
        if comparison is None or not gate.has_lost_accuracy(comparison, policy):
            return decision
        doubts = doubted(journal)
        return replace(decision, reasons=(*decision.reasons, doubts)) if doubts else decision

    def _is_current(self, spec: RoundSpec) -> bool:
        return spec.generation == self._serving.generation and spec.base_version == self._serving.served.version

    async def promote(self, spec: RoundSpec) -> None:
        """
        The commit point. No change by hand gets in between this and `swap`.

        Raises:
            ConflictError: a person changed the served version, or refused a class, after the candidate was judged.
        """
        await self._serving.changing.acquire()
        try:
            refusal = await self._refused_since(spec)
            if refusal is not None:
                self.decision = refusal
                raise ConflictError(refusal.reasons[0])
            if not self._is_current(spec):
                raise ConflictError("the served version was changed while this candidate was verified")
            durable.faultpoint("round.promote")
            await self._serving.promote(spec.candidate_version)
        except BaseException:
            self._serving.changing.release()
            raise

    async def swap(self) -> None:
        """Serve the candidate from the next request on."""
        assert self._candidate is not None
        try:
            self._baseline = await self._serving.swap(self._candidate)
        finally:
            self._candidate = None
            self._serving.changing.release()

    async def start_probation(self, spec: RoundSpec, duration_s: float) -> None:
        """Watch the new version against the one it replaced."""
        await self._serving.trial.start(
            spec.candidate_version,
            spec.base_version,
            self._baseline,
            duration_s,
            is_imprint=spec.kind is RoundKind.IMPRINT,
        )

    async def quarantine(self, spec: RoundSpec, why: str) -> None:
        """Take a refused candidate away, if it was published at all."""
        self.discard()
        if spec.candidate_version in await self._store(self._models.versions):
            await self._store(self._models.quarantine, spec.candidate_version, why)
