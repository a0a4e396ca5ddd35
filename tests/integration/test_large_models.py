"""Two ranks of a teacher and of a learner, neither of which ever holds the whole model."""

from pathlib import Path

from tests.support.large_processes import Measured, check, run_pair


def test_ranks_hold_their_parts_alone(tmp_path: Path) -> None:
    """A model of 50 MB, of which the tensors that are fetched at a time are a part that counts (tests/soak has one of 1 GB)."""
    found: Measured = run_pair(tmp_path, hidden_size=384, intermediate_size=1152, num_hidden_layers=7)
    assert 40e6 < found.model_bytes < 60e6
    check(found, loaded=0.85, student=1.9)
