"""Evaluation of programs: each system answers the same rows, and one table compares accuracy and cost."""

from collections.abc import Sequence
from typing import Any

from minidist.config import EvaluateProgramsConfig
from minidist.evaluation.figures import Figure, Figures, to_record
from minidist.evaluation.table import show_result
from minidist.preflight.generate import plan_programs
from minidist.run.directory import RunDirectory
from minidist.run.files import write_json
from minidist.run.tracking import log, start_log
from minidist.stages.generate import generate


async def evaluate_programs(config: EvaluateProgramsConfig) -> dict[str, Any]:
    """Answer the rows that a system has not answered yet, write result.json, print the table."""
    plan, directory = plan_programs(config), RunDirectory(config)
    directory.share()
    start_log(directory.path)
    for line in plan.lines:
        log.info("%s", line)
    result: dict[str, Any] = {}
    for name, system in config.systems.items():
        summaries = []
        for seed in config.all_seeds:
            log.info("system %s, seed %d", name, seed)
            summaries.append(await generate(config.system(name, seed)))
            start_log(directory.path)
        result[name] = to_record(over_seeds(summaries)) | {"program": system.program.type, "filter": system.program.filter.type}
    write_json(directory.path / "result.json", result)
    show_result(result)
    print(f"result: {directory.path / 'result.json'}")
    return directory.finish({"result": result})


def over_seeds(summaries: Sequence[dict[str, Any]]) -> Figures:
    """Figures of the generations of one system with several seeds: means, and their spread or, of one seed, standard errors."""
    rounds = [figures(summary) for summary in summaries]
    if len(rounds) == 1:
        return rounds[0]
    shared = [name for name in rounds[0] if all(name in each for each in rounds)]
    return {name: Figure.of_repeats([each[name].mean for each in rounds]) for name in shared}


def figures(summary: dict[str, Any]) -> Figures:
    """Figures of one generation.

    accuracy: right answers as a share of all rows, so that a row that failed, or on which the samples do not agree, is not
    right. accept_frac: share of answered rows that the filter keeps; accuracy_kept: share of them that is right.
    tokens_per_answer: tokens generated in all calls and samples for one row; tokens_per_sample: for one sample of it.
    """
    rows, failed = summary["rows"], summary["rows_failed"]
    if rows == failed:
        return {"accuracy": Figure(0.0), "failed_frac": Figure(1.0)}
    found = {
        "accuracy": _share(summary["accuracy"] * (rows - failed) / rows, rows),
        "accept_frac": _share(summary["accept_frac"], rows - failed),
        "tokens_per_answer": Figure(summary["tokens"] / (rows - failed)),
        "tokens_per_sample": Figure(summary["answer_tokens_mean"]),
        "failed_frac": Figure(failed / rows),
    }
    kept = summary["accuracy_kept"]
    return found if kept is None else found | {"accuracy_kept": _share(kept, summary["rows_kept"])}


def _share(share: float, count: int) -> Figure:
    """A share of independent rows, with its standard error from two rows on."""
    return Figure(float(share), (share * (1 - share) / (count - 1)) ** 0.5 if count > 1 else None)
