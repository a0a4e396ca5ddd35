"""Two ranks of a teacher and of a learner on a model of 1 GB, and the memory that each takes."""

from pathlib import Path

from tests.support.large_processes import Measured, check, run_pair


def test_ranks_hold_their_parts_alone(tmp_path: Path) -> None:
    found: Measured = run_pair(tmp_path, hidden_size=1024, intermediate_size=3072, num_hidden_layers=20)
    assert 900e6 < found.model_bytes < 1100e6
    check(found, loaded=0.7, student=1.9)
