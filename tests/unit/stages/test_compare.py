"""A comparison's configuration; and free distributions, which part of a teacher each fits first."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from minidist import losses
from minidist.config import CompareConfig, ToyConfig, load
from minidist.config.compare import merged
from minidist.config.toy import MixtureConfig, ZipfConfig
from minidist.errors import ConfigError, RunDirectoryError
from minidist.evaluation.figures import Figure
from minidist.preflight.checks import check_cell_directories
from minidist.preflight.compare import plan_compare
from minidist.preflight.lines import comparison_lines, shared_prompts_line
from minidist.run.directory import RunDirectory
from minidist.stages.compare import cost
from minidist.stages.ledger import Case, Ledger, settings
from minidist.stages.toy import fit, head_of, teacher, toy
from minidist.types import Prompt

CONFIGS = Path(__file__).parents[3] / "configs" / "compare"
BASE: dict[str, Any] = {
    "run": {"steps": 5},
    "student": {"model": "student"},
    "teacher": {"model": "teacher"},
    "data": {"prompts": {"path": "task:sort"}},
    "objective": {"type": "kd", "ratio": 0.3},
    "prefix": {"student": 0, "dataset": 1},
    "rollout": {"prompts_per_step": 4},
}


def read(tmp_path: Path, cells: dict[str, Any], overrides: tuple[str, ...] = (), **changes: Any) -> CompareConfig:
    tree = {"stage": "compare", "run": {"directory": str(tmp_path / "run")}, "base": BASE, "cells": cells}
    tree |= {"evaluation": {"test": {"path": "task:sort", "split": "test"}}} | changes
    file = tmp_path / "compare.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    config = load(file, overrides)
    assert isinstance(config, CompareConfig)
    return config


def test_a_cell_is_base_with_its_changes(tmp_path: Path) -> None:
    cells = {
        "gold": {},
        "own": {
            "objective": {"type": "reverse_kl"},
            "prefix": {},
            "rollout": {"max_new_tokens": 9},
            "learner.optimizer.lr": 0.5,
        },
    }
    config = read(tmp_path, cells, ("base.rollout.prompts_per_step=6", "cells.own.rollout.temperature=0.5"), seeds=[3, 4])
    gold, own = config.cell("gold", 3), config.cell("own", 4)
    assert (gold.objective.type, getattr(gold.objective, "ratio", None)) == ("kd", 0.3)
    assert gold.prefix.dataset == 1 and (own.prefix.dataset, own.prefix.student) == (0, 1)
    assert own.objective.type == "reverse_kl" and own.learner.optimizer.lr == 0.5
    assert (own.rollout.prompts_per_step, own.rollout.max_new_tokens, own.rollout.temperature) == (6, 9, 0.5)
    assert (own.run.seed, own.run.steps, own.run.directory) == (4, 5, tmp_path / "run" / "cells" / "own-seed4")
    assert config.base["rollout"] == {"prompts_per_step": 6}  # a cell's changes stay its own
    assert read(tmp_path, cells, ("run.overwrite=true",)).cell("own", 0).run.overwrite


def test_what_is_replaced_and_what_is_changed() -> None:
    assert merged({"method": "gkd", "run": {"steps": 2}}, {"objective": {"type": "k2"}}) == {
        "objective": {"type": "k2"},
        "run": {"steps": 2},
    }
    assert merged(BASE, {"method": "gkd"}).keys() == BASE.keys() - {"objective", "prefix"} | {"method"}
    assert merged(BASE, {"objective.ratio": 0.9})["objective"] == {"type": "kd", "ratio": 0.9}
    assert merged(BASE, {"objective": {"type": "kd"}})["objective"] == {"type": "kd"}
    assert merged({"a": {"b": {"c": 1}}}, {"a": {"b": {"d": 2}}}) == {"a": {"b": {"c": 1, "d": 2}}}


OWN: dict[str, Any] = {"objective": {"type": "reverse_kl"}, "prefix": {}}


@pytest.mark.parametrize(
    ("cells", "changes", "sentence"),
    [
        ({"a": {}, "b": {"objective": {"type": "kd", "ratioo": 1}}}, {}, r"cells\.b: unknown key .*; did you mean ratio\?"),
        (
            {"a": {"objective": {"type": "reversekl"}}},
            {},
            r"cells\.a: objective.type is 'reversekl'; .*did you mean reverse_kl",
        ),
        ({"a": {"objective": {"type": "minillm"}}}, {}, r"cells\.a: .*set prefix.student=1"),
        ({"a": {}, "b": {"student.model": "other"}}, {}, r"cells\.b: student.model is 'other', and 'student' in cells\.a"),
        ({"a": {}, "b": {"teacher.dtype": "bfloat16"}}, {}, r"cells\.b: teacher is .*set teacher in base only"),
        (
            {"a": {}, "b": {"data.max_prompt_tokens": 5}},
            {},
            r"cells\.b: data.max_prompt_tokens is 5, .* set data.max_prompt_tokens in",
        ),
        ({"a": {}, "b": {"rollout.engine": "hf"}}, {}, r"cells\.b: rollout.engine is 'hf'"),
        ({"a": {"teacher.payload": "top_k"}}, {}, r"set base.teacher.backend=hf and base.teacher.payload=hidden"),
        ({"a": {"teacher.backend": "vllm"}}, {}, r"on answers of the teacher too; set base.teacher.backend=hf"),
        ({"a": {"run.seed": 1}}, {}, r"cells\.a: run.seed is set by seeds"),
        ({"a": {"stage": "sft"}}, {}, r"cells\.a: every cell is a distillation"),
        ({"a/b": {}}, {}, r"cells\.a/b: a cell's name is part of a path"),
        ({"teacher": {}}, {}, r"cells\.teacher: .* not teacher"),
        ({"a": {}}, {"seeds": [1, 1]}, r"seeds are \[1, 1\]"),
        ({"a": {}}, {"evaluation": {}}, r"evaluation.test is missing"),
    ],
)
def test_a_mistake_in_any_cell_is_refused(tmp_path: Path, cells: Any, changes: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read(tmp_path, cells, **changes)


def test_cells_may_be_added_but_not_changed(tmp_path: Path) -> None:
    config = read(tmp_path, {"own": OWN})
    RunDirectory(config).share()
    RunDirectory(config.cell("own", 0)).start()
    more = read(tmp_path, {"own": OWN, "gold": {}}, seeds=[0, 1, 2, 3])
    RunDirectory(more).check()
    check_cell_directories(read(tmp_path, {"own": OWN}, ("base.run.steps=6",)), "own")  # the cell goes on
    changed = read(tmp_path, {"own": OWN}, ("base.canaries.every=6",))
    with pytest.raises(
        RunDirectoryError, match=r"cells.own has changed: .*canaries.every was 20 and is now 6.*cells.own.run.overwrite"
    ):
        plan_compare(changed)
    with pytest.raises(RunDirectoryError, match=r"evaluation\.test\.rows"):
        plan_compare(read(tmp_path, {"own": OWN}, ("evaluation.test.rows=7",)))
    RunDirectory(read(tmp_path, {"own": OWN}, ("run.overwrite=true", "evaluation.test.rows=7"))).share()
    assert {entry.name for entry in config.run.directory.iterdir()} == {".lock", "config.json"}


def test_the_comparison_of_the_package_is_valid() -> None:
    config = load(CONFIGS / "sort.yaml")
    assert isinstance(config, CompareConfig)
    assert config.cell("no_mix", 0).teacher_mix == 0 and config.cell("minillm_paper", 0).teacher_mix == 0.2


@pytest.mark.parametrize("given", [ZipfConfig(), MixtureConfig()])
def test_forward_kl_fits_the_head_first_and_reverse_kl_the_tail(given: Any) -> None:
    teacher_C = teacher(given)
    start = torch.stack([torch.randn(50, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in range(5)])
    halves, ends = {}, {}
    for name in ("forward_kl", "reverse_kl"):
        errors = fit(getattr(losses, name), teacher_C, start, lr=1.0, epochs=1500)
        halves[name] = [float(np.mean([int((row < row[0] / 2).nonzero()[0]) for row in part])) for part in errors]
        ends[name] = max(float(part[:, -1].max()) for part in errors)
    assert halves["forward_kl"][0] < halves["forward_kl"][1]  # head, tail
    assert halves["reverse_kl"][1] < halves["reverse_kl"][0]
    assert halves["forward_kl"][0] < halves["reverse_kl"][0]
    assert max(ends.values()) < 0.02


def test_teachers_and_their_heads() -> None:
    teacher_C = torch.tensor([0.1, 0.3, 0.2, 0.4], dtype=torch.float64)
    assert head_of(teacher_C).tolist() == [False, True, False, True]
    assert head_of(torch.tensor([0.5, 0.25, 0.25])).tolist() == [True, False, False]
    assert teacher(ZipfConfig(classes=3)).tolist() == pytest.approx([6 / 11, 3 / 11, 2 / 11])
    bells = teacher(MixtureConfig(classes=40, weights=[3, 1], width=2))
    assert int(bells.argmax()) in (9, 10) and float(bells[:20].sum()) == pytest.approx(0.75, abs=1e-3)


def test_one_step_of_the_fit_is_gradient_descent() -> None:
    teacher_C, start = torch.tensor([0.7, 0.3], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    head, tail = fit(losses.forward_kl, teacher_C, start, lr=0.5, epochs=1)
    after = 1 / (1 + np.exp(-2 * 0.5 * 0.2))  # logits 0.5 * (p - q) = +-0.1
    assert head[0].tolist() == pytest.approx([0.2, 0.7 - after]) and tail[0].tolist() == pytest.approx([0.2, 0.7 - after])


def toy_config(tmp_path: Path, **changes: Any) -> ToyConfig:
    tree = {"stage": "toy", "run": {"directory": str(tmp_path / "toy")}, "teachers": {"zipf": {"type": "zipf", "classes": 6}}}
    tree |= {
        "divergences": {"forward_kl": {}, "mixed": {"type": "jsd", "beta": 0.3}},
        "seeds": [0, 1],
        "epochs": 30,
        "points": 6,
    }
    file = tmp_path / "toy.yaml"
    file.write_text(yaml.safe_dump(tree | changes))
    config = load(file)
    assert isinstance(config, ToyConfig)
    return config


def test_toy_leaves_records_and_a_picture(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    asyncio.run(toy(config))
    records = json.loads((tmp_path / "toy" / "toy.json").read_text())
    assert [row["objective"] for row in records] == ["forward_kl", "mixed"]
    first = records[0]
    assert first["epochs"][0] == 0 and first["epochs"][-1] == 30 and len(first["head"][1]) == len(first["epochs"])
    assert first["head"][1][-1] == pytest.approx(first["head_end"][1], rel=1e-3)
    (tmp_path / "toy" / "toy.png").unlink()
    before = (tmp_path / "toy" / "toy.json").stat().st_mtime_ns
    asyncio.run(toy(config))  # draws, and fits nothing
    assert (tmp_path / "toy" / "toy.png").is_file() and (tmp_path / "toy" / "toy.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("divergences", "sentence"),
    [
        ({"kl": {}}, r"divergences.kl.type is 'kl'; expected one of reverse_kl, forward_kl"),
        ({"jsd": {"alpha": 1}}, r"unknown key divergences.jsd.alpha"),
        ({"jsd": {"beta": 1}}, r"beta of jsd is 1; "),
        ({"half": {"type": "akl", "mu": 2}}, r"divergences.half.mu is 2; .* less than or equal to 1"),
        ({"jsd": {"temperature": 2}}, r"divergences.jsd.temperature has no effect"),
    ],
)
def test_a_configuration_that_the_fit_would_refuse_is_refused_when_read(
    tmp_path: Path, divergences: Any, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        toy_config(tmp_path, divergences=divergences)


def test_a_record_holds_the_options_as_they_are_configured(tmp_path: Path) -> None:
    divergences = {"forward_kl": {}, "mixed": {"type": "jsd", "beta": 0.3}, "akl": {"mu": 0.4}}
    asyncio.run(toy(toy_config(tmp_path, divergences=divergences, epochs=1, points=2)))
    records = json.loads((tmp_path / "toy" / "toy.json").read_text())
    assert {row["objective"]: row["options"] for row in records} == divergences


FIT = {"teacher": "t", "objective": "o", "epochs": [0, 9], "head": [[1, 0.5]], "tail": [[1, 0.5]]}


@pytest.mark.parametrize(
    "records", [[], [{}], [1], [FIT | {"head": [["x"]]}], [FIT | {"head": []}], [FIT | {"tail": [[1]]}], [FIT | {"epochs": []}]]
)
def test_a_foreign_file_of_fits_is_a_sentence(tmp_path: Path, records: Any) -> None:
    config = toy_config(tmp_path)
    asyncio.run(toy(config))
    (tmp_path / "toy" / "toy.json").write_text(json.dumps(records))
    with pytest.raises(RunDirectoryError, match=r"toy\.json is of another shape .*; set run.overwrite=true to fit again"):
        asyncio.run(toy(config))


@pytest.mark.parametrize("text", ['{"time/update": 1', "[1]", '{"time/update": "x"}', '{"learner/loss_tokens": "x"}', "\xff"])
def test_damaged_metrics_of_a_cell_are_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"time/update": 1.5, "loss": 2}\n{"time/sync": 2}\n')
    assert cost(tmp_path) == {"seconds": 3.5}
    overlapped = '{"time/generate_s": 2, "time/update_s": 2.5, "speed/seconds_per_step": 3, "learner/loss_tokens": 70}\n'
    (tmp_path / "metrics.jsonl").write_text('{"time/update": 1.5, "loss": 2}\n' + overlapped)
    assert cost(tmp_path) == {"seconds": 4.5, "loss_tokens": 70}
    (tmp_path / "metrics.jsonl").write_text(text, encoding="latin-1")
    with pytest.raises(RunDirectoryError, match=r"metrics\.jsonl .*; set run.overwrite=true to train the cell again"):
        cost(tmp_path)


def test_a_record_without_settings_is_measured_again(tmp_path: Path) -> None:
    config, file = read(tmp_path, {"own": {}}, seeds=[0, 1]), tmp_path / "compare.json"
    recorded = {"objective": "own", "seed": 1, "settings": settings(config, Case("own", 1))}
    file.write_text(json.dumps([{"objective": "own", "seed": 0}, recorded]))
    assert Ledger(config, tmp_path).waiting() == [Case("own", 0)]


def test_a_cell_that_writes_ahead_says_so_in_its_record_and_shares_the_cores(tmp_path: Path) -> None:
    own = {"objective": {"type": "reverse_kl"}, "prefix": {}}
    config = read(tmp_path, {"plain": own, "ahead": own | {"loop": {"max_staleness": 1, "stream": True}}})
    plain, ahead = (settings(config, Case(name, 0)) for name in ("plain", "ahead"))
    assert "loop" not in plain, "records of earlier comparisons stay valid"
    assert ahead["loop"] == {"max_staleness": 1, "ratio_max": 2.0} and set(config.roles_at_once.values()) == {3}
    assert read(tmp_path, {"plain": own}).roles_at_once == {}


CHOOSE: dict[str, Any] = {"values": [0.1, 0.2], "validation": {"path": "task:sort", "split": "valid"}}
CELLS: dict[str, Any] = {"own": OWN, "gold": {}}


@pytest.mark.parametrize(
    ("changes", "cells", "sentence"),
    [
        (
            {"validation": {"path": "task:sort", "split": "test"}},
            {},
            r"choose.validation and evaluation.test are rows of task:sort",
        ),
        (
            {"validation": {"path": "task:sort", "split": "test", "seed": 1}},
            {},
            r"may share prompts; set choose.validation.split",
        ),
        ({}, {"own": OWN | {"learner.optimizer.lr": 0.5}}, r"cells.own sets learner.optimizer.lr, which choose.values sets"),
        ({}, {"own": OWN | {"learner": {"optimizer": {"lr": 0.5}}}}, r"cells.own sets learner.optimizer.lr"),
        ({"key": "rollout.prompts_per_step"}, {}, r"base sets rollout.prompts_per_step, which choose.values sets"),
        ({"key": "teacher.top_k"}, {}, r"choose.key is teacher.top_k, and all cells share teacher"),
        ({"key": "learner.optimizer.rate"}, {}, r"cells.own: unknown key learner.optimizer.rate"),
        ({"values": [0.1, 2e4]}, {}, r"cells.own: learner.optimizer.lr is 20000.0"),
        ({"values": [0.2, 0.1]}, {}, r"choose.values are \[0.2, 0.1\]; list each value once, from the smallest to the largest"),
        ({"values": [0.1]}, {}, r"choose.values is \[0.1\]; list should have at least 2 items"),
        ({"seeds": [3, 3]}, {}, r"choose.seeds are \[3, 3\]"),
        ({"by": "perplexity"}, {}, r"choose.by is 'perplexity'; input should be 'reverse_kl', 'forward_kl'"),
        ({"by": "rouge_l"}, {}, r"choose.by is rouge_l, which needs gold answers in text"),
        ({"by": "accuracy", "validation": {"path": "valid.jsonl"}}, {}, r"choose.by is accuracy, which only generated tasks"),
    ],
)
def test_a_choice_that_would_mean_nothing_is_refused(tmp_path: Path, changes: Any, cells: Any, sentence: str) -> None:
    read(tmp_path, CELLS, choose=CHOOSE)
    with pytest.raises(ConfigError, match=sentence):
        read(tmp_path, CELLS | cells, choose=CHOOSE | changes)


def test_validation_and_test_prompts_may_divide_a_file(tmp_path: Path) -> None:
    def divided(validation: dict[str, Any], test: dict[str, Any]) -> CompareConfig:
        sources = [{"path": "held.jsonl", **each} for each in (validation, test)]
        choose, evaluation = CHOOSE | {"validation": sources[0]}, {"test": sources[1]}
        return read(tmp_path, CELLS, choose=choose, evaluation=evaluation)

    divided({"skip": 10}, {"rows": 10})
    divided({"rows": 10}, {"skip": 10, "rows": 5})
    for validation, test in (({"skip": 9}, {"rows": 10}), ({"rows": 10}, {"skip": 9}), ({}, {"skip": 9}), ({}, {})):
        with pytest.raises(ConfigError, match=r"are rows of held.jsonl that overlap; choose another split or file, or divide"):
            divided(validation, test)


def test_a_cell_has_a_directory_for_each_value(tmp_path: Path) -> None:
    config = read(tmp_path, CELLS, choose=CHOOSE, seeds=[4])
    first, second = config.cell("own", 4), config.cell("own", 4, 0.2)
    assert (first.learner.optimizer.lr, second.learner.optimizer.lr) == (0.1, 0.2)
    assert second.run.directory == tmp_path / "run" / "cells" / "own-lr0.2-seed4"
    assert config.trial_seeds == [4] and config.values == [0.1, 0.2]
    plain = read(tmp_path, CELLS)
    assert plain.values == [None] and plain.trial_seeds == []


def test_cells_may_differ_in_their_prompts(tmp_path: Path) -> None:
    config = read(tmp_path, {"own": OWN, "gold": {"data.prompts": {"rows": 7}}})
    assert config.cell("gold", 0).data.prompts.rows == 7
    assert settings(config, Case("gold", 0))["prompts"]["rows"] == 7 and "prompts" not in settings(config, Case("own", 0))


def recorded(config: CompareConfig, case: Case, loss: float, **more: Any) -> dict[str, Any]:
    row = {"objective": case.name, "seed": case.seed, "settings": settings(config, case), "reverse_kl": loss}
    return row | {"steps": 5, "optimizer_steps": 5, "loss_tokens": 100, "seconds": 1.0} | more


def test_values_are_chosen_on_trials_and_only_those_are_run(tmp_path: Path) -> None:
    config = read(tmp_path, CELLS, choose=CHOOSE | {"values": [0.1, 0.2, 0.4]}, seeds=[0, 1])
    ledger = Ledger(config, tmp_path)
    trials = [Case(name, 0, value) for name in CELLS for value in (0.1, 0.2, 0.4)]
    assert ledger.waiting_trials() == trials and ledger.count == 2 * (3 + 1) and not ledger.has_baselines
    losses = {0.1: 0.5, 0.2: 0.3, 0.4: 0.3}
    for case in trials:
        assert case.value is not None
        ledger.add_trial(case, recorded(config, case, losses[case.value] if case.name == "own" else case.value))
    ledger = Ledger(config, tmp_path)  # as after a stop
    assert ledger.waiting_trials() == []
    assert ledger.waiting() == [Case("own", 0, 0.2), Case("gold", 0, 0.1), Case("own", 1, 0.2), Case("gold", 1, 0.1)]
    ledger.add(recorded(config, Case("own", 0, 0.2), 0.31))
    [row] = json.loads((tmp_path / "compare.json").read_text())
    assert row["choice"]["value"] == 0.2 and row["settings"]["chosen"] == {"learner.optimizer.lr": 0.2}
    assert row["choice"]["validation"]["0.4"] == {"reverse_kl": 0.3} and "value" not in row
    assert Ledger(config, tmp_path).waiting()[0] == Case("gold", 0, 0.1)


def test_a_value_that_is_added_is_tried_and_may_be_chosen(tmp_path: Path) -> None:
    config = read(tmp_path, {"own": OWN}, choose=CHOOSE, seeds=[0])
    ledger = Ledger(config, tmp_path)
    for case, loss in ((Case("own", 0, 0.1), 0.5), (Case("own", 0, 0.2), 0.4)):
        ledger.add_trial(case, recorded(config, case, loss))
    ledger.add(recorded(config, Case("own", 0, 0.2), 0.4))
    assert ledger.waiting_trials() == ledger.waiting() == []
    more = read(tmp_path, {"own": OWN}, choose=CHOOSE | {"values": [0.1, 0.2, 0.4]}, seeds=[0])
    ledger = Ledger(more, tmp_path)
    assert ledger.waiting_trials() == [Case("own", 0, 0.4)]
    ledger.add_trial(Case("own", 0, 0.4), recorded(more, Case("own", 0, 0.4), 0.3))
    assert ledger.waiting() == [Case("own", 0, 0.4)]


def test_the_page_has_the_choices_the_orders_and_what_is_uneven(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = {"own": OWN, "gold": {}, "jsd": {"objective": {"type": "jsd"}, "prefix": {}}, "lost": {}}
    config = read(tmp_path, cells, choose=CHOOSE, seeds=[0, 1])
    ledger, rng = Ledger(config, tmp_path), np.random.default_rng(0)
    base_P = rng.normal(1, 0.3, 80)
    for name in cells:
        for value, loss in zip(config.values, (0.5, 0.6), strict=True):
            ledger.add_trial(Case(name, 0, value), recorded(config, Case(name, 0, value), loss))
    for number, name in enumerate(cells):
        for seed in config.seeds:
            values_P = base_P + (0, 0.001, 1.0, 2.0)[number] + rng.normal(0, 0.01, 80)
            parts = {"reverse_kl": Figure(float(values_P.mean()), parts=values_P)}
            row = recorded(config, Case(name, seed, 0.1), float(values_P.mean()), loss_tokens=100 if name != "gold" else 200)
            failed = {"failed": "the loss is nan"} if (name, seed) == ("lost", 1) else {}
            ledger.add(row | failed, parts)
    ledger.show()
    page = (tmp_path / "table.md").read_text()
    assert "| own | **0.500** | 0.600 |" in page and "own: learner.optimizer.lr 0.1 is the smallest of the list" in page
    assert "Not the same budget: loss tokens are 100 in most cells, and differ in gold 200." in page
    assert "lost, seed 1, failed" in page and "figures of each prompt are missing: lost." in page
    pairs = json.loads((tmp_path / "orders.json").read_text())
    assert {(pair["better"], pair["worse"]) for pair in pairs if pair["holds"]} == {("own", "jsd"), ("gold", "jsd")}
    assert {pair["seeds"] for pair in pairs} == {2} and "orders.json" in capsys.readouterr().out


def test_the_comparisons_at_chosen_rates_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """All cells take equally many optimizer steps, and none has the prompts of the test to choose by."""
    monkeypatch.setenv("MINIDIST_DATA", "data")
    for file in ("sort-rates.yaml", "stories.yaml"):
        config = load(CONFIGS / file)
        assert isinstance(config, CompareConfig) and config.choose is not None and len(config.choose.values) == 3
        cells = [config.cell(name, 0) for name in config.cells]
        assert len({cell.run.steps * cell.objective.updates for cell in cells}) == 1
        assert not any("optimizer steps" in line for line in comparison_lines(config))
    uneven = load(CONFIGS / "stories.yaml", ("cells.sft.run.steps=7",))
    assert isinstance(uneven, CompareConfig)
    lines = comparison_lines(uneven)
    assert any(
        "warning: cells take 40 optimizer steps, but cells.sft takes 7: change their run.steps" in line for line in lines
    )
    assert any("17 cells x 5 runs: 3 to choose, 1 of them kept" in line for line in lines)


def test_prompts_in_both_held_out_sets_are_counted() -> None:
    def prompts(*texts: str) -> list[Prompt]:
        return [Prompt(index, np.zeros(1, np.int32), text) for index, text in enumerate(texts)]

    assert shared_prompts_line([prompts("a", "b"), prompts("b", "c", "b")]) == [
        "warning: 1 of the test prompts also stand among the validation prompts of the choice"
    ]
    assert shared_prompts_line([prompts("a"), prompts("b")]) == shared_prompts_line([prompts("a")]) == []
