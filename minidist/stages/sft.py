"""Supervised fine-tuning: a fixed text through the same loop; the validation loss decides which weights are final."""

import shutil
import zlib
from contextlib import closing
from typing import Any

from minidist.config import SftConfig
from minidist.config.objectives import SupervisedConfig
from minidist.data.batching import collate
from minidist.data.examples import Example
from minidist.experience.draw import Mixture, Part, Shuffled
from minidist.experience.source import SupervisedBatches
from minidist.loop import Run, train
from minidist.preflight.plan import SftPlan
from minidist.protocols import Learner
from minidist.roles.host import Roles
from minidist.roles.make import LearnerSetup
from minidist.run.tracking import Clock, Recorder
from minidist.stages import StageRun
from minidist.stages.watch import CheckpointWatch, make_recorder
from minidist.types import Batch, Update


async def sft(run: StageRun[SftConfig, SftPlan], roles: Roles) -> dict[str, Any]:
    """Train, watch the validation loss, write final/."""
    config, checkpoint, final = run.config, run.checkpoint, run.directory.final
    learner = await roles.learner(LearnerSetup(config.student, config.learner, {"supervised": SupervisedConfig()}))
    shown = {"loss/nats_per_token": "loss", "validation/loss_nats_per_token": "validation", "time/update_s": "update s"}
    source = SupervisedBatches(mixture(config, run.plan))
    with closing(make_recorder(run, shown)) as recorder:
        watch = SftWatch(run, learner, recorder)
        loop = Run(config.run.steps, source, learner, Clock(), watch, step=run.start)
        if checkpoint is not None:
            await watch.resume(checkpoint)
            loop.done = watch.patience_lost()
        steps = await train(loop)
        await watch.save_final()
    return {"steps": steps, "model": str(final), "learner": await learner.describe(), **watch.summary()}


def mixture(config: SftConfig, plan: SftPlan) -> Mixture[Example]:
    """The rows of each step: those of data.mix in the order of their names, so that a run is resumed from any order."""
    seed = config.run.seed
    # As with streams, the seed depends on the name, so that two equally large sources are drawn in different orders.
    parts = [
        Part(plan.mix[name], source.share, seed ^ zlib.crc32(name.encode())) for name, source in sorted(config.data.mix.items())
    ]
    return Mixture(Shuffled(plan.examples, config.batch_rows, seed), parts)


class SftWatch(CheckpointWatch[Learner]):
    """Validation loss while training: when it has not fallen for `patience` evaluations, the best weights are final."""

    def __init__(self, run: StageRun[SftConfig, SftPlan], learner: Learner, recorder: Recorder) -> None:
        super().__init__(run, learner, recorder)
        self._config = run.config
        self._held_out = collate("validation", [example.as_rollout() for example in run.plan.validation_examples])
        self._losses: list[tuple[int, float]] = []

    async def before_update(self, batch: Batch) -> None: ...

    async def after_step(self, step: int, batch: Batch, update: Update, metrics: dict[str, float]) -> bool:
        every, stop = self._config.evaluation.every, False
        if every is not None and (step + 1) % every == 0:
            loss = -float((await self._learner.measure(self._held_out)).student_logprob.mean())
            metrics["validation/loss_nats_per_token"] = loss
            self._losses.append((step + 1, loss))
            stop = await self._judge()
        self._recorder.step(step, metrics)
        await self.checkpoint(step + 1)
        return stop

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self._losses, "metrics_bytes": self._recorder.position()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._losses = [(step, loss) for step, loss in state["losses"]]

    async def save_final(self) -> None:
        best, final = self._directory.path / "best", self._directory.final
        if best.exists():
            shutil.rmtree(final, ignore_errors=True)
            best.rename(final)
        elif not (self._config.evaluation.patience and self._losses and final.exists()):
            await self.save(final)
        # Else a finished run went on, and no later weights were better than those in final/.

    def summary(self) -> dict[str, Any]:
        if not self._losses:
            return {}
        step, loss = min(self._losses, key=lambda entry: entry[1])
        final = step if self._config.evaluation.patience else self._losses[-1][0]
        validation = [{"step": at, "loss_nats_per_token": value} for at, value in self._losses]
        best = {"step": step, "loss_nats_per_token": loss}
        return {"validation": validation, "best": best, "final_step": final, "stopped_improving": self.patience_lost()}

    async def _judge(self) -> bool:
        """Keep the weights of a new best; stop after `patience` evaluations without one."""
        if self._config.evaluation.patience is not None and self._since_best() == 0:
            await self.save(self._directory.path / "best")
        return self.patience_lost()

    def patience_lost(self) -> bool:
        """Whether the last `patience` evaluations brought no better loss."""
        patience = self._config.evaluation.patience
        return patience is not None and bool(self._losses) and self._since_best() >= patience

    def _since_best(self) -> int:
        values = [loss for _, loss in self._losses]
        return len(values) - 1 - values.index(min(values))
