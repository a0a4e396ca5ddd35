"""Reading a configuration: files, overrides, environment variables, and the round trip through JSON."""

from pathlib import Path

import pytest

from minidist.config import CONFIGS, DistillConfig, SftConfig, dump, load
from minidist.errors import ConfigError
from tests.support.config import TREES, assert_refused, load_stage, refusal

CONFIG_FILES = sorted(path for path in (Path(__file__).parents[3] / "configs").rglob("*.yaml") if path.parent.name != "prompts")


@pytest.mark.parametrize("stage", TREES)
def test_smallest_configuration_and_round_trip(tmp_path: Path, stage: str) -> None:
    config = load_stage(tmp_path, stage)
    assert type(config) is CONFIGS[stage]
    assert CONFIGS[stage].model_validate(dump(config)) == config
    assert dump(CONFIGS[stage].model_validate(dump(config))) == dump(config)


REFUSED = [
    ("sft", ["run.steps"], ["override 'run.steps'", "section.key=value"]),
    ("sft", ["=3"], ["override '=3'", "section.key=value"]),
    ("sft", ["run.steps.x=3", "run.steps.y=3"], ["run.steps"]),
    ("sft", ["stage.x=3"], ["override 'stage.x=3'", "stage is a value, not a section"]),
    ("sft", ["run.steps=[1"], ["override 'run.steps=[1'"]),
    ("sft", ["run.directory=${MINIDIST_NOWHERE}/x"], ["run: directory", "${MINIDIST_NOWHERE}", "export MINIDIST_NOWHERE="]),
    ("sft", ["stage=train"], ["stage is 'train'", "sft, distill, evaluate"]),
    ("sft", ["stage=[sft]"], ["stage is ['sft']", "sft, distill, evaluate"]),
    ("sft", ["stage=null"], ["stage is None"]),
    ("sft", ["learner.optimizer.lr=.inf"], ["learner.optimizer.lr is inf; input should be a finite number"]),
    ("sft", ["learner.optimizer.lr=1e38"], ["learner.optimizer.lr is '1e38'; input should be less than or equal to 10000"]),
    ("sft", ["learner.optimizer.betas=[2,0]"], ["learner.optimizer.betas.0 is 2; input should be less than 1"]),
]


@pytest.mark.parametrize("text", ["run: {steps: 1, steps: 2}\n", "run: {}\nstage: sft\nrun: {}\n"])
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "twice.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"the key '(steps|run)' stands twice in one section; keep one of the two"):
        load(tmp_path / "twice.yaml")


def test_a_merged_section_may_replace_keys(tmp_path: Path) -> None:
    (tmp_path / "merged.yaml").write_text("x: &x {steps: 1}\nrun: {<<: *x, steps: 2}\n")
    with pytest.raises(ConfigError, match="stage is None"):
        load(tmp_path / "merged.yaml")


@pytest.mark.parametrize(("stage", "overrides", "parts"), REFUSED, ids=[" ".join(case[1]) for case in REFUSED])
def test_wrong_overrides_and_stages_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, overrides: list[str], parts: list[str]
) -> None:
    monkeypatch.delenv("MINIDIST_NOWHERE", raising=False)
    assert_refused(tmp_path, stage, overrides, parts)


@pytest.mark.parametrize(
    ("text", "part"), [("a: [1", "not valid YAML"), ("- a", "must hold sections"), ("", "must hold sections")]
)
def test_file_that_is_no_configuration(tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    assert part in refusal(file)


def test_no_such_file(tmp_path: Path) -> None:
    assert "no configuration file" in refusal(tmp_path / "none.yaml")


def test_overrides_are_yaml_and_the_last_one_holds(tmp_path: Path) -> None:
    config = load_stage(
        tmp_path,
        "sft",
        "run.steps=7",
        "run.steps=8",
        "learner.optimizer.betas=[0.8,0.99]",
        "evaluation.every=null",
        "student.tokenizer=a=b",
    )
    assert isinstance(config, SftConfig)
    assert config.run.steps == 8
    assert config.learner.optimizer.betas == (0.8, 0.99)
    assert config.evaluation.every is None
    assert config.student.tokenizer == "a=b"


def test_override_makes_the_sections_on_its_way(tmp_path: Path) -> None:
    config = load_stage(tmp_path, "distill", "data.validation.path=task:sort", "data.validation.split=valid")
    assert isinstance(config, DistillConfig)
    assert config.data.validation is not None and config.data.validation.split == "valid"


def test_environment_is_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIDIST_PLACE", "here")
    config = load_stage(tmp_path, "evaluate", "run.directory=${MINIDIST_PLACE}/a", "models={one: '${MINIDIST_PLACE}/b'}")
    assert str(config.run.directory) == "here/a"
    assert config.models == {"one": "here/b"}


def test_configuration_does_not_change_once_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_stage(tmp_path, "sft").run.steps = 3


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: "/".join(path.parts[-2:]))
def test_shipped_configuration_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINIDIST_DATA", str(tmp_path))
    monkeypatch.setenv("MINIDIST_TEXT", str(tmp_path / "text.jsonl"))
    monkeypatch.setenv("MINIDIST_PROMPTS", str(tmp_path / "prompts.jsonl"))
    load(path)
