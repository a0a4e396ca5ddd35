"""The equalities of `tests/gpu`, on a CPU."""

from tests.integration.conftest import Stack, settings
from tests.support import on_device


def test_engine_and_learner_agree_after_each_update(stack: Stack) -> None:
    on_device.engine_and_learner_agree_after_each_update(stack)


def test_rows_of_one_micro_batch_are_rows_alone(stack: Stack) -> None:
    on_device.rows_of_one_micro_batch_are_rows_alone(stack)


def test_a_split_engine_takes_new_weights(stack: Stack) -> None:
    """The student's own weights: the engine is made of the files that the plain learner starts from."""
    learner = stack.host_learner(settings(backend="single"))
    engine = stack.host_engine(stack.student, parts=2)
    try:
        on_device.a_split_engine_takes_new_weights(stack, engine, learner)
    finally:
        stack.dismiss(engine)
        stack.dismiss(learner)
