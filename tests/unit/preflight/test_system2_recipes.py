"""The recipes for word problems, checked on the real rows and a model's shape; skipped where MINIDIST_DATA is absent."""

import json
import os
from pathlib import Path

import pytest

from minidist.config import EvaluateProgramsConfig, GenerateConfig, SftConfig, load
from minidist.preflight.generate import plan_generate, plan_programs
from minidist.preflight.plan import plan_sft
from minidist.system2.answers import NORMALISERS, final_answer
from minidist.system2.rows import gold_form
from tests.unit.preflight.test_recipes import MODELS, save

ROOT = Path(__file__).parents[3]
RECIPES = ROOT / "configs" / "recipes" / "system2-gsm8k"
HOME = Path(os.environ.get("MINIDIST_DATA", "/nowhere"))
pytestmark = pytest.mark.skipif(not (HOME / "gsm8k").is_dir(), reason="MINIDIST_DATA does not name the shared data")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("model"), MODELS["qwen2.5-7b-to-1.5b"][0])


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipes name their prompts by paths from the repository."""
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(("changes", "kind"), [((), "chain_of_thought"), (("program.type=direct",), "direct")])
def test_thinking_is_planned(tmp_path: Path, model: str, changes: tuple[str, ...], kind: str) -> None:
    overrides = [f"model.model={model}", f"run.directory={tmp_path / 'run'}", "cluster.gpus=0", *changes]
    config = load(RECIPES / "think.yaml", overrides)
    assert isinstance(config, GenerateConfig)
    lines = "\n".join(plan_generate(config).lines)
    assert f"10 samples of {kind}, filter majority" in lines and "1,543.7" in lines


def test_svamp_is_planned_with_the_same_recipe(tmp_path: Path, model: str) -> None:
    overrides = [
        f"model.model={model}",
        f"run.directory={tmp_path / 'run'}",
        "cluster.gpus=0",
        "data.rows.path=${MINIDIST_DATA}/svamp/train.jsonl",
    ]
    config = load(RECIPES / "think.yaml", overrides)
    assert isinstance(config, GenerateConfig)
    assert plan_generate(config).rows > 600


def test_training_on_the_kept_answers_is_planned(tmp_path: Path, model: str) -> None:
    kept = [{"question": f"{n} + {n}?", "answer": str(2 * n)} for n in range(50)]
    (tmp_path / "kept.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    overrides = [
        f"student.model={model}",
        f"run.directory={tmp_path / 'run'}",
        "cluster.gpus=0",
        f"data.train.path={tmp_path / 'kept.jsonl'}",
    ]
    config = load(RECIPES / "distil.yaml", [*overrides, "data.mix.instructions.rows=200"])
    assert isinstance(config, SftConfig)
    plan = plan_sft(config)
    assert len(plan.examples) == 50 and len(plan.mix["instructions"]) == 200


def test_the_comparison_is_planned(tmp_path: Path, model: str) -> None:
    systems = ["System 1", "System 2", "System 2 of 10", "distilled", "control"]
    overrides = [
        f"run.directory={tmp_path / 'run'}",
        "cluster.gpus=0",
        *(f"systems.{name}.model.model={model}" for name in systems),
    ]
    config = load(RECIPES / "evaluate.yaml", overrides)
    assert isinstance(config, EvaluateProgramsConfig) and list(config.systems) == systems
    lines = plan_programs(config).lines
    assert any(line.startswith("System 2 of 10: rows: 1,1") and "10 samples of chain_of_thought" in line for line in lines)


def problems(*files: str) -> list[dict[str, object]]:
    from minidist.config.data import SourceConfig
    from minidist.data.files import read_source

    return [row for file in files for row in read_source(SourceConfig(path=str(HOME / file)))]


def test_every_gold_answer_of_gsm8k_is_the_number_after_the_mark() -> None:
    rows = problems("gsm8k/train.jsonl.gz", "gsm8k/test.jsonl")
    assert len(rows) > 8000
    for row in rows:
        after = str(row["answer"]).split("#### ")[1].replace(",", "")
        assert gold_form(row["answer"], "number") == after


def test_replies_with_the_gold_number_are_right_in_every_way_of_writing_it() -> None:
    normalise = NORMALISERS["number"]
    for row in problems("gsm8k/test.jsonl"):
        gold, number = gold_form(row["answer"], "number"), str(row["answer"]).split("#### ")[1]
        grouped = f"{int(number.replace(',', '')):,}"
        for reply in (
            f"The answer is {number}.",
            f"so it is\n#### {grouped}",
            f"It costs ${grouped}.00.",
            f"Answer: **{number}**",
        ):
            assert normalise(final_answer(reply)) == gold
        assert normalise(final_answer(f"The answer is {number}1.")) != gold


def test_gold_answers_of_svamp_equal_numbers_without_their_zeros() -> None:
    rows = problems("svamp/train.jsonl", "svamp/test.jsonl")
    assert len(rows) > 800
    for row in rows:
        assert gold_form(row["answer"], "number") == str(int(float(str(row["answer"]))))
