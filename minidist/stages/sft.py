"""Supervised fine-tuning: given text through the same loop, with the validation loss as its judge."""

from typing import Any

from minidist.build import make_learner
from minidist.cluster import Cluster
from minidist.config import SftConfig
from minidist.data.batching import collate_examples
from minidist.experience import Examples
from minidist.loop import Run, train
from minidist.plan import Plan
from minidist.protocols import Learner
from minidist.rundir import RunDirectory
from minidist.tracking import Clock, Recorder
from minidist.transfer.object_store import ObjectStoreTransfer
from minidist.types import Batch, Update


async def sft(config: SftConfig, plan: Plan, directory: RunDirectory, cluster: Cluster) -> dict[str, Any]:
    """Train, watch the validation loss, leave final/."""
    learner = await cluster.host(
        "learner",
        make_learner,
        student=config.student,
        teacher=None,
        renderer=plan.renderer,
        config=config.learner,
        objectives={"supervised": {"type": "supervised"}},
        steps=config.run.steps,
        seed=config.run.seed,
        vocabulary=None,
        gpus=config.cluster.gpus,
    )
    shown = [("loss/nats_per_token", "loss"), ("validation/loss_nats_per_token", "validation"), ("time/update_s", "update s")]
    recorder = Recorder(directory.path, config.run.steps, tensorboard=config.run.tensorboard, shown=shown)
    watch = _SftWatch(config, plan, directory, learner, recorder)
    try:
        run = Run(
            config.run.steps,
            Examples(plan.examples, rows=config.batch_rows, seed=config.run.seed),
            learner,
            [],
            ObjectStoreTransfer(0.0),
            Clock(),
            watch.before_update,
            watch.after_step,
        )
        steps = await train(run)
        await watch.leave_final()
    finally:
        recorder.close()
    return {"steps": steps, "model": str(directory.final), "learner": await learner.describe(), **watch.summary()}


class _SftWatch:
    """Validation loss while training: when it has not fallen for `patience` evaluations, the best weights are final."""

    def __init__(self, config: SftConfig, plan: Plan, directory: RunDirectory, learner: Learner, recorder: Recorder) -> None:
        self._config, self._directory, self._learner, self._recorder = config, directory, learner, recorder
        self._held_out = collate_examples("validation", plan.validation_examples, objective="")
        self._losses: list[tuple[int, float]] = []

    async def before_update(self, batch: Batch) -> None: ...

    async def after_step(self, step: int, batch: Batch, update: Update, metrics: dict[str, float]) -> bool:
        every = self._config.evaluation.every
        stop = False
        if every is not None and (step + 1) % every == 0:
            metrics["validation/loss_nats_per_token"] = loss = await self._validate()
            self._losses.append((step + 1, loss))
            stop = await self._judge()
        self._recorder.step(step, metrics)
        if (often := self._config.run.checkpoint_every) and (step + 1) % often == 0:
            await self._learner.save(self._directory.path / "checkpoints" / f"step_{step + 1:06d}")
        return stop

    async def leave_final(self) -> None:
        best = self._directory.path / "best"
        if best.exists():
            best.rename(self._directory.final)
        else:
            await self._learner.save(self._directory.final)

    def summary(self) -> dict[str, Any]:
        if not self._losses:
            return {}
        step, loss = min(self._losses, key=lambda entry: entry[1])
        final = step if self._config.evaluation.patience else self._losses[-1][0]
        return {
            "validation": [{"step": at, "loss_nats_per_token": value} for at, value in self._losses],
            "best": {"step": step, "loss_nats_per_token": loss},
            "final_step": final,
            "stopped_improving": self._since_best() >= (self._config.evaluation.patience or 1 << 30),
        }

    async def _validate(self) -> float:
        return -float((await self._learner.measure(self._held_out)).student_logprob.mean())

    async def _judge(self) -> bool:
        """Keep the weights of a new best; stop after `patience` evaluations without one."""
        if self._config.evaluation.patience is None:
            return False
        if self._since_best() == 0:
            await self._learner.save(self._directory.path / "best")
        return self._since_best() >= self._config.evaluation.patience

    def _since_best(self) -> int:
        values = [loss for _, loss in self._losses]
        return len(values) - 1 - values.index(min(values))
