"""Conflicts of supervised fine-tuning."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from minidist.config.conflicts.learner import learner

if TYPE_CHECKING:
    from minidist.config import SftConfig


def sft(c: "SftConfig") -> Iterator[str]:
    """All conflicts of supervised fine-tuning."""
    mixed = {f"mix.{name}": source for name, source in c.data.mix.items()}
    for name, source in {"train": c.data.train, "validation": c.data.validation, **mixed}.items():
        if source is not None and not source.has_labels:
            yield f"data.{name} needs answer (train on answers) or text (train on plain text)"
    if (total := sum(source.share for source in c.data.mix.values())) >= 1:
        yield f"the shares of data.mix add up to {total:g}, which leaves no row of data.train; lower them"
    for name, source in c.data.mix.items():
        if (drawn := c.run.steps * c.batch_rows * source.share) < 1:
            few = f"data.mix.{name}.share is {source.share:g}: {c.run.steps} steps of {c.batch_rows} rows draw {drawn:.2g} rows"
            yield f"{few} of it; raise the share or run.steps, or leave the source out"
    if (c.evaluation.every or c.evaluation.patience) and c.data.validation is None:
        yield "evaluation.every and evaluation.patience need data.validation: rows for the validation loss"
    if c.evaluation.temperature != 1:
        yield "evaluation.temperature belongs to distill; sft evaluates the loss on given answers"
    if c.evaluation.patience and c.evaluation.every is None:
        yield "evaluation.patience needs evaluation.every: the steps between two evaluations"
    if c.learner.kernel != "torch":
        yield f"learner.kernel {c.learner.kernel} computes divergences, and sft has none; set learner.kernel=torch"
    yield from learner(c)
