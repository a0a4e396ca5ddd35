"""The part of a training run that its stages share: figures as it goes, and checkpoints from which it resumes."""

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from minidist.cluster.prometheus import PrometheusBoard
from minidist.config import dump
from minidist.errors import RunDirectoryError
from minidist.protocols import Saves
from minidist.run.checkpoint import Checkpoint, check_seen
from minidist.run.files import remove, rename, writing
from minidist.run.mirror import mirror_of
from minidist.run.tracking import Board, Pieces, Recorder, log
from minidist.run.wandb_board import WandbBoard
from minidist.stages import StageRun

L = TypeVar("L", bound=Saves)


def make_recorder(run: StageRun[Any, Any], shown: Mapping[str, str], pieces: Pieces | None = None) -> Recorder:
    """The recorder of a run, from its first step or from the checkpoint on."""
    settings, path, steps = run.config.run, run.directory.path, range(run.start, run.config.run.steps)
    boards: list[Board] = [] if settings.wandb is None else [WandbBoard(settings.wandb, path, dump(run.config))]
    boards += [] if run.config.cluster.prometheus is None else [PrometheusBoard(str(path))]
    return Recorder(path, steps, tensorboard=settings.tensorboard, shown=shown, pieces=pieces, boards=boards)


class CheckpointWatch(ABC, Generic[L]):
    """Writes a checkpoint every `run.checkpoint_every` steps, after the last one, and when the run is stopped."""

    def __init__(self, run: StageRun[Any, Any], learner: L, recorder: Recorder) -> None:
        self._directory = run.directory
        self._every = run.config.run.checkpoint_every
        self._steps = run.config.run.steps
        self._learner = learner
        self._recorder = recorder
        self._mirror = mirror_of(run.config)

    async def checkpoint(self, step: int) -> None:
        """Write a checkpoint after `step` steps where one is due."""
        if self._every and (step % self._every == 0 or step == self._steps):
            await self._directory.checkpoints.write(step, self._learner, self.state_dict())
            await asyncio.to_thread(self._mirror.push)

    async def stopped(self, step: int) -> None:
        """Ctrl-C, SIGTERM or an alarm: write a checkpoint."""
        await self._directory.checkpoints.write(step, self._learner, self.state_dict())
        await asyncio.to_thread(self._mirror.push)
        log.info("checkpoint after %d steps written; the same command resumes from it", step)

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The state of a resumed run beside the learner's."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""

    async def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        await self._learner.resume(checkpoint.path)
        self.restore(checkpoint)

    def restore(self, checkpoint: Checkpoint) -> None:
        """What goes on from a checkpoint beside the learner. Raises RunDirectoryError where it is of another kind of run."""
        try:
            self.load_state_dict(checkpoint.state)
        except (AttributeError, LookupError, ArithmeticError, TypeError, ValueError) as error:
            found = f"{checkpoint.path}/state.json is not the state of this kind of run ({type(error).__name__}: {error})"
            raise RunDirectoryError(f"{found}; set run.overwrite=true to start the run again") from None

    async def save(self, path: Path) -> None:
        """Write the student, whole or not at all. Raises DiskFullError."""
        partial = path.with_name(f".{path.name}")
        if os.path.lexists(partial):  # of a run that was killed while it wrote
            remove(partial)
        await self._learner.save(partial)
        check_seen(partial)
        with writing(path):
            if os.path.lexists(path):
                remove(path)
            rename(partial, path)
