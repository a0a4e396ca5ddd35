"""The page of runs: what it shows, that it needs no network, and that nothing in a run's files breaks or leaves it."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from minidist.errors import ConfigError, DataError
from minidist.report import page as page_module
from minidist.report.page import Report
from minidist.report.runs import Reader
from tests.support.runs import Parsed, write_run

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u202e\x1b[31m\x00'\"&amp;"


def page_of(*paths: Path) -> tuple[str, Parsed]:
    page = Report(paths).page()
    return page, Parsed(page)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs that differ by seed, and one with another objective."""
    root = tmp_path_factory.mktemp("runs")
    runs = [write_run(root / f"reverse-{seed}", seed=seed) for seed in (0, 1)]
    return [*runs, write_run(root / "jsd-0", objective={"type": "jsd"})]


@pytest.fixture(scope="module")
def parsed(seeds: list[Path]) -> Parsed:
    return page_of(*seeds)[1]


def test_runs_that_differ_only_by_seed_are_one_curve_with_a_band(parsed: Parsed) -> None:
    reverse, jsd = parsed.figures["loss/nats_per_token"]["series"]
    assert (reverse["name"], jsd["name"]) == ("reverse", "jsd-0")
    assert len(reverse["low"]) == len(reverse["high"]) == len(reverse["y"]) == 60 and "low" not in jsd
    assert reverse["x"][:2] == [1, 2] and reverse["colour"] != jsd["colour"]


def test_every_recorded_metric_has_a_figure_and_a_standard_error_is_a_band(parsed: Parsed) -> None:
    for name in (
        "policy/reward_mean_nats",
        "rollout/length_mean_tokens",
        "memory/peak_gib",
        "time/score_s",
        "cluster/restarts",
    ):
        assert name in parsed.figures
    assert "evaluation/accuracy_se" not in parsed.figures
    one = parsed.figures["evaluation/accuracy"]["series"][1]
    assert (one["y"], one["low"], one["high"]) == ([0.3, 0.8], [0.28, 0.78], [0.32, 0.82])


def test_before_and_after(parsed: Parsed) -> None:
    text = re.sub(r"\s+", " ", parsed.text)
    assert "reverse: before" in text and "30 ± 0 %" in text and "80 ± 0 % better" in text and "from 0.9" in text


def test_health_names_alarms_and_restarts(parsed: Parsed) -> None:
    assert "truncated answers at step 3: 0.6 is above 0.5" in parsed.text
    assert "teacher 1 2, rollout 3 given up" in parsed.text and "3.00e-07" in parsed.text


def test_alarms_of_a_run_that_goes_on_are_those_of_its_log(tmp_path: Path) -> None:
    _, parsed = page_of(write_run(tmp_path / "live", finished=False))
    assert "length collapse at step 7: 0.4 of the first is below 0.5" in parsed.text and "running" in parsed.text


def test_where_the_time_went(parsed: Parsed) -> None:
    bars = {bar["name"]: bar["x"] for bar in parsed.figures["Where the time of a step goes"]["data"]}
    assert bars["score"] == pytest.approx([0.2, 0.2]) and bars["other"] == pytest.approx([0.1, 0.1])
    assert "where the time of 60 steps went" in parsed.text


def test_a_step_is_drawn_without_the_parts_of_calls(parsed: Parsed) -> None:
    bars = parsed.figures["reverse-0/timeline.json"]["data"]
    found = {
        (bar["name"], row): (base, length)
        for bar in bars
        for row, base, length in zip(bar["y"], bar["base"], bar["x"], strict=True)
    }
    assert found["update", "learner"] == pytest.approx((0.6, 0.2), abs=1e-5), "and not 0.08 s of its forward pass"
    assert found["generate", "rollout"] == pytest.approx((0.0, 0.2), abs=1e-5), "a stream is generation"
    assert ("other", "learner") in found and len(found) == len(bars) + 2


def test_figures_are_accepted_by_plotly(parsed: Parsed) -> None:
    from plotly.graph_objects import Figure

    for figure in parsed.figures.values():
        if figure["kind"] == "plotly":
            plain = json.loads(re.sub(r"var\(--[a-z0-9-]+\)", "#000000", json.dumps(figure)))
            Figure(data=plain["data"], layout=plain["layout"])


def test_samples_have_their_tokens_coloured(seeds: list[Path], parsed: Parsed) -> None:
    tokens = [values for tag, values in parsed.elements if tag == "span" and "title" in values]
    assert len(tokens) == 2 * 2 * 2 * 5, "groups, steps, answers, tokens"
    assert {str(values["class"]).split()[1].rstrip("12345") for values in tokens} <= {"student", "teacher", "none"}
    assert any("chosen" in str(values["class"]) for values in tokens) and "Sort: b a" in parsed.text
    row = json.loads((seeds[0] / "rollouts" / "step_000001.jsonl").read_text().splitlines()[0])
    q, p = row["student_logprobs"][0], row["teacher_logprobs"][0]
    assert f"log q {q:.3f}, log p {p:.3f}, difference {q - p:+.3f} nats" in [values["title"] for values in tokens]


