"""A run that is read from its directory: finished, stopped, or still going on."""

import html
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minidist.config import Command
from minidist.config.run import RunConfig
from minidist.errors import RunDirectoryError
from minidist.run.files import read_record, shaped
from minidist.run.recorded import read_config, read_summary

if TYPE_CHECKING:
    import pandas

_MEASURED = ("evaluation/", "validation/")
_RECORDS = ("compare.json", "lessons.json")


def open_run(path: str | Path) -> "OpenedRun":
    """A run by its directory. Reads no more than its configuration. Raises RunDirectoryError."""
    return OpenedRun(Path(path).expanduser())


class OpenedRun:
    """What a run wrote. Files are read when they are asked for, so that a run that goes on shows how far it is.

    `directory`: of the run. `config`: its configuration, typed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config: Command = read_config(directory)

    @property
    def summary(self) -> dict[str, Any] | None:
        """What a finished run reports; None while it is not finished."""
        return read_summary(self.directory)

    @property
    def metrics(self) -> "pandas.DataFrame":
        """The metrics, one row a step (from 0; -1: before training), one column a metric. Raises RunDirectoryError."""
        import pandas

        steps: dict[int, dict[str, Any]] = {}
        for line in self._lines():
            steps.setdefault(line["step"], {}).update({name: value for name, value in line.items() if name != "step"})
        frame = pandas.DataFrame.from_dict(dict(sorted(steps.items())), orient="index")
        return frame.rename_axis(index="step")

    @property
    def evaluations(self) -> "pandas.DataFrame":
        """Figures on held-out rows: of a training run one row for each evaluation, by the steps taken before it; of `evaluate`
        one row a model; of `compare` one row a record. Raises RunDirectoryError."""
        import pandas

        for name in _RECORDS:
            if (self.directory / name).is_file():
                return pandas.DataFrame(read_record(self.directory / name, list[dict[str, Any]], "run the comparison again"))
        if not (self.directory / "metrics.jsonl").is_file():
            return pandas.DataFrame.from_dict((self.summary or {}).get("result", {}), orient="index")
        metrics = self.metrics
        frame = metrics[[name for name in metrics if str(name).startswith(_MEASURED)]].dropna(how="all")
        frame = frame.set_axis(frame.index + 1, axis="index").rename_axis(index="steps")
        frame.columns = [str(name).partition("/")[2] for name in frame.columns]
        return pandas.DataFrame(frame)

    def rollouts(self, step: int | None = None) -> "pandas.DataFrame":
        """Prompts and answers that were recorded after `step` steps, one row an answer, with its tokens and their
        log-probabilities, nats; None: those recorded last. Raises DataError where there are none."""
        import pandas

        from minidist.run.show import read_samples

        file, _ = read_samples(self.directory, step)
        return pandas.DataFrame([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()])

    def model(self, **options: Any) -> Any:
        """The trained model, loaded by transformers; `options` are those of `from_pretrained`."""
        import transformers

        from minidist.publishing.loading import auto_class

        return getattr(transformers, auto_class(self.final)).from_pretrained(self.final, **self._trusted(options))

    def tokenizer(self, **options: Any) -> Any:
        """The trained model's tokenizer, loaded by transformers."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.final, **self._trusted(options))

    @property
    def final(self) -> Path:
        """Directory of the trained model. Raises RunDirectoryError where there is none."""
        if not (found := self.directory / "final").is_dir():
            raise RunDirectoryError(f"{self.directory} holds no final/; runs of sft, distill and teach write it at their end")
        return found

    def _trusted(self, options: dict[str, Any]) -> dict[str, Any]:
        student = getattr(self.config, "student", None)
        return ({"trust_remote_code": True} if getattr(student, "trust_remote_code", False) else {}) | options

    def _lines(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; none where there is no such file. A last line that is being written is left out."""
        file, remedy = self.directory / "metrics.jsonl", "set run.overwrite=true to start the run again"
        if not file.is_file():
            return []
        try:
            text = file.read_text(encoding="utf-8")
            found = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        except (OSError, ValueError, RecursionError) as error:
            raise RunDirectoryError(f"{file} cannot be read ({error}); {remedy}") from None
        shaped(found, list[dict[str, Any]], f"{file} is of another shape", remedy)
        shaped([line.get("step") for line in found], list[int], f"{file} has lines without a step", remedy)
        return found

    def _rows(self) -> dict[str, str]:
        """The run in a few lines."""
        summary, config = self.summary, self.config
        rows = {"stage": config.stage, "directory": str(self.directory)}
        if isinstance(config.run, RunConfig):
            taken = max((line["step"] + 1 for line in self._lines()), default=0)
            rows["state"] = "finished" if summary is not None else "not finished"
            rows["steps"] = f"{taken} of {config.run.steps}"
        else:
            rows["state"] = "finished" if summary is not None else "not finished"
        for key in ("method", "objective", "student", "teacher"):
            value = getattr(config, key, None)
            shown = value if isinstance(value, str) else getattr(value, "type", None) or getattr(value, "model", None)
            rows |= {key: str(shown)} if shown is not None else {}
        if isinstance(config.run, RunConfig) and len(evaluations := self.evaluations):
            last = evaluations.iloc[-1].dropna()
            figures = [f"{name} {value:.4g}" for name, value in last.items() if not str(name).endswith("_se")]
            rows[f"evaluation after {evaluations.index[-1]} steps"] = ", ".join(figures)
        return rows

    def __repr__(self) -> str:
        rows = self._rows()
        return f"<minidist run {rows['directory']}: {rows['stage']}, {rows['state']}>"

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>" for key, value in self._rows().items()
        )
        return f"<table>{cells}</table>"
