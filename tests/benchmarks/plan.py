"""Forecasts against runs, and the table of forecasts at scale: `python -m tests.benchmarks.plan [accuracy|table]`.

`accuracy` measures this machine's rates with `minidist plan --measure`, forecasts three small distillations of other models,
and runs them: all roles in Ray actors, one thread each. `table` makes configs/plan/README.md, its records and its picture from
published rates.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from minidist.cluster.machine import thread_environment

RESULTS = Path(__file__).with_suffix(".json")
STEPS = 7


@dataclass(frozen=True)
class Case:
    """A distillation between random Llamas: hidden and intermediate size, layers, heads of each; and its text."""

    name: str
    student: tuple[int, int, int, int]
    teacher: tuple[int, int, int, int]
    vocabulary: int
    prompts: int
    prompt: int
    answer: int


CASES = [
    Case("wider", (384, 1024, 6, 6), (640, 1792, 8, 10), 8_192, 16, 24, 96),
    Case("larger vocabulary", (192, 512, 4, 3), (256, 704, 4, 4), 32_768, 24, 48, 48),
    Case("more and longer answers", (320, 896, 4, 5), (448, 1280, 6, 7), 4_096, 48, 16, 128),
]
"""None has the sizes of the pair that `--measure` takes: 4 x 256 and 8 x 512, vocabulary 4,096, 4 and 32 rows."""


def accuracy() -> None:
    """Measure, forecast, run, and write the record."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {case.name: _write(case, folder / str(number)) for number, case in enumerate(CASES)}
        rates = folder / "rates.json"
        _command("plan", next(iter(files.values())), "--measure", "--rates", rates)
        found: dict[str, Any] = {"rates": json.loads(rates.read_text()), "cases": []}
        for case in CASES:
            forecast = _forecast(files[case.name], rates)
            _command("distill", files[case.name])
            run = _measured(files[case.name].parent / "run")
            found["cases"].append({"case": asdict(case), "forecast": forecast, "run": run})
            print(_row(found["cases"][-1]), flush=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def _write(case: Case, folder: Path) -> Path:
    """Models, prompts and configuration of a case."""
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from minidist.data.rendering import character_tokenizer

    folder.mkdir(parents=True)
    letters = "".join(chr(0x4E00 + index) for index in range(case.vocabulary - 2))
    tokenizer = character_tokenizer(letters)
    torch.manual_seed(1)
    for role, sizes in (("student", case.student), ("teacher", case.teacher)):
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        shape: dict[str, Any] = dict(zip(names, sizes, strict=True))
        ids: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
        config = LlamaConfig(vocab_size=case.vocabulary, max_position_embeddings=512, **shape, **ids)
        LlamaForCausalLM(config).save_pretrained(folder / role)
        tokenizer.save_pretrained(folder / role)
    rng = np.random.default_rng(0)
    rows = [{"text": "".join(rng.choice(list(letters), case.prompt))} for _ in range(case.prompts * STEPS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {
        "stage": "distill",
        "run": {"directory": str(folder / "run"), "steps": STEPS},
        "student": {"model": str(folder / "student")},
        "teacher": {"model": str(folder / "teacher")},
        "data": {
            "prompts": {"path": str(folder / "rows.jsonl"), "prompt": "{{ text }}"},
            "max_prompt_tokens": case.prompt + 8,
        },
        "objective": {"type": "reverse_kl"},
        "rollout": {"prompts_per_step": case.prompts, "max_new_tokens": case.answer},
        "learner": {"backend": "single", "optimizer": {"lr": 1e-9}},
        "cluster": {"threads": 1},
        "canaries": {"uniform_margin": 0.0},  # random teachers are as good as a uniform guess
    }
    (folder / "distill.yaml").write_text(yaml.safe_dump(tree))
    return folder / "distill.yaml"


def _command(verb: str, *arguments: object) -> None:
    command = [sys.executable, "-m", "minidist.cli", verb, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | thread_environment(1))
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")


def _forecast(file: Path, rates: Path) -> dict[str, Any]:
    """Seconds of a step and of its phases, and GiB, before the run."""
    from minidist.config import DistillConfig, load
    from minidist.preflight.forecast.rates import read_rates
    from minidist.preflight.forecast.report import forecast, memory_gib
    from minidist.preflight.forecast.seconds import phases, step_seconds
    from minidist.preflight.plan import plan_distill

    config = load(file)
    assert isinstance(config, DistillConfig)
    scenario = forecast(config, str(rates)).scenario
    memory = memory_gib(config, plan_distill(config), read_rates(str(rates)))
    return {"step_s": step_seconds(scenario), "memory_gib": memory, "phases": asdict(phases(scenario))}


def _measured(run: Path) -> dict[str, Any]:
    """Seconds of the steps after the first two, the median and the fastest, and the peak of memory."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "speed/seconds_per_step" in line]
    names = ("generate", "score", "update", "publish")
    return {
        "fastest_s": min(step["speed/seconds_per_step"] for step in steps[2:]),
        "step_s": statistics.median(step["speed/seconds_per_step"] for step in steps[2:]),
        "memory_gib": steps[-1]["memory/peak_gib"],
        "answer_tokens": statistics.mean(step["rollout/length_mean_tokens"] for step in steps),
        "phases": {name: statistics.median(step[f"time/{name}_s"] for step in steps[2:]) for name in names},
    }


def _row(found: dict[str, Any]) -> str:
    """A line of the table of the page."""
    forecast, run = found["forecast"], found["run"]
    cells = [found["case"]["name"]]
    cells += [f"{forecast['step_s']:.2f}", f"{run['step_s']:.2f}", f"{run['fastest_s']:.2f}"]
    cells += [f"**{forecast['step_s'] / run['step_s']:.2f}**", f"{forecast['step_s'] / run['fastest_s']:.2f}"]
    cells += [
        f"{forecast['memory_gib']:.2f}",
        f"{run['memory_gib']:.2f}",
        f"**{forecast['memory_gib'] / run['memory_gib']:.2f}**",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    if "accuracy" in sys.argv[1:]:
        accuracy()
    else:
        from tests.benchmarks.plan_table import main

        main()
