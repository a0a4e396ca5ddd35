"""On-policy distillation: the three roles are hosted, the loop runs, and this watches it."""

import asyncio
from typing import Any

from minidist.build import make_engine, make_learner, make_teacher
from minidist.canaries import Alarms, check_engine, check_teacher, tolerance
from minidist.cluster import Cluster
from minidist.config import DistillConfig
from minidist.evaluation.student import Examiner
from minidist.experience import OnPolicy
from minidist.loop import Run, train
from minidist.plan import Plan
from minidist.protocols import Learner, RolloutEngine, Teacher
from minidist.rundir import RunDirectory
from minidist.tracking import Clock, Recorder, log
from minidist.transfer.object_store import ObjectStoreTransfer
from minidist.types import Batch, Update


async def distill(config: DistillConfig, plan: Plan, directory: RunDirectory, cluster: Cluster) -> dict[str, Any]:
    """Host the roles, prove the first sync, run the loop, leave final/."""
    seed = config.run.seed
    teacher, learner, engine = await _host(config, plan, cluster)
    clock = Clock()
    dtypes = (config.student.dtype, config.teacher.dtype)
    transfer = ObjectStoreTransfer(tolerance(config.canaries.sync_tolerance_nats, dtypes, exact=5e-3, rounded=0.5))
    shown = [
        ("loss/nats_per_token", config.objective.type),
        ("rollout/length_mean_tokens", "length"),
        ("time/generate_s", "generate s"),
        ("time/update_s", "update s"),
    ]
    recorder = Recorder(directory.path, config.run.steps, tensorboard=config.run.tensorboard, shown=shown)
    agreement = tolerance(config.canaries.logprob_tolerance_nats, dtypes, exact=1e-3, rounded=0.05)
    examiner = Examiner(
        plan.validation_prompts,
        teacher,
        max_new_tokens=config.rollout.max_new_tokens,
        seed=seed,
        graded=config.data.validation is not None and config.data.validation.task is not None,
        tolerance_nats=agreement,
    )
    watch = _DistillWatch(config, plan, directory, learner, engine, examiner, recorder, agreement)
    try:
        # The engine is proved before it writes a word, as after every update.
        await transfer.publish(learner, [engine])
        await watch.examine(-1)
        source = OnPolicy(plan.prompts, engine, teacher, config.rollout, seed=seed, clock=clock)
        steps = await train(
            Run(config.run.steps, source, learner, [engine], transfer, clock, watch.before_update, watch.after_step)
        )
        await learner.save(directory.final)
    finally:
        recorder.close()
    return {
        "steps": steps,
        "model": str(directory.final),
        "engine": await engine.describe(),
        "learner": await learner.describe(),
        "teacher": await teacher.describe(),
        "syncs_proved": transfer.proved,
        **watch.summary(),
    }


async def _host(config: DistillConfig, plan: Plan, cluster: Cluster) -> tuple[Teacher, Learner, RolloutEngine]:
    """The three roles, started side by side."""
    common = {"renderer": plan.renderer, "vocabulary": plan.vocabulary, "gpus": config.cluster.gpus}
    return await asyncio.gather(
        cluster.host("teacher", make_teacher, config=config.teacher, **common),
        cluster.host(
            "learner",
            make_learner,
            student=config.student,
            teacher=config.teacher,
            config=config.learner,
            objectives={"on_policy": config.objective.model_dump()},
            steps=config.run.steps,
            seed=config.run.seed,
            **common,
        ),
        cluster.host(
            "rollout engine",
            make_engine,
            model=config.student,
            rollout=config.rollout,
            max_tokens=plan.max_tokens,
            seed=config.run.seed,
            **common,
        ),
    )


class _DistillWatch:
    """Canaries and alarms, evaluations, checkpoints and rollouts of a distillation."""

    def __init__(
        self,
        config: DistillConfig,
        plan: Plan,
        directory: RunDirectory,
        learner: Learner,
        engine: RolloutEngine,
        examiner: Examiner,
        recorder: Recorder,
        tolerance_nats: float,
    ) -> None:
        self._config, self._plan, self._directory = config, plan, directory
        self._learner, self._engine, self._examiner, self._recorder = learner, engine, examiner, recorder
        self._alarms = Alarms(config.canaries)
        self._tolerance = tolerance_nats
        self._evaluations: list[tuple[int, dict[str, float]]] = []
        self._worst = 0.0

    async def before_update(self, batch: Batch) -> None:
        """Compare engine, learner and teacher on the first batch and every so often."""
        if batch.step % self._config.canaries.every:
            return
        measures = await self._learner.measure(batch.streams[0])
        if self._config.rollout.temperature == 1 and self._config.rollout.top_p == 1:
            difference = check_engine(measures, batch.rollouts, self._tolerance)
            batch.metrics["canary/engine_learner_nats_mean"] = difference
            self._worst = max(self._worst, difference)
        if (mean := check_teacher(measures, self._plan.vocabulary or 1, self._config.canaries.uniform_margin)) is not None:
            batch.metrics["canary/teacher_logprob_nats"] = mean

    async def after_step(self, step: int, batch: Batch, update: Update, metrics: dict[str, float]) -> bool:
        seconds = sum(value for name, value in metrics.items() if name.startswith("time/"))
        metrics[f"kl/{self._config.objective.type.removesuffix('_kl')}_nats"] = metrics["on_policy/loss_nats_per_token"]
        # Optimizer steps between the weights a token was written with and those it is used on: 0, strictly on-policy.
        metrics["age/updates_max"] = float(update.version - 1 - min(int(r.versions.min()) for r in batch.rollouts))
        metrics["speed/loss_tokens_per_s"] = metrics["learner/loss_tokens"] / seconds
        self._alarms.look(step, metrics)
        self._recorder.step(step, metrics)
        last = step + 1 == self._config.run.steps
        if (step + 1) % self._config.run.rollouts_every == 0 or last or step == 0:
            self._recorder.rollouts(step + 1, batch.rollouts)
        every = self._config.evaluation.every
        if every is not None and ((step + 1) % every == 0 or last):
            await self.examine(step)
        if (often := self._config.run.checkpoint_every) and (step + 1) % often == 0:
            await self._learner.save(self._directory.path / "checkpoints" / f"step_{step + 1:06d}")
        return False

    async def examine(self, step: int) -> None:
        """All figures on the held-out prompts; `step` -1 is before training."""
        if self._config.evaluation.every is None:
            return
        figures = await self._examiner.examine(self._engine, self._learner)
        self._evaluations.append((step + 1, figures))
        self._recorder.write(step, {f"evaluation/{name}": value for name, value in figures.items()})
        shown = {"accuracy": "accuracy", "rouge_l": "ROUGE-L", "reverse_kl": "reverse KL", "forward_kl": "forward KL"}
        text = ", ".join(f"{label} {figures[name]:.4g}" for name, label in shown.items() if name in figures)
        log.info("evaluation after %d steps: %s", step + 1, text)

    def summary(self) -> dict[str, Any]:
        return {
            "canaries": {"engine_learner_nats_mean_worst": self._worst, "alarms": self._alarms.raised},
            "evaluations": [{"step": step, **figures} for step, figures in self._evaluations],
        }
