"""The table of stages: every row is complete, and the command line is made from it."""

import inspect

import pytest

from minidist.config import CONFIGS
from minidist.stages import STAGES, code, roles_of, verbs
from tests.support.config import TREES


def test_every_configuration_has_a_stage_and_every_stage_a_configuration() -> None:
    assert STAGES.keys() == CONFIGS.keys()


@pytest.mark.parametrize("name", STAGES)
def test_every_row_names_code_that_exists(name: str) -> None:
    stage = STAGES[name]
    assert callable(code(stage.plan)) and inspect.iscoroutinefunction(code(stage.run))
    assert stage.show is None or callable(code(stage.show))


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_called_with_its_roles_or_hosts_its_own(name: str) -> None:
    stage = STAGES[name]
    assert len(inspect.signature(code(stage.run)).parameters) == (1 if stage.alone else 2)


def test_stages_that_share_a_verb_are_one_command() -> None:
    assert list(verbs()) == ["sft", "distill", "teach", "evaluate", "generate", "score", "compare"]
    assert {name for name, stage in STAGES.items() if stage.verb != name} == {
        "compare_lessons",
        "evaluate_programs",
        "score_table",
        "toy",
    }


def test_stages_need_the_roles_they_use() -> None:
    assert {name: roles_of(CONFIGS[name].model_validate(tree)) for name, tree in TREES.items()} == {
        "sft": ("learner",),
        "distill": ("rollout", "teacher", "learner"),
        "teach": ("learner",),
        "evaluate": ("rollout", "teacher", "learner"),
        "score": ("teacher",),
    }
