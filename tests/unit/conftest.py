"""What all unit tests share."""

from collections.abc import Iterator

import pytest

from minidist.run.tracking import log


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """A stage that runs in this process sends the log to its own directory: the next test finds it as it was."""
    handlers, propagate = log.handlers, log.propagate
    yield
    log.handlers, log.propagate = handlers, propagate