def test_settings_that_differ_are_compared_and_seeds_do_not_count(parsed: Parsed) -> None:
    differing = parsed.text.partition("All settings of")[0].rpartition("setting")[2]
    assert "objective.type" in differing and '"jsd"' in differing and "run.seed" not in differing


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["teacher"] |= {"server": {"api_key": "k-123", "url": "http://me:pw9@host/v1"}}
    (run / "config.json").write_text(json.dumps(config))
    page, parsed = page_of(run)
    assert "k-123" not in page and "pw9" not in page and "http://...@host/v1" in parsed.text


def test_the_page_asks_the_network_for_nothing_and_runs_its_own_scripts_alone(seeds: list[Path]) -> None:
    page, parsed = page_of(*seeds)
    for tag, values in parsed.elements:
        assert tag not in ("iframe", "object", "embed", "base"), tag
        assert str(values.get("src") or "data:").startswith("data:"), values
        assert str(values.get("href") or "#").startswith(("#", "data:")), values
        assert not any(name.startswith("on") for name in values), values
    policy = next(str(values["content"]) for tag, values in parsed.elements if values.get("http-equiv"))
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "connect-src" not in policy
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 2, "Plotly once, and the page's own"
    for script in scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy


def test_text_of_files_is_shown_and_does_nothing(tmp_path: Path) -> None:
    """Hostile text at every place: names of metrics and runs, settings, alarms, prompts, tokens, tables, problems."""
    run = write_run(tmp_path / "run <b>&")
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": 3, HOSTILE: 1.0, f"evaluation/{HOSTILE}": 2.0}) + "\n")
        stream.write(json.dumps({"step": 4, f"evaluation/{HOSTILE}": 2.0}) + "\n")
    config = json.loads((run / "config.json").read_text())
    config["student"]["model"] = config[HOSTILE] = HOSTILE
    (run / "config.json").write_text(json.dumps(config))
    known = json.loads((run / "summary.json").read_text())
    known["canaries"]["alarms"], known["stage"] = [HOSTILE], HOSTILE
    (run / "summary.json").write_text(json.dumps(known))
    row = {"prompt": HOSTILE, "answer": HOSTILE, "finish": HOSTILE, "tokens": [1], "pieces": [HOSTILE]}
    row |= {"student_logprobs": [-1.0], "teacher_logprobs": [None]}
    (run / "rollouts" / "step_000002.jsonl").write_text(json.dumps(row) + "\n" + HOSTILE.replace("\x00", "") + "\n")
    (run / "table.md").write_text(f"| {HOSTILE} | b |\n|---|---|\n| {HOSTILE} | 1 |\n\n# {HOSTILE}\n{HOSTILE}\n")
    (run / "timeline.json").write_text((run / "timeline.json").read_text().replace('"driver"', json.dumps(HOSTILE), 1))
    page, parsed = page_of(run)
    assert sum(tag == "script" and "type" not in values for tag, values in parsed.elements) == 2
    assert [tag for tag, values in parsed.elements if any(name.startswith("on") for name in values)] == []
    assert not {"\u202e", "\x1b", "\x00"} & set(page)
    assert parsed.text.count("<img src=x onerror=alert(2)>") >= 9
    for figure in parsed.figures.values():
        assert not {"<img", "<script"} & set(re.findall(r"<\w+", json.dumps(figure))), "Plotly reads tags in its texts"


BROKEN = ["", "{", "[]", "7", '"x"', "null", "[" * 100_000, "\x00\xff", '{"a": NaN}', '{"stage": 7, "run": [], "summary": {}}']
NAMES = ["config.json", "summary.json", "metrics.jsonl", "timeline.json", "rollouts/step_000060.jsonl", "influence.jsonl"]


@pytest.mark.parametrize("name", [*NAMES, "compare.json", "result.json", "table.md", "compare.png", "log.txt"])
def test_a_broken_file_is_named_and_the_rest_is_shown(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "run")
    for text in BROKEN:
        (run / name).write_bytes(text.encode("latin-1"))
        page, parsed = page_of(run)
        assert "Traceback" not in page and "Overview" in parsed.text
        if name in ("config.json", "summary.json") and text not in ('{"a": NaN}',):
            assert str(run / name) in parsed.text, text[:20]
    (run / name).unlink()
    assert "Overview" in page_of(run)[1].text


@pytest.mark.parametrize(
    "place", [("canaries",), ("canaries", "alarms"), ("time",), ("time", "account"), ("time", "account", "phases")]
)
@pytest.mark.parametrize("value", [None, 7, "x", [], [1], {}, {"a": {}}])
def test_a_summary_of_another_version_loses_its_own_section_alone(tmp_path: Path, place: tuple[str, ...], value: Any) -> None:
    run = write_run(tmp_path / "run", steps=3)
    known = json.loads((run / "summary.json").read_text())
    inner = known
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (run / "summary.json").write_text(json.dumps(known))
    page, parsed = page_of(run)
    assert "loss/nats_per_token" in parsed.figures and "Configuration" in parsed.text and "Traceback" not in page


