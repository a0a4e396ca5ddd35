"""`run`: directory, length, seed and files of a run."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from minidist.config.base import FREE, Section
from minidist.text import without_secrets

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"


def repository(name: str) -> str:
    """A name of a model on the Hugging Face hub, OWNER/NAME. Raises ValueError with one sentence."""
    fits = len(name) <= 96 and re.fullmatch(f"{_PART}/{_PART}", name) and not re.search(r"--|\.\.|\.git$", name)
    if not fits:
        expected = "expected OWNER/NAME of at most 96 letters, digits, -, _ and ., such as my-team/small-model"
        raise ValueError(f"the name {name!r} is not one that the Hugging Face hub takes; {expected}")
    return name


RepositoryName = Annotated[str, AfterValidator(repository)]


class PlaceConfig(Section):
    """A run's directory."""

    directory: Annotated[Path, FREE]
    """Directory of all files of the run. A finished run of the same configuration is not run again."""
    overwrite: Annotated[bool, FREE] = False
    """Delete the files of another run in the directory and start again."""
    mirror: Annotated[str | None, FREE] = None
    """fsspec address, such as s3://bucket/runs/mine, to which the files of the directory are copied with each checkpoint and at
    the end; where the directory has no run yet, the run that is there is fetched, and goes on. None: no copy."""

    @field_validator("directory", mode="before")
    @classmethod
    def _on_this_machine(cls, directory: Any) -> Any:
        if isinstance(directory, str) and "://" in directory:
            raise ValueError("the directory of a run is written to step by step; set a local or shared one, and run.mirror")
        return directory

    @field_validator("mirror")
    @classmethod
    def _an_address(cls, mirror: str | None) -> str | None:
        if mirror is not None and ("://" not in mirror or without_secrets(mirror) != mirror):
            raise ValueError(
                "expected an address without user and password, such as s3://bucket/runs/mine or file:///backup/mine"
            )
        return mirror


class WandbConfig(Section):
    """The run on Weights & Biases, beside its files. The package wandb must be installed; it finds the key of the account
    itself, in WANDB_API_KEY or where `wandb login` has put it."""

    project: str = Field(min_length=1)
    """Project that shows the run."""
    entity: str | None = None
    """Team or user to whom the project belongs. None: the default of the account."""
    name: str | None = None
    """Name of the run. None: that of run.directory."""
    group: str | None = None
    """Group of the run, such as the runs that differ by seed. None: no group."""
    tags: list[str] = Field(default=[])
    """Tags of the run."""
    mode: Literal["online", "offline"] = "online"
    """offline: only write files under run.directory, which `wandb sync` sends later."""


class RunConfig(PlaceConfig):
    """A run and its directory."""

    seed: int = Field(default=0, ge=0)
    """Seed of all random numbers of the run: initial weights, data order, sampling."""
    steps: Annotated[int, FREE] = Field(default=100, ge=1)
    """Steps: each collects text, takes one optimizer step (several with inner epochs or minibatches), and publishes the weights
    once. A run that is started again with more steps goes on from its last checkpoint; what ends with the run, such as a
    linear or cosine learner.optimizer.schedule, then ends at the new end."""
    deterministic: bool = False
    """Make the run reproducible bit by bit: non-deterministic algorithms are refused, and engines clear their key-value caches
    before they write. An interrupted run then resumes exactly as if it had not been interrupted."""
    checkpoint_every: Annotated[int | None, FREE] = Field(default=100, ge=1)
    """Steps between checkpoints under checkpoints/, from which the same command resumes the run; the last step has one too.
    None: write a checkpoint only when Ctrl-C or SIGTERM stops the run."""
    checkpoints_kept: Annotated[int, FREE] = Field(default=2, ge=2)
    """Number of newest checkpoints to keep. One that is damaged is skipped, and the run resumes from the one before it."""
    rollouts_every: Annotated[int, FREE] = Field(default=20, ge=1)
    """Steps between files under rollouts/, which hold the prompts and answers of a step as text."""
    timeline_steps: Annotated[int | None, FREE] = Field(default=1000, ge=1)
    """Steps whose calls are written to timeline.json, a Chrome trace of all actors, from the start of each process on; a few
    KB a step. None: all of them."""
    tensorboard: Annotated[bool, FREE] = True
    """Also write the metrics as TensorBoard events."""
    push_to_hub: Annotated[RepositoryName | None, FREE] = None
    """Repository of the Hugging Face hub, OWNER/NAME, to which final/ is uploaded when the run has finished; it is created if
    need be. The token is read from the environment variable HF_TOKEN. None: no upload; `minidist push` makes one later."""
    push_private: Annotated[bool, FREE] = True
    """A repository that push_to_hub creates is private."""
    wandb: Annotated[WandbConfig | None, FREE] = None
    """Also send the metrics to Weights & Biases. None: nothing is sent anywhere."""
