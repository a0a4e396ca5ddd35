"""The page configs/plan/README.md: seconds of a step and busy devices at scale, from configs/plan/table.json."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from minidist.models.shape import Shape
from minidist.preflight.forecast.advice import Option, designs
from minidist.preflight.forecast.layouts import deal
from minidist.preflight.forecast.lines import figure
from minidist.preflight.forecast.rates import Overheads, Rates, read_rates
from minidist.preflight.forecast.scenario import Design, Layout, Model, Paths, Scenario, Workload
from minidist.preflight.forecast.seconds import phases, step_seconds
from minidist.preflight.forecast.simulation import Spread, simulate
from minidist.run.flops import DecoderFlops

FOLDER = Path(__file__).parents[2] / "configs" / "plan"
TABLE, RECORDS, PAGE, PICTURE = (FOLDER / name for name in ("table.json", "results.json", "README.md", "steps.png"))
BEFORE = Paths("driver", "host")
AFTER = Paths("reference", "broadcast")
COLUMNS = ("before", "streamed", "stale", "colocated")


def main() -> None:
    table = json.loads(TABLE.read_text())
    records = [record for name in table["pairs"] for record in _pair(table, name)]
    RECORDS.write_text(json.dumps(records, indent=1) + "\n")
    PAGE.write_text(page_of(table, records, read_rates(table["rates"])))
    draw(records, PICTURE)


def model(sizes: dict[str, float]) -> Model:
    """A decoder of these sizes in bfloat16, its head untied: two operations a parameter but the embedding's, and attention."""
    whole = {name: int(value) for name, value in sizes.items()}
    size = whole["hidden"] // whole["heads"]
    head = whole["hidden"] * whole["vocabulary"]
    ends = head if whole["parameters"] < 1e9 else 2 * head  # small models tie their embedding to their head
    attention = 4.0 * whole["layers"] * whole["hidden"]
    cost = DecoderFlops(token=2.0 * (whole["parameters"] - ends), pair=attention, head=2.0 * head)
    return Model(Shape(trainable=whole["parameters"], head_size=size, flops=cost, **whole))


def scenario_of(table: dict[str, Any], name: str, paths: Paths) -> Scenario:
    """A pair of the table, with hidden states as scores; no devices are dealt."""
    pair = table["pairs"][name]
    student, teacher = model(pair["student"]), model(pair["teacher"])
    workload = Workload(**table["workload"], payload_bytes=2 * teacher.shape.hidden, hidden=True)
    splits = {key: pair[key] for key in ("rollout_split", "teacher_split")}
    return Scenario(student, teacher, workload, Layout(1, 1, 1, **splits), read_rates(table["rates"]), paths)


