"""Where the time of a distillation went: seconds, tokens, padding, bytes and FLOPs of each phase, idle time of each actor. From
the spans of driver and actors, and from what was counted inside them.

A phase lasts while the driver waits for it or an actor works on it, so phases that overlap have the seconds that each takes,
and together more than the step. Work is counted in the step in which the call ends that did it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from minidist.run.flops import DecoderFlops, Work
from minidist.run.timeline import DRIVER, Calls, Span, union

PREFIXES = ("time/", "speed/", "tokens/", "padding/", "bytes/", "flops/", "utilisation/", "idle/", "memory/")
"""Beginnings of the names of metrics that say what a step cost, not what it computed: they differ where machines do."""

PHASES = ("generate", "score", "credit", "check", "update", "publish")

VERBS = {
    "rollout": {"generate": "generate", "stream": "generate", "take_turns": "generate", "load": "publish", "score": "publish"},
    "teacher": {"score": "score", "extend": "generate", "take_turns": "generate"},
    "learner": {"update": "update", "weights": "publish", "probe": "publish"},
}
_MEASURING = ("credit", "check")  # phases in which the learner measures text without training on it
_PACKED = ("score", "update", *_MEASURING)  # phases whose rows are put into micro-batches


@dataclass(frozen=True)
class Costs:
    """What tokens cost in each role.

    Args:
        student: the model that is trained.
        writer: of a token of an answer: the student, or student and teacher where both read every token.
        teacher: the teacher, whole; also its head, which the learner applies to the teacher's hidden states.
        scorer: the teacher as its actors score with it: without a head where they send hidden states.
        recomputed: the learner computes each forward pass a second time, in the backward pass (activation checkpointing).
    """

    student: DecoderFlops
    writer: DecoderFlops
    teacher: DecoderFlops
    scorer: DecoderFlops
    recomputed: bool = False

    def flops(self, role: str, phase: str, counts: Mapping[str, float]) -> float:
        """Of what an actor of a role, or the driver, counted in a phase."""
        forward, backward = _work(counts, "forward"), _work(counts, "backward")
        if role == "teacher":
            return (self.scorer if phase == "score" else self.teacher).forward(forward)
        if role != "learner":
            return self.writer.forward(forward)
        layers = replace(backward, heads=0) if self.recomputed else Work()
        student = self.student.forward(forward + backward + layers) + self.student.backward(backward)
        prompt, learnt = _work(counts, "prompted_forward"), _work(counts, "prompted_backward")
        frozen = replace(self.teacher, trained=0.0)
        teacher = frozen.forward(prompt + learnt) + frozen.backward(learnt)
        return student + teacher + self.teacher.head * counts.get("teacher_heads", 0)


def _work(counts: Mapping[str, float], kind: str) -> Work:
    return Work(*(counts.get(f"{kind}_{name}", 0) for name in ("tokens", "pairs", "heads")))


@dataclass(frozen=True)
class Phase:
    """What a phase took. The sum of two is that of both.

    seconds: while the driver waited for it or an actor worked on it. tokens: written, or that passed through models once.
    real, computed: tokens that passed through models, without padding and with it; 0 where there are no micro-batches.
    nbytes: that it sent to the next phase. flops: needed. possible: FLOPs that its actors could have done in these seconds.
    """

    seconds: float = 0.0
    tokens: float = 0.0
    real: float = 0.0
    computed: float = 0.0
    nbytes: float = 0.0
    flops: float = 0.0
    possible: float = 0.0

    def __add__(self, other: "Phase") -> "Phase":
        return Phase(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    @property
    def padding(self) -> float | None:
        """Share of the computed tokens that were padding."""
        return 1 - self.real / self.computed if self.computed else None

    @property
    def utilisation(self) -> float | None:
        return self.flops / self.possible if self.possible and self.flops else None


@dataclass(frozen=True)
class Account:
    """What steps took: all of them where there are several.

    seconds: of the steps. other: those of no phase. between: seconds between steps, for evaluations, checkpoints and records.
    idle: seconds of each actor's name in which it had no call.
    """

    seconds: float = 0.0
    steps: int = 0
    other: float = 0.0
    between: float = 0.0
    phases: Mapping[str, Phase] = field(default_factory=dict)
    idle: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: "Account") -> "Account":
        phases = {name: self.phases.get(name, Phase()) + each for name, each in other.phases.items()}
        idle = {name: self.idle.get(name, 0.0) + seconds for name, seconds in other.idle.items()}
        times = (getattr(self, name) + getattr(other, name) for name in ("seconds", "steps", "other", "between"))
        return Account(*times, phases={**self.phases, **phases}, idle={**self.idle, **idle})

    def with_bytes(self, phase: str, sent: int) -> "Account":
        """The same, with the bytes that a phase sent."""
        known = self.phases.get(phase, Phase())
        return replace(self, phases={**self.phases, phase: replace(known, nbytes=float(sent))})

    def metrics(self) -> dict[str, float]:
        """The figures as a step's metrics."""
        found: dict[str, float] = {}
        for name, phase in self.phases.items():
            if phase.tokens:
                found[f"tokens/{name}"] = phase.tokens
            if phase.padding is not None:
                found[f"padding/{name}_frac"] = phase.padding
            if phase.nbytes:
                found[f"bytes/{name}_mib"] = phase.nbytes / 2**20
            if phase.flops:
                found[f"flops/{name}_tflop"] = phase.flops / 1e12
            if phase.utilisation is not None:
                found[f"utilisation/{name}_frac"] = phase.utilisation
        return found | {f"idle/{name.replace(' ', '_')}_s": seconds for name, seconds in self.idle.items()}

    def to_record(self) -> dict[str, Any]:
        """As JSON holds it."""
        phases = {name: vars(phase) for name, phase in self.phases.items()}
        return {**vars(self), "phases": phases, "idle": dict(self.idle)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Account":
        """What `to_record` gave."""
        return cls(**{**record, "phases": {name: Phase(**phase) for name, phase in record["phases"].items()}})


def account(
    interval: tuple[float, float], driver: Calls, actors: Mapping[str, Calls], costs: Costs, rates: Mapping[str, float]
) -> Account:
    """The account of one step.

    Args:
        interval: beginning and end of the step, seconds of `time.time()`.
        driver: the phases of the loop.
        actors: the calls of each actor, by its name, such as `rollout 1`.
        costs: of a token.
        rates: of matrix products of an actor, by its role, FLOP/s. A role without a rate has no utilisation.
    """
    start, end = interval
    found = [(span.name, DRIVER, span) for span in (*driver.done, *driver.running) if span.name in PHASES]
    for name, calls in actors.items():
        outer = [span for span in (*calls.done, *calls.running) if not span.inner]
        found += [(phase, name, span) for span in outer if (phase := _phase(name, span, driver)) is not None]
    spans = [each for each in found if each[2].end > start]
    phases = {}
    for phase in dict.fromkeys(phase for phase, _, _ in spans):
        of_phase = [(name, span) for each, name, span in spans if each == phase]
        roles = {_role(name) for name, _ in of_phase}
        rate = sum(rates.get(_role(name), 0.0) for name in actors if _role(name) in roles)
        nbytes = sum(span.counts.get(f"{phase}_bytes", 0) for _, _, span in spans)
        made = _account_phase(phase, of_phase, interval, costs)
        phases[phase] = replace(made, nbytes=nbytes, possible=made.seconds * rate)
    in_order = sorted(actors.items(), key=lambda actor: list(VERBS).index(_role(actor[0])))
    idle = {name: end - start - union(calls.busy, start, end) for name, calls in in_order}
    other = end - start - union([(span.start, span.end) for _, _, span in spans], start, end)
    return Account(end - start, 1, other, 0.0, {phase: phases[phase] for phase in PHASES if phase in phases}, idle)


def _role(name: str) -> str:
    """The role of an actor's name."""
    return name.split(" ")[0]


def _phase(name: str, span: Span, driver: Calls) -> str | None:
    """The phase that a call of an actor belongs to; None: none."""
    if span.name == "measure":
        measuring = [each for each in (*driver.done, *driver.running) if each.name in _MEASURING]
        return next((each.name for each in measuring if each.start <= span.start <= each.end), None)
    return VERBS.get(_role(name), {}).get(span.name)


def _account_phase(phase: str, spans: Sequence[tuple[str, Span]], interval: tuple[float, float], costs: Costs) -> Phase:
    """`spans`: the driver's and the actors', with their names."""
    counts = [span.counts for _, span in spans]
    real = sum(value for each in counts for name, value in each.items() if name.endswith("ward_tokens"))
    computed = sum(each.get("computed", 0) for each in counts)
    return Phase(
        seconds=union([(span.start, span.end) for _, span in spans], *interval),
        tokens=real if phase in _PACKED else sum(each.get("written", 0.0) for each in counts),
        real=real if phase in _PACKED else 0.0,
        computed=computed if phase in _PACKED else 0.0,
        flops=sum(costs.flops(_role(name), phase, span.counts) for name, span in spans),
    )


def lines(record: Mapping[str, Any]) -> list[str]:
    """Below the table: idle time of each actor, the rates, and the memory."""
    spent = Account.from_record(record["account"])
    idle = ", ".join(f"{name} {_percent(seconds / spent.seconds)}" for name, seconds in spent.idle.items())
    rates = ", ".join(f"{role} {rate / 1e9:,.0f}" for role, rate in record["matrix_products_flop_per_s"].items())
    of = "all processes of the run on this node" if record["this_node_alone"] else "all processes of the run"
    found = {
        f"idle: {idle} of the steps' time": idle,
        f"utilised: FLOPs needed, of those of matrix products in this time (GFLOP/s an actor: {rates})": rates,
        f"memory: {record['memory_peak_gib']:.2f} GiB at most, {of} (PSS)": True,
    }
    return [line for line, known in found.items() if known]


def show(summary: Mapping[str, Any]) -> None:
    """Print where the time of a run went to standard output, if its summary says so."""
    if (record := summary.get("time")) is not None and record["account"]["steps"]:
        screen = Console(markup=False, width=120)
        screen.print(table(Account.from_record(record["account"])))
        for line in lines(record):
            screen.print(line, highlight=False)


def table(spent: Account) -> Table:
    """One row a phase."""
    names = ("phase", "seconds", "share", "tokens", "tokens/s", "padding", "TFLOP", "utilised", "MiB")
    made = Table(box=box.SIMPLE_HEAD, title=f"where the time of {spent.steps} steps went", title_justify="left")
    for number, name in enumerate(names):
        made.add_column(name, justify="right" if number else "left")
    whole = spent.seconds + spent.between
    for name, phase in spent.phases.items():
        speed = f"{phase.tokens / phase.seconds:,.0f}" if phase.tokens and phase.seconds else ""
        work = (f"{phase.tokens:,.0f}" if phase.tokens else "", speed, _percent(phase.padding))
        flops = f"{phase.flops / 1e12:.3g}" if phase.flops else ""
        moved = f"{phase.nbytes / 2**20:,.1f}" if phase.nbytes else ""
        seconds = (f"{phase.seconds:.2f}", _percent(phase.seconds / whole))
        made.add_row(name, *seconds, *work, flops, _percent(phase.utilisation), moved)
    for name, seconds in (("other", spent.other), ("between steps", spent.between)):
        made.add_row(name, f"{seconds:.2f}", _percent(seconds / whole))
    made.add_section()
    made.add_row("all", f"{whole:.2f}", "100 %")
    return made


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
