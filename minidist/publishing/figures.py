"""The figures of a run before, during and after its training, as lines of a card."""

from collections.abc import Mapping, Sequence
from typing import Any

from minidist.config import DistillConfig, SftConfig, TeachConfig
from minidist.publishing.markdown import code

_MEANING = {
    "reverse_kl": "KL(student ‖ teacher) on the student's answers, nats a token",
    "forward_kl": "KL(teacher ‖ student) on the teacher's answers, nats a token",
    "accuracy": "share of right answers",
    "rouge_l": "ROUGE-L of answers and gold answers",
    "length_mean_tokens": "mean length of an answer, tokens",
    "truncated_frac": "share of answers without an end",
    "repetition_frac": "share of repeated 4-grams in an answer",
    "distinct_4": "share of different 4-grams among all answers",
    "exposure_bias": "excess of the divergence by the student's own prefixes, per cent",
    "loss_nats_per_token": "cross-entropy on held-out rows, nats a token",
}


def figure_lines(config: SftConfig | DistillConfig | TeachConfig, summary: Mapping[str, Any]) -> str:
    """A table of the first and the last evaluation, or that of the weights that were kept; and of the test rows."""
    evaluations = summary.get("evaluations") or summary.get("validation") or []
    tested = summary.get("result", {}).get("test", {})
    if not evaluations and not tested:
        return "The run was not evaluated.\n"
    text = _table(evaluations, _kept(summary, evaluations)) if evaluations else ""
    if evaluations:
        text += "\nOn `data.validation`, after so many steps; ± is the standard error over prompts.\n"
    if tested:
        rows = [f"| {_name(name)} | {value:.4g} |" for name, value in tested.items() if _is_number(value)]
        text += "\n".join([*([""] if text else []), "| on `data.test` | |", "|---|---|", *rows]) + "\n"
    return text


def _kept(summary: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]) -> int:
    """The step of the evaluation whose weights are in final/."""
    best = summary.get("best") if "final_step" not in summary else {"step": summary["final_step"]}
    return int(best["step"]) if isinstance(best, Mapping) and "step" in best else int(evaluations[-1]["step"])


def _table(evaluations: Sequence[Mapping[str, Any]], kept: int) -> str:
    first = evaluations[0]
    last = next((each for each in evaluations if each["step"] == kept), evaluations[-1])
    chosen = [first] if last is first else [first, last]
    names = [name for name, value in last.items() if name != "step" and _is_number(value) and not name.endswith("_se")]
    titles = [f"{'before training' if each['step'] == 0 else 'after ' + str(each['step']) + ' steps'}" for each in chosen]
    rows = [f"| figure | {' | '.join(titles)} |", "|---|" + "---|" * len(titles)]
    rows += [f"| {_name(name)} | {' | '.join(_value(each, name) for each in chosen)} |" for name in names]
    return "\n".join(rows) + "\n"


def _name(name: str) -> str:
    meaning = _MEANING.get(name)
    return code(name) + (f": {meaning}" if meaning else "")


def _value(evaluation: Mapping[str, Any], name: str) -> str:
    value, error = evaluation.get(name), evaluation.get(f"{name}_se")
    if not _is_number(value):
        return ""
    return f"{value:.4g}" + (f" ± {error:.2g}" if _is_number(error) else "")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
