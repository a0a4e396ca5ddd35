"""What protects a run on a machine that others use: its directory is closed, and so is the file of Ray's token."""

import os
import stat
from pathlib import Path

from tests.integration.conftest import Stack


def test_the_files_of_a_run_are_closed_to_others(stack: Stack) -> None:
    scratch = stack.cluster._scratch.path
    assert stat.S_IMODE(scratch.stat().st_mode) == 0o700
    assert any((scratch / "ray").glob("session_*")), "Ray's directory is inside, since Ray opens it to all"
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    assert not token.exists() or stat.S_IMODE(token.stat().st_mode) == 0o600
