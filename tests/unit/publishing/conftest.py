"""One finished run for all tests of a process."""

from pathlib import Path

import pytest

from tests.support.trained import train


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("trained"))
