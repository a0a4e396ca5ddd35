"""`run`: where a run writes, how long it lasts, what it leaves."""

from pathlib import Path

from pydantic import Field

from minidist.config.base import Section


class PlaceConfig(Section):
    """A run's directory."""

    directory: Path
    """Where everything of the run goes. A finished run of the same configuration is left as it is."""
    overwrite: bool = False
    """Start again in a directory that holds another run; its files are deleted first."""


class RunConfig(PlaceConfig):
    """A run and its directory."""

    seed: int = Field(default=0, ge=0)
    """Source of every random number of the run: weights, data order, sampling."""
    steps: int = Field(default=100, ge=1)
    """Collections, each followed by its optimizer step (several in minillm's inner epochs) and one publication."""
    deterministic: bool = False
    """Give the same bits again: algorithms without a deterministic form are refused, engines forget every cached key and
    value before they write. A run that was interrupted then goes on exactly as if it had not been."""
    checkpoint_every: int | None = Field(default=100, ge=1)
    """Steps between checkpoints under checkpoints/, from which the run goes on when the same command is given again. None:
    only when the run is stopped by Ctrl-C or SIGTERM."""
    checkpoints_kept: int = Field(default=2, ge=1)
    """The newest so many checkpoints stay."""
    rollouts_every: int = Field(default=20, ge=1)
    """Steps between files under rollouts/ with the prompts and answers of that step, to read."""
    tensorboard: bool = True
    """Write the metrics as TensorBoard events too."""
