"""One task taught with each of a list of methods: records, a table and pictures."""

from typing import Any

from minidist.config import CompareLessonsConfig
from minidist.evaluation.lessons import LessonCurve, draw_curves, draw_lessons, lesson_table
from minidist.evaluation.records import Record, Records
from minidist.preflight.lessons import plan_lessons
from minidist.run.directory import RunDirectory
from minidist.run.tracking import log, start_log
from minidist.stages import run_stage


async def compare_lessons(config: CompareLessonsConfig) -> dict[str, Any]:
    """Run the cells that are not finished, seed by seed; write lessons.json, table.md, lessons.png and curves.png."""
    plan, directory = plan_lessons(config), RunDirectory(config)
    directory.share()
    start_log(directory.path)
    for line in plan.lines:
        log.info("%s", line)
    records, done = Records(directory.path / "lessons.json"), 0
    for seed in config.seeds:
        for name in config.cells:
            cell = config.cell(name, seed)
            place = RunDirectory(cell)
            summary = place.summary if place.finished() else None  # with more steps a run goes on
            if summary is None:
                log.info("cells.%s, seed %d", name, seed)
                summary, done = await run_stage(cell), done + 1
                start_log(directory.path)
            records.add(_record(name, seed, summary), list(config.cells))
            _show(records, config, directory)
    print(f"records, table and pictures: {directory.path}/lessons.json, table.md, lessons.png, curves.png")
    return directory.finish({"runs": done})


def _record(name: str, seed: int, summary: dict[str, Any]) -> Record:
    """The figures of a finished cell on the test rows or, without them, on the validation rows."""
    result = summary["result"]
    figures = {
        key.replace("student/", "").replace("/", "_"): value for key, value in (result["test"] or result["validation"]).items()
    }
    kept = {"seconds": float(summary["seconds"]), "majority": summary["majority"], "evaluations": summary["evaluations"]}
    return {"objective": name, "seed": seed} | figures | kept


def _show(records: Records, config: CompareLessonsConfig, directory: RunDirectory) -> None:
    order, metrics = list(config.cells), list(config.first.task.metrics)
    table = lesson_table(records.rows, order, metrics)
    (directory.path / "table.md").write_text(table, encoding="utf-8")
    draw_lessons(records.rows, order, metrics, directory.path / "lessons.png")
    drawn = config.curves or order[:8]
    first = [row for row in records.rows if row["seed"] == config.seeds[0] and row["objective"] in drawn]
    first = [row for row in first if len(row["evaluations"]) > 1]
    curves = [LessonCurve(row["objective"], [(each["step"], _numbers(each)) for each in row["evaluations"]]) for row in first]
    if curves:
        draw_curves(curves, directory.path / "curves.png")


def _numbers(evaluation: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in evaluation.items() if key != "step"}