def _pair(table: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    spread = Spread(**table["spread"])
    for devices in table["devices"]:
        before = _before(scenario_of(table, name, BEFORE), devices)
        options = [Option("before", before)]
        options += [each for each in designs(scenario_of(table, name, AFTER), devices) if each.name != Design.DISJOINT]
        for option in options:
            record = {"pair": name, "devices": devices, "column": str(option.name)} | _record(option.scenario, spread)
            print(json.dumps(record), flush=True)
            yield record


def _before(scenario: Scenario, devices: int) -> Scenario | None:
    """Roles take turns; the learner at ZeRO 3 with small chunks where the student is large, with nothing hidden."""
    large = scenario.student.shape.parameters > 1e9
    layout = replace(scenario.layout, zero=3 if large else 2, checkpointing=large, chunk=2**25 // 128_256)
    return deal(scenario.with_layout(layout), devices)


def _record(scenario: Scenario | None, spread: Spread) -> dict[str, Any]:
    """The formula's step, and the simulated one of ragged answers. Empty where nothing fits."""
    if scenario is None:
        return {}
    layout, ragged = scenario.layout, simulate(scenario, spread)
    return {
        "rollout": layout.rollout,
        "teacher": layout.teacher,
        "learner": layout.learner,
        "zero": layout.zero,
        "micro_batch": layout.micro_batch,
        "checkpointing": layout.checkpointing,
        "phases": vars(phases(scenario)),
        "formula_s": step_seconds(scenario),
        "step_s": ragged.step,
        "busy": ragged.busy,
        "by_role": ragged.by_role,
    }


def page_of(table: dict[str, Any], records: list[dict[str, Any]], rates: Rates) -> str:
    """The page."""
    workload, spread = table["workload"], table["spread"]
    lines = [
        "# What a step would take on GPUs",
        "",
        "Made by `python -m tests.benchmarks.plan table` from [table.json](table.json) ([records](results.json)).",
        "",
        "**Nothing on this page was measured on GPUs.** Peaks are published; what programs achieve of them, and all else",
        "under [rates](#rates), is an assumption. Orders of designs are worth more than seconds. `minidist plan CONFIG.yaml`",
        "gives the same forecast for a configuration, with `--rates h100`, `--rates a100` or a file of your own rates.",
        "",
        "![Seconds of a step, and share of busy devices, at 8, 64 and 1,024 GPUs](steps.png)",
        "",
        f"A step: {workload['prompts']} prompts x {workload['samples']} answers, {workload['prompt']} + {workload['answer']:,}"
        f" tokens on average (log-normal, sigma {spread['sigma']}, at most {spread['longest']:g} times the mean), one update,",
        "hidden states as scores. Devices are dealt to the roles so that a step is shortest and every role fits its memory.",
        "Seconds and busy share are those of the loop's own code in virtual time ([how](#how-it-is-made)); in brackets the",
        "closed formula, in which all answers have the mean length.",
        "",
        "| student from teacher, GPUs | before: turns | streamed | stale | colocated |",
        "|---|---|---|---|---|",
        *_rows(records),
        "",
        *_NOTES,
        *_rates_lines(rates),
    ]
    return "\n".join([*lines, ""])


_NOTES = """\
- **before:** roles take turns on devices of their own; scores go through the driver's object store, weights through
  host memory and the store (and to each worker of a split engine), ZeRO 3 exchanges for each chunk of the loss and
  hides nothing.
- **after,** the other columns: scores by reference and chunks of 1,024 tokens, ZeRO stage, micro-batch and
  checkpointing as they are fastest and fit, weights by one broadcast. `streamed` is strictly on-policy (`loop.stream`),
  `stale` writes one collection ahead (`loop.max_staleness: 1`), `colocated` has all roles on all devices, in turn.
- The broadcast is `cluster.weight_transfer` nccl or ipc; roles that give their memory up while others work are
  `cluster.residency`. Neither was run on GPUs.

## What the numbers say

- Roles that take turns on devices of their own leave three quarters of them idle, and more at scale. At 8
  GPUs text of an earlier student is 1.7 to 1.9 times as fast, colocation 2.7 to 3.9 times.
- At 64 GPUs and more the ways of the data decide: scores through the driver and weights through the host cost as much
  as the work.
- At 1,024 GPUs a step of this size is too small for a student of 0.5B or 8B: 16 times the devices give 1.3 to 3.2 times
  the speed. The longest answer takes its number of engine steps, whatever the number of engines, and the driver needs
  1.4 microseconds for each token's figures, 23 s in all. These GPUs need more prompts a step.
- What lies between the simulation and the formula is the longest answer: an engine that has finished its short ones
  waits for it. Devices are dealt by the formula; for answers as ragged as these more engines would be a little better.

## How it is made

`minidist/preflight/forecast`: bytes and operations of a step from the shapes of the models, divided by rates
(`volumes`, `seconds`); the loop, the collections and the pools that deal rows, as they run, with engines, teachers and
ranks whose calls take those seconds on a clock that jumps to the next event (`simulation`). For answers of one length
that divide evenly the two are equal, and [a test](../../tests/unit/preflight/forecast/test_simulation.py) says so for
every design. With work divided as evenly as water, and engines always full, the column *before* is within a tenth of an
[independent estimate](../../tests/unit/preflight/forecast/test_seconds.py) of the same step. On CPU cores forecasts were
compared with runs: [accuracy](../../tests/benchmarks/README.md#forecasts).

Not in it: evaluations, checkpoints, failures, other streams, the cost of a teacher in transformers that is split over
devices, network contention, and kernels slower at small sizes than the assumed shares.
""".splitlines()


def _rows(records: list[dict[str, Any]]) -> Iterator[str]:
    keys = dict.fromkeys((record["pair"], record["devices"]) for record in records)
    for pair, devices in keys:
        found = {record["column"]: record for record in records if (record["pair"], record["devices"]) == (pair, devices)}
        cells = [_cell(found[column]) for column in COLUMNS]
        yield f"| {pair}, {devices:,} | {' | '.join(cells)} |"


def _cell(record: dict[str, Any]) -> str:
    if "step_s" not in record:
        return "does not fit"
    dealt = "" if record["column"] == Design.COLOCATED else f" on {record['rollout']}/{record['teacher']}/{record['learner']}"
    return f"**{figure(record['step_s'])} s**, {100 * record['busy']:.0f} % busy{dealt} ({figure(record['formula_s'])})"


def _rates_lines(rates: Rates) -> list[str]:
    """The rates, as they are assumed."""
    device, wires = rates.device, rates.wires
    shown = {
        "memory, GiB": device.gib,
        "scoring, TFLOP/s": device.score_flops / 1e12,
        "training, TFLOP/s": device.update_flops / 1e12,
        "training below 1e9 parameters, TFLOP/s": device.small_flops / 1e12,
        "memory, TB/s": device.bandwidth / 1e12,
        "GPU to GPU in a node, GB/s": wires.link / 1e9,
        "GPU to GPU over nodes, GB/s": wires.network / 1e9,
        "GPU to host, GB/s": wires.to_host / 1e9,
        "host to GPU, GB/s": wires.to_device / 1e9,
        "object store, GB/s": wires.store / 1e9,
        "object store, node to node, GB/s": wires.between / 1e9,
        "engine to its workers, GB/s": wires.pipe / 1e9,
    }
    units = {"engine_step": 1e3, "publish": 1.0, "switch": 1.0, "loss_passes": 1.0}
    overheads = {
        name: value * units.get(name, 1e6)
        for name, value in vars(rates.overheads).items()
        if value and not isinstance(value, bool)
    }
    kinds = {"engine_step": "ms", "publish": "s", "switch": "s", "loss_passes": "number"}
    lines = ["", "## Rates", "", f"`{rates.name}`: {rates.source}.", "", "| rate | value |", "|---|---|"]
    lines += [f"| {name} | {figure(value)} |" for name, value in shown.items()]
    fields = Overheads.__dataclass_fields__
    for name in fields:
        if name in overheads:
            lines.append(f"| {name.replace('_', ' ')}, {kinds.get(name, 'microseconds')} | {figure(overheads[name])} |")
    return lines


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Bars of seconds and of busy shares."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pairs = list(dict.fromkeys(record["pair"] for record in records))
    figure_, places = pyplot.subplots(2, len(pairs), figsize=(4.2 * len(pairs), 5.6), squeeze=False)
    for column, pair in enumerate(pairs):
        sizes = list(dict.fromkeys(record["devices"] for record in records))
        for row, (key, scale) in enumerate((("step_s", 1.0), ("busy", 100.0))):
            place = places[row][column]
            for index, design in enumerate(COLUMNS):
                found = [record for record in records if (record["pair"], record["column"]) == (pair, design)]
                heights = [scale * record.get(key, 0.0) for record in found]
                place.bar([at + 0.2 * index for at in range(len(sizes))], heights, 0.2, label=design)
            place.set_xticks([at + 0.3 for at in range(len(sizes))], [f"{size:,}" for size in sizes])
            place.set_ylabel("seconds a step" if key == "step_s" else "busy, %")
        places[0][column].set_yscale("log")
        places[0][column].set_title(pair)
        places[1][column].set_xlabel("GPUs (assumed rates)")
    places[0][-1].legend(loc="upper left")
    figure_.tight_layout()
    figure_.savefig(path, dpi=90)
    pyplot.close(figure_)


if __name__ == "__main__":
    main()
