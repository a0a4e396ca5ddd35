"""Tasks: presets, kinds and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

import minidist
from minidist.config.glue import TASKS
from minidist.config.task import ChoicesTask, TaskConfig

PROMPTS = sorted((Path(minidist.__file__).parents[1] / "configs/teach/prompts").glob("*.yaml"))


def parse(**task: Any) -> Any:
    return TypeAdapter[Any](TaskConfig).validate_python(task)


@pytest.mark.parametrize("name", TASKS)
def test_every_preset_is_a_task(name: str) -> None:
    task = parse(glue=name)
    assert task.kind == ("score" if name == "stsb" else "classes")
    assert task.metrics[0] == {"cola": "matthews", "mrpc": "f1", "qqp": "f1", "stsb": "pearson"}.get(name, "accuracy")
    assert len(task.class_names) == {"stsb": 0, "mnli": 3, "cb": 3}.get(name, 2)


def test_the_file_overrides_the_preset() -> None:
    task = parse(glue="sst2", text="{{ review }}", names=["bad", "good"], metrics=["matthews"])
    assert (task.text, task.class_names, task.metrics) == ("{{ review }}", ["bad", "good"], ["matthews"])


@pytest.mark.parametrize("path", PROMPTS, ids=lambda path: path.stem)
def test_every_prompt_has_an_answer_for_each_class_of_its_task(path: Path) -> None:
    task = parse(glue=path.stem.split("_")[0], type="choices", template=str(path))
    assert isinstance(task, ChoicesTask) and len(task.choices) == len(TASKS[path.stem.split("_")[0]]["names"])
    assert all(choice.startswith(" ") for choice in task.choices) and "{{" in task.prompt


def test_four_tasks_have_two_prompts_each() -> None:
    names = [path.stem.split("_")[0] for path in PROMPTS]
    assert {name: names.count(name) for name in ("sst2", "qnli", "mnli", "mrpc")} == dict.fromkeys(
        ("sst2", "qnli", "mnli", "mrpc"), 2
    )


@pytest.mark.parametrize(
    ("task", "part"),
    [
        ({"glue": "sst"}, "task.glue is 'sst'; expected one of cola, sst2"),
        ({"type": "classes"}, "names"),
        ({"type": "choices", "prompt": "a", "choices": [" b", " c"], "names": ["x", "y", "z"]}, "2 answers for 3 classes"),
        ({"type": "choices", "template": "missing.yaml", "names": ["x", "y"]}, "task.template: missing.yaml cannot be read"),
        ({"type": "score", "names": ["a"]}, "names"),
        ({"glue": "sst2", "metrics": ["auc"]}, "metrics"),
        (
            {"glue": "sst2", "metrics": ["pearson"]},
            "task.metrics has pearson, which measures no task of type classes; use some of",
        ),
        ({"type": "score", "metrics": ["accuracy"]}, "which measures no task of type score; use some of pearson, spearman"),
        ({"type": "masked", "metrics": ["f1"]}, "measures no task of type masked"),
        ({"glue": "mnli", "metrics": ["f1"]}, "f1, that of class 1 alone, and the task 3 classes; use macro_f1"),
        ({"names": ["a", "b", "a"]}, "task.names has 'a' twice"),
        ({"names": ["a", " "]}, "task.names has ' '; give names without blanks around them"),
        ({"names": ["a ", "b"]}, "task.names has 'a '; give names without blanks around them"),
        ({"glue": "sst2", "type": "tokens"}, "task.glue sst2 is a task of type classes or choices, and task.type is tokens"),
        ({"glue": "stsb", "type": "classes"}, "task.glue stsb is a task of type score, and task.type is classes"),
    ],
    ids=str,
)
def test_what_is_refused(task: dict[str, Any], part: str) -> None:
    with pytest.raises(ValidationError) as error:
        parse(**task)
    assert part in str(error.value)
