"""Slow: the signal that tests/integration sends to a run in one process, sent to a run in Ray actors."""

import signal
from pathlib import Path

from tests.integration import test_runs
from tests.integration.test_runs import Started

models, nothing_left, undisturbed = test_runs.models, test_runs.nothing_left, test_runs.undisturbed


def test_sigterm_ends_a_run_in_ray_actors_which_resumes_as_if_undisturbed(
    models: Path, undisturbed: list[dict[str, float]], nothing_left: Started
) -> None:
    interrupt = test_runs.test_an_interrupted_run_leaves_nothing_behind_and_resumes_as_if_undisturbed
    interrupt(models, undisturbed, nothing_left, signal.SIGTERM, {}, None)
