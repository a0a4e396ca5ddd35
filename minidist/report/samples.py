"""Answers of a run with each token on the colour of the student's log-probability minus the teacher's."""

import math
from collections.abc import Iterator, Mapping, Sequence

from minidist.report.text import brief, number, shown
from minidist.run.show import DIFFERENCE, SURPRISE, Sample, Scale

_TOKENS = 400
"""Tokens of an answer that are shown."""

_LEVELS = 5
"""Depths of colour on each side of 0."""


def samples_html(steps: Mapping[int, Sequence[Sample]]) -> str:
    """The answers of each recorded step, the first and the last one open."""
    scales = dict.fromkeys(each.scale for samples in steps.values() for each in samples if each.scale is not None)
    ends = (min(steps), max(steps))
    parts = [_legend(scale) for scale in scales]
    for step in sorted(steps, reverse=True):
        opened = " open" if step in ends else ""
        answers = "".join(_sample(sample) for sample in steps[step])
        heading = f"<summary>after step {step:,}</summary>"
        parts.append(f'<details class="step"{opened}>{heading}<div class="samples">{answers}</div></details>')
    return "".join(parts)


def _legend(scale: Scale) -> str:
    values = [scale.low + part * (scale.full - scale.low) / 6 for part in range(7)]
    chips = "".join(f'<span class="token {_level(value, scale)}">{value:g}</span>' for value in values)
    return f'<p class="legend">{shown(scale.title)}<br>{shown(scale.ends[0])} {chips} {shown(scale.ends[1])}</p>'


def _sample(sample: Sample) -> str:
    scale = sample.scale
    if scale is None or sample.pieces is None:
        why = "no log-probabilities" if sample.pieces is not None else "no texts of tokens"
        answer = f'{brief(sample.answer, 4000)} <span class="note">({why} were recorded)</span>'
    else:
        answer = "".join(_tokens(sample, sample.pieces, scale))
    return (
        f'<div class="sample"><p class="prompt"><bdi>{brief(sample.prompt.rstrip(), 2000)}</bdi></p>'
        f'<p class="answer"><bdi>{answer}</bdi></p><p class="note">{_summary(sample)}</p></div>'
    )


def _tokens(sample: Sample, pieces: Sequence[str], scale: Scale) -> Iterator[str]:
    values = sample.values
    for index, (piece, value) in enumerate(zip(pieces[:_TOKENS], values, strict=False)):
        mixed = " chosen" if sample.coins is not None and sample.coins[index] else ""
        text = shown(piece).replace("\n", "↵<br>") or "∅"
        yield f'<span class="token {_level(value, scale)}{mixed}" title="{_title(sample, index, value)}">{text}</span>'
    if len(pieces) > _TOKENS:
        yield f'<span class="note"> … {len(pieces) - _TOKENS:,} more tokens</span>'


def _title(sample: Sample, index: int, value: float) -> str:
    """What a pointer on a token reads."""
    assert sample.student is not None
    found = f"log q {sample.student[index]:.3f}"
    return found if sample.teacher is None else f"{found}, log p {sample.teacher[index]:.3f}, difference {value:+.3f} nats"


def _level(value: float, scale: Scale) -> str:
    """The CSS class of a value: `student3` where the student finds the token likelier, `teacher3`, or `surprise3`."""
    if math.isnan(value):
        return "none"
    depth = round(min(1.0, abs(value) / scale.full) * _LEVELS)
    if depth == 0:
        return "none"
    side = "surprise" if scale is SURPRISE else ("student" if value > 0 else "teacher")
    return f"{side}{depth}"


def _summary(sample: Sample) -> str:
    parts = [f"{len(sample.student or sample.pieces or ())} tokens", f"finish {shown(sample.finish)}"]
    if sample.coins is not None:
        parts.append(f"{sum(sample.coins)} chosen by the teacher (underlined)")
    if sample.scale is DIFFERENCE:
        known = [value for value in sample.values if not math.isnan(value)]
        parts += [f"mean difference {number(sum(known) / len(known), 3)} nats"] if known else []
    return ", ".join(parts)