def test_a_run_that_has_written_nothing_yet_is_shown(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"stage": "distill", "run": {"steps": 5}}')
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    assert "Overview" in page_of(tmp_path / "run")[1].text


def test_directories_without_a_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no run directory at .*none; give the run.directory of a run"):
        Report([tmp_path / "none"])
    with pytest.raises(DataError, match=r"holds no run: none of config.json"):
        Report([tmp_path])


def test_without_plotly_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch, seeds: list[Path]) -> None:
    page_module._plotly.cache_clear()
    monkeypatch.setattr(page_module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package plotly, which is not installed; pip install"):
        Report(seeds[:1]).page()
    page_module._plotly.cache_clear()


def test_cells_of_a_comparison_are_its_runs(tmp_path: Path) -> None:
    root = tmp_path / "sort"
    for seed in (0, 1):
        write_run(root / "cells" / f"akl-seed{seed}", seed=seed, steps=4, objective={"type": "akl"})
        write_run(root / "cells" / f"gkd-seed{seed}", seed=seed, steps=4)
    (root / "config.json").write_text('{"stage": "compare"}')
    records = [{"objective": name, "seed": seed, "accuracy": 0.5 + seed / 10} for name in ("akl", "gkd") for seed in (0, 1)]
    (root / "compare.json").write_text(json.dumps(records))
    report = Report([root])
    page = report.page()
    assert [series["name"] for series in Parsed(page).figures["loss/nats_per_token"]["series"]] == ["akl", "gkd"]
    write_run(root / "cells" / "jsd-seed0", steps=4, objective={"type": "jsd"})
    assert len(Parsed(report.body()).figures["loss/nats_per_token"]["series"]) == 3, "a cell that the comparison adds"
    assert "data:image/png;base64,iVBOR" in page, "the picture is drawn from the records where it is missing"


def test_influence_of_rows(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text('{"stage": "teach"}')
    points = [
        {"step": step, "row": row, "influence": row + step / 10, "sampled": row > 1} for step in (0, 10) for row in (1, 2, 3)
    ]
    (run / "influence.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points) + '{"step": 20, "ro')
    series = page_of(run)[1].figures["influence.jsonl"]["series"]
    assert [each["name"] for each in series] == ["mean of 2 rows, middle half", "row 1"]
    assert (series[0]["y"], series[0]["low"], series[1]["y"]) == ([2.5, 3.5], [2.25, 3.25], [1, 2])


def test_a_table_of_an_evaluation_and_a_generation_are_shown(tmp_path: Path) -> None:
    for name, stage in (("eval", "evaluate"), ("gen", "generate")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"stage": stage}))
    (tmp_path / "eval" / "result.json").write_text('{"distilled": {"accuracy": 0.75, "accuracy_se": 0.01, "run": "x"}}')
    (tmp_path / "gen" / "summary.json").write_text('{"stage": "generate", "rows": 5000, "accept_frac": 0.5, "tokens": 12345}')
    text = page_of(tmp_path / "eval", tmp_path / "gen")[1].text
    assert "0.750 ± 0.010" in text and "5,000" in text and "12,345" in text


def test_what_changes_in_a_run_changes_its_signature(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=3)
    report = Report([run])
    before = report.signature()
    assert report.signature() == before
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 3, "loss/nats_per_token": 0.5}\n')
    assert report.signature() != before
    assert Parsed(report.body()).figures["loss/nats_per_token"]["series"][0]["y"][-1] == 0.5


def test_a_pipe_in_the_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    import os

    run = write_run(tmp_path / "run", steps=3)
    for name in ("metrics.jsonl", "summary.json", "log.txt", "timeline.json", "table.md"):
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)
    assert "it is not a file" in page_of(run)[1].text


def test_a_hundred_thousand_steps_make_a_small_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=3)
    usual = "".join(f', "utilisation/part_{number}_frac": 0.123456789' for number in range(20))
    with (run / "metrics.jsonl").open("w") as stream:
        stream.writelines(f'{{"step": {step}, "loss/nats_per_token": {1 / (step + 1)}{usual}}}\n' for step in range(100_000))
    start = time.process_time()
    page = Report([run]).page()
    assert len(page.encode()) < 20e6 and time.process_time() - start < 20
    assert len(Parsed(page).figures["loss/nats_per_token"]["series"][0]["y"]) <= 800


def test_the_report_loads_neither_torch_nor_plotly(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=3)
    code = "import sys; from minidist.cli import app; app(sys.argv[1:], standalone_mode=False); print(*sys.modules)"
    output = tmp_path / "page.html"
    command = [sys.executable, "-c", code, "report", str(run), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"report: {output}" in done.stdout and output.read_text().startswith("<!doctype html>")
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {"torch", "ray", "vllm", "deepspeed", "transformers", "plotly", "matplotlib"}


def test_runs_are_named_by_the_shortest_ends_of_their_paths(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / parent / "run", steps=3) for parent in ("a", "b")]
    assert Report(paths).title == "a/run, b/run"
    shutil.rmtree(paths[0] / "rollouts")
    assert Reader(paths[0], "a").read().samples == {}
