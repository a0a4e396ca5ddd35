"""The part of a training run that its stages share: figures as it goes, and checkpoints from which it resumes."""

from collections.abc import Mapping
from typing import Any

from minidist.protocols import Learner
from minidist.run.tracking import Pieces, Recorder, log
from minidist.stages import StageRun


def make_recorder(run: StageRun[Any, Any], shown: Mapping[str, str], pieces: Pieces | None = None) -> Recorder:
    """The recorder of a run, from its first step or from the checkpoint on."""
    settings, steps = run.config.run, range(run.start, run.config.run.steps)
    return Recorder(run.directory.path, steps, tensorboard=settings.tensorboard, shown=shown, pieces=pieces)


class CheckpointWatch:
    """Writes a checkpoint every `run.checkpoint_every` steps, and when the run is stopped."""

    def __init__(self, run: StageRun[Any, Any], learner: Learner, recorder: Recorder) -> None:
        self._directory = run.directory
        self._every = run.config.run.checkpoint_every
        self._learner = learner
        self._recorder = recorder

    async def checkpoint(self, step: int) -> None:
        """Write a checkpoint after `step` steps where one is due."""
        if self._every and step % self._every == 0:
            await self._directory.checkpoints.write(step, self._learner, self.state_dict())

    async def stopped(self, step: int) -> None:
        """Ctrl-C, SIGTERM or an alarm: write a checkpoint."""
        await self._directory.checkpoints.write(step, self._learner, self.state_dict())
        log.info("checkpoint after %d steps written; the same command resumes from it", step)

    def state_dict(self) -> dict[str, Any]:
        """The state of a resumed run beside the learner's."""
        raise NotImplementedError
