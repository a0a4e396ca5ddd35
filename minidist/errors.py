"""Errors, by who can correct them.

A `UserError` is corrected by changing a configuration, a path or a data file: the command line prints its one sentence and
exits with code 2, before any model is loaded. Every other `MinidistError` stops a run that has begun: exit code 1.
Each message says where the error is, what was expected, what was found, and what to do. All of them pickle and so cross Ray.
What others wrote may stand in a message: it is shown readable, of bounded length and without secrets.
"""

from minidist.text import message


class MinidistError(Exception):
    """Base of every error that minidist raises on purpose."""

    exit_code = 1

    def __str__(self) -> str:
        return message(super().__str__())


class UserError(MinidistError):
    """An error that the user can correct before the run starts. Its message is one line."""

    exit_code = 2

    def __str__(self) -> str:
        return " ".join(super().__str__().split())


class ConfigError(UserError, ValueError):
    """A configuration that cannot be run: unknown key, impossible value, or two sections that contradict each other."""


class DataError(UserError, ValueError):
    """A data file without the configured column, or with rows that cannot be used."""


class ModelError(UserError, ValueError):
    """A model or tokenizer that is missing, or a pair of them that does not fit together."""


class StorageError(UserError):
    """An fsspec address that cannot be read: its package or the file is missing, or access is refused."""


class RunDirectoryError(UserError, FileExistsError):
    """A directory of a run or a cache that cannot be used: it holds other files, or another process is using it."""


class JobError(UserError):
    """A cluster's job service that does not answer, or a job that it does not know or may not run."""


class CanaryError(MinidistError):
    """Two numbers of a run that must agree differ: without this error, the run would go wrong silently."""


class DivergedError(CanaryError):
    """Loss or gradient is not finite: raised before the optimizer moves, so the weights are still good. Or what the student
    computes after a step is not: its weights are lost, and its last checkpoint is not."""


class AlarmError(MinidistError):
    """A run stopped by an alarm of `canaries.stop_on`. Its checkpoint is written, and the run can resume."""


class DiskFullError(MinidistError):
    """A disk is full, or a quota used up. What was whole before is whole still, and the run can resume."""


class HubError(MinidistError):
    """A finished model that was not uploaded to the Hugging Face hub. The run is whole, and the upload can be repeated."""


class RoleError(MinidistError):
    """A rollout engine, teacher or learner failed or died."""


class ActorLostError(RoleError):
    """An actor is of no use any more: its process or its engine's died, it hung, or a call passed its deadline.

    Args:
        message: the sentence.
        actor: its name, such as `rollout 1`, `teacher` or `learner 0`.
    """

    def __init__(self, message: str, actor: str = "") -> None:
        super().__init__(message)
        self.actor = actor


class ClusterLostError(RoleError):
    """The Ray cluster of a run has died or hangs, and all actors with it."""


class ScoresLostError(RoleError):
    """Scores are gone that a learner needs; no optimizer step was taken with them."""
