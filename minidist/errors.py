"""Errors, named by who can mend them.

A `UserError` is mended by changing a configuration, a path or a data file: the command line prints its one sentence
and leaves with code 2, before any model is loaded. Every other `MinidistError` stops a run that had begun: code 1.
Each message says where, what was expected, what was found, and what to do. All of them pickle, since they cross Ray.
"""


class MinidistError(Exception):
    """Base of every error that minidist raises on purpose."""

    exit_code = 1


class UserError(MinidistError):
    """Something the user can mend before the run starts."""

    exit_code = 2


class ConfigError(UserError, ValueError):
    """A configuration that cannot be run: unknown key, impossible value, or two sections that contradict each other."""


class DataError(UserError, ValueError):
    """A data file without the configured column, or with rows that cannot be used."""


class ModelError(UserError, ValueError):
    """A model or tokenizer that is missing, or a pair of them that does not fit together."""


class RunDirectoryError(UserError, FileExistsError):
    """A run directory that already holds another configuration."""


class CanaryError(MinidistError):
    """A silent error made loud: two numbers that must agree do not."""


class DivergedError(CanaryError):
    """Loss or gradient is not finite. Raised before the optimizer moves, so the weights are still good."""


class AlarmError(MinidistError):
    """A run ended by an alarm that its configuration names. Its checkpoint is written, and it can be gone on with."""


class RoleError(MinidistError):
    """A rollout engine, teacher or learner failed or died."""
