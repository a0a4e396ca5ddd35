"""200 malformed inputs, the same in each run: success or one sentence, in time, nothing written outside the run."""

import pytest

from tests.support.malformed_runner import hold

INPUTS = {
    "configurations": 60,
    "data": 40,
    "templates": 25,
    "runs": 25,
    "models": 10,
    "answers": 20,
    "caches": 8,
    "plans": 6,
    "commands": 6,
}


def test_two_hundred_inputs_are_tried() -> None:
    assert sum(INPUTS.values()) == 200


@pytest.mark.parametrize("kind", INPUTS)
def test_a_malformed_input_is_accepted_or_refused_in_a_sentence(kind: str) -> None:
    hold(kind, INPUTS[kind], derandomize=True)
