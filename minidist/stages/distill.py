"""Distillation: host the roles, run the loop, and watch its numbers."""

from contextlib import closing, nullcontext
from typing import Any

from minidist.config import DistillConfig
from minidist.errors import AlarmError, CanaryError
from minidist.evaluation.divergence import by_teacher
from minidist.evaluation.examiner import Examiner, HeldOut
from minidist.evaluation.figures import to_record
from minidist.experience.ahead import WriteAhead
from minidist.experience.draw import Shuffled
from minidist.experience.scoring import Grouping
from minidist.experience.source import Collector
from minidist.experience.streams import make_sources, student_engine
from minidist.loop import Run, train
from minidist.methods import make_credit
from minidist.preflight.plan import DistillPlan
from minidist.protocols import Learner, Scorer
from minidist.roles.host import HostedRoles, Roles, host_roles
from minidist.roles.transfer import ProvedTransfer, make_transfer
from minidist.run.alarms import Alarms
from minidist.run.canaries import age_of, check_age, check_engine, check_floored, check_teacher
from minidist.run.tracking import Clock, Recorder, log, step_metrics
from minidist.stages import StageRun
from minidist.stages.accounts import Accounts
from minidist.stages.watch import CheckpointWatch, make_recorder
from minidist.types import Batch, Measures, Sampling, Update, Writer

DistillRun = StageRun[DistillConfig, DistillPlan]


async def distill(run: DistillRun, roles: Roles) -> dict[str, Any]:
    """Host the roles, prove the first weight sync, run the loop, write final/."""
    clock = Clock()
    with closing(Accounts(run, roles.cluster, clock)) as accounts:
        hosted = await host_roles(run.config, roles)
        await accounts.measure_rates()
        summary = await _train(run, hosted, clock, accounts)
    return summary | {"time": accounts.summary()}


async def _train(run: DistillRun, hosted: HostedRoles, clock: Clock, accounts: Accounts) -> dict[str, Any]:
    """Run the loop in the roles; returns the summary."""
    config, checkpoint, final = run.config, run.checkpoint, run.directory.final
    engines, learner = hosted.engines, hosted.learner
    transfer = make_transfer(config)
    collector = _source(run, hosted, clock)
    ahead = _ahead(run, collector, transfer)
    source = ahead or collector
    members = engines.members if engines else []
    with closing(make_recorder(run, _shown(config), run.plan.renderer.pieces)) as recorder:
        watch = DistillWatch(run, hosted, source, transfer, recorder, accounts)
        if checkpoint is not None:
            await learner.resume(checkpoint.path)
        if members:
            await transfer.publish(learner, members)  # engines are proved before their first token, as after every update
        if checkpoint is None:
            await watch.examine(-1)
        else:
            watch.restore(checkpoint)  # after the publication, which the count of proved syncs does not hold
        accounts.begin()
        async with ahead or nullcontext():
            publish = ahead or transfer
            steps = await train(Run(config.run.steps, source, learner, clock, watch, members, publish, run.start))
        await watch.save(final)
    summary: dict[str, Any] = {"steps": steps, "model": str(final)}
    for role, actors in (("engine", engines), ("learner", learner), ("teacher", hosted.teachers)):
        summary |= {role: await actors.describe()} if actors else {}
    synced = {"syncs_proved": transfer.proved, "weight_transfer": config.weight_transfer}
    return summary | synced | watch.summary()


def _source(run: DistillRun, hosted: HostedRoles, clock: Clock) -> Collector:
    config, plan, teachers = run.config, run.plan, hosted.teachers
    engine = student_engine(config, hosted.engines, teachers, plan.renderer) if hosted.engines else None
    prompts = Shuffled(plan.prompts, config.rollout.prompts_per_step, config.run.seed)
    sources = make_sources(config, plan.streams, engine, teachers)
    stale, credit = config.loop.max_staleness > 0, make_credit(config, hosted.learner)
    return Collector(prompts, sources, teachers, credit, clock, Grouping.of(config), stale)


