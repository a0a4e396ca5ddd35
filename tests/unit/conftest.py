"""What all unit tests share."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minidist.run.tracking import log


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """A stage that runs in this process sends the log to its own directory: the next test finds it as it was."""
    handlers, propagate = log.handlers, log.propagate
    yield
    log.handlers, log.propagate = handlers, propagate


@pytest.fixture
def learners() -> Iterator[list[Any]]:
    """A list for the learners that a test makes, which are closed after it."""
    made: list[Any] = []
    yield made
    for learner in made:
        asyncio.run(learner.close())


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run of `sft`, for all tests of a process, which leave it as it is."""
    from tests.support.trained import train

    return train(tmp_path_factory.mktemp("trained"))