def _ahead(run: DistillRun, collector: Collector, transfer: ProvedTransfer) -> WriteAhead | None:
    """Writes ahead of the learner, where loop.max_staleness asks for it."""
    most, settings = run.config.loop.max_staleness, run.config.run
    if not most:
        return None
    return WriteAhead(collector, transfer, most=most, steps=settings.steps, strict=settings.deterministic)


def _shown(config: DistillConfig) -> dict[str, str]:
    """Metrics of the progress line, and their names in it."""
    shown = {"loss/nats_per_token": config.objective.type, "rollout/length_mean_tokens": "length"}
    shown |= {"rollout/truncated_frac": "truncated", "rollout/distinct_4": "distinct-4", "policy/clip_frac": "clipped"}
    return shown | {"policy/disliked_frac": "disliked", "time/generate_s": "generate s", "time/update_s": "update s"}


class DistillWatch(CheckpointWatch[Learner]):
    """Canaries and alarms, evaluations, checkpoints and recorded rollouts of a distillation."""

    def __init__(
        self,
        run: DistillRun,
        hosted: HostedRoles,
        source: Collector | WriteAhead,
        transfer: ProvedTransfer,
        recorder: Recorder,
        accounts: Accounts,
    ) -> None:
        super().__init__(run, hosted.learner, recorder)
        self._accounts = accounts
        self._config = run.config
        self._vocabulary = run.plan.vocabulary
        self._engines = hosted.engines
        self._source = source
        self._transfer = transfer
        self._tolerance = run.config.canaries.logprob_tolerance(*run.config.dtypes.values())
        self._examiner = _examiner(run.config, run.plan, hosted.teachers, self._tolerance)
        self._alarms = Alarms(run.config.canaries)
        self._evaluations: list[tuple[int, dict[str, float]]] = []
        self._measured: Measures | None = None
        self._worst = 0.0
        self._age: int | None = None

    async def before_update(self, batch: Batch) -> None:
        """Compare engine, learner and teacher on the first batch and every `canaries.every` steps."""
        check_floored(batch.metrics.get("teacher/floored_frac"), self._config.canaries.floored_frac)
        updates = self._config.objective.updates
        self._age = age_of(batch.rollouts, batch.step * updates)
        check_age(self._age, self._config.loop.max_staleness * updates)
        checked = batch.step % self._config.canaries.every == 0
        # Checks and recorded figures are at temperature 1.
        self._measured = batch.measures if self._config.objective.temperature == 1 else None
        if self._measured is None and (checked or self._shows(batch.step)):
            assert batch.main is not None
            self._measured = await self._learner.measure(batch.main)
        if checked and self._measured is not None:
            await self._check(batch, self._measured)

    async def _check(self, batch: Batch, measures: Measures) -> None:
        # Text of an earlier student must differ: its engine was compared when its weights were published.
        if self._age == 0 and any(rollout.writer is Writer.STUDENT for rollout in batch.rollouts):
            rollout = self._config.rollout
            drawn = Sampling(max_new_tokens=1, temperature=rollout.temperature, top_p=rollout.top_p)
            assert batch.main is not None
            sampled = measures if drawn.own else await self._learner.measure(batch.main, *drawn.processed)
            difference = check_engine(sampled, batch.rollouts, self._tolerance)
            if difference is not None:
                batch.metrics["canary/engine_learner_nats_mean"] = difference
                self._worst = max(self._worst, difference)
        if (mean := check_teacher(measures, self._vocabulary, self._config.canaries.uniform_margin)) is not None:
            batch.metrics["canary/teacher_logprob_nats"] = mean
        for name, of_teacher in by_teacher(measures, batch.rollouts).items():
            self._check_teacher(name, of_teacher, batch)

    def _check_teacher(self, name: str, measures: Measures, batch: Batch) -> None:
        """Compare one of several teachers, whose error the mean over all of them would hide."""
        try:
            mean = check_teacher(measures, self._vocabulary, self._config.canaries.uniform_margin)
        except CanaryError as error:
            raise CanaryError(f"teachers.{name}: {error}") from None
        if mean is not None:
            batch.metrics[f"canary/teacher/{name}/logprob_nats"] = mean

    async def after_step(self, step: int, batch: Batch, update: Update, metrics: dict[str, float]) -> bool:
        metrics |= step_metrics(self._config.objective.type, metrics, batch, update)
        metrics |= self._accounts.step(batch)
        stopping = self._alarms.look(step, metrics)
        self._recorder.step(step, metrics)
        if self._shows(step):
            self._recorder.rollouts(step + 1, batch.rollouts, self._measured)
        every = self._config.evaluation.every
        if every is not None and ((step + 1) % every == 0 or step + 1 == self._config.run.steps):
            await self.examine(step)
        if stopping:
            await self.stopped(step + 1)
            remedy = "change that limit or remove its name from canaries.stop_on, and give the same command again"
            raise AlarmError(f"stopped by an alarm of canaries.stop_on: {'; '.join(stopping)}; to resume, {remedy}")
        await self.checkpoint(step + 1)
        self._accounts.begin()
        return False

    def _shows(self, step: int) -> bool:
        """Whether the step's rollouts are recorded."""
        return step == 0 or (step + 1) % self._config.run.rollouts_every == 0 or step + 1 == self._config.run.steps

    async def examine(self, step: int) -> None:
        """All figures on the held-out prompts; `step` -1 is before training."""
        if self._examiner is None or self._engines is None:
            return
        async with self._source.writing:  # the engines then hold the weights published last
            figures = to_record(await self._examiner.examine(self._engines, self._learner))
        self._evaluations.append((step + 1, figures))
        self._source.observe(figures)
        self._recorder.write(step, {f"evaluation/{name}": value for name, value in figures.items()})
        shown = {"accuracy": "accuracy", "rouge_l": "ROUGE-L", "reverse_kl": "reverse KL", "forward_kl": "forward KL"}
        shown |= {"length_mean_tokens": "length", "truncated_frac": "truncated", "distinct_4": "distinct-4"}
        text = ", ".join(f"{label} {figures[name]:.4g}" for name, label in shown.items() if name in figures)
        log.info("evaluation after %d steps: %s", step + 1, text)

    def state_dict(self) -> dict[str, Any]:
        """The state of a resumed run beside the learner's."""
        state = {"source": self._source.state_dict(), "evaluations": self._evaluations, "worst": self._worst}
        state |= {"alarms": self._alarms.state_dict(), "syncs_proved": self._transfer.proved}
        return state | {"accounts": self._accounts.state_dict(), "metrics_bytes": self._recorder.position()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._source.load_state_dict(state["source"])
        self._evaluations = [(step, figures) for step, figures in state["evaluations"]]
        self._worst, self._transfer.proved = state["worst"], state["syncs_proved"]
        self._alarms.load_state_dict(state["alarms"])
        if "accounts" in state:  # checkpoints of earlier versions have none
            self._accounts.load_state_dict(state["accounts"])

    def summary(self) -> dict[str, Any]:
        canaries = {"engine_learner_nats_mean_worst": self._worst, "alarms": self._alarms.raised}
        return {"canaries": canaries, "evaluations": [{"step": step, **figures} for step, figures in self._evaluations]}


def _examiner(config: DistillConfig, plan: DistillPlan, teachers: Scorer | None, tolerance_nats: float) -> Examiner | None:
    if config.evaluation.every is None or teachers is None:
        return None
    validation, temperature = config.data.validation, config.evaluation.temperature
    sampling = Sampling(max_new_tokens=config.rollout.max_new_tokens, temperature=temperature)
    held_out = HeldOut(plan.validation_prompts, validation is not None and validation.task is not None)
    writes = not config.mixes_teachers and all(teacher.writes for teacher in config.named_teachers.values())
    options = {"tolerance_nats": tolerance_nats, "writes": writes}
    return Examiner(held_out, teachers, sampling, seeds=[config.run.seed], **options)
