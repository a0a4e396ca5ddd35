"""The account of a distillation as it runs: spans of all actors, step by step, and the memory of all processes."""

import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from minidist.cluster.cluster import Cluster
from minidist.config import DistillConfig
from minidist.config.cluster import ClusterConfig, Role
from minidist.config.teacher import TeacherConfig
from minidist.models.rate import matrix_product_rate
from minidist.preflight.facts import PairFacts
from minidist.preflight.plan import DistillPlan
from minidist.preflight.routing import rows_by_teacher
from minidist.run.accounting import Account, Costs, account
from minidist.run.flops import DecoderFlops
from minidist.run.memory import MemoryWatch
from minidist.run.timeline import DRIVER, Calls, Span, Timeline, nbytes
from minidist.run.tracking import Clock
from minidist.stages import StageRun, roles_of
from minidist.types import Batch


def costs(config: DistillConfig, plan: DistillPlan) -> Costs:
    """What a token costs in each role. A teacher on a server, or in a cache, costs this run nothing. Of several teachers a
    token costs their mean, by the rows that each of them scores."""
    student = plan.models.student.shape.flops
    body = _mean([(len(rows), _body(teacher, plan.pairs[key])) for key, teacher, rows in _read_by(config, plan)])
    both = DecoderFlops(student.token + body.token, student.pair + body.pair, student.head + body.head)
    scored = [(len(rows), _scorer(teacher, plan.pairs[key])) for key, teacher, rows in _read_by(config, plan)]
    return Costs(
        student,
        writer=both if config.teacher_mix else student,
        teacher=body,
        scorer=_mean(scored),
        recomputed=config.learner.activation_checkpointing,
    )


def _read_by(config: DistillConfig, plan: DistillPlan) -> list[tuple[str, TeacherConfig, Sequence[object]]]:
    """Each teacher with its key and the prompts that it scores answers to."""
    rows = rows_by_teacher(config, plan.prompts)
    return [(key, teacher, rows[key]) for key, teacher in config.named_teachers.items()]


def _body(teacher: TeacherConfig, pair: PairFacts) -> DecoderFlops:
    """What a token costs in a teacher, whole."""
    flops = pair.teacher.shape.flops
    return flops if teacher.learns or (teacher.live and teacher.hosted) else DecoderFlops(head=flops.head)


def _scorer(teacher: TeacherConfig, pair: PairFacts) -> DecoderFlops:
    """What a token costs as the teacher's actors score it: without a head where they send hidden states."""
    body = _body(teacher, pair)
    headless = teacher.payload == "hidden" or not (teacher.learns or (teacher.live and teacher.hosted))
    return DecoderFlops(body.token, body.pair) if headless else body


def _mean(weighted: Sequence[tuple[int, DecoderFlops]]) -> DecoderFlops:
    """The mean of costs, by their weights."""
    if len(weighted) == 1:
        return weighted[0][1]
    total = sum(weight for weight, _ in weighted)
    sums = {name: sum(weight * getattr(each, name) for weight, each in weighted) for name in ("token", "pair", "head")}
    return DecoderFlops(**{name: value / max(1, total) for name, value in sums.items()})


async def measure_rates(config: DistillConfig, cluster: Cluster) -> dict[str, float]:
    """Matrix products of an actor of each role, FLOP/s; measured once for roles with the same precision and threads, in one of
    the devices (processes, on a CPU) over which vLLM splits an actor's model."""
    student = config.student.dtype
    dtypes: dict[Role, str] = {"rollout": config.rollout.dtype or student, "learner": config.learner.compute_dtype or student}
    dtypes |= {"teacher": config.teacher.dtype}
    known: dict[tuple[object, ...], float] = {}
    rates: dict[str, float] = {}
    for role in roles_of(config):
        kind = _kind(config.cluster, role, dtypes[role])
        spans = config.cluster.role(role).spans_nodes  # such an actor has no device itself
        if kind not in known and not spans and (member := cluster.first(role)) is not None:
            known[kind] = await member.ask(matrix_product_rate, dtype=dtypes[role], on_gpu=bool(kind[-1]))
        if kind in known:
            rates[role] = known[kind] * config.cluster.role(role).devices
    return rates


def _kind(config: ClusterConfig, role: Role, dtype: str) -> tuple[object, ...]:
    """What the rate of a role's process depends on; the last is its share of a GPU. Nodes of a joined cluster may differ."""
    settings = config.role(role)
    node = role if config.address is not None else None
    return node, dtype, settings.processes * settings.devices, config.gpus_of(settings)


class Accounts:
    """Gives each step its figures, and keeps those of all steps.

    Args:
        run: the distillation, in whose directory the timeline is written.
        cluster: its actors.
        clock: times the phases of the loop.
    """

    def __init__(self, run: StageRun[DistillConfig, DistillPlan], cluster: Cluster, clock: Clock) -> None:
        self._began = time.time()
        self._config = run.config
        self._cluster = cluster
        self._clock = clock
        self._rates: dict[str, float] = {}
        self._costs = costs(run.config, run.plan)
        self._timeline = Timeline(run.directory.path / "timeline.json", steps=run.config.run.timeline_steps)
        self._memory = MemoryWatch()
        self._earlier_peak = 0
        self._all = Account()
        self._since = self._began
        self._ended: float | None = None

    async def measure_rates(self) -> None:
        """How fast the roles multiply matrices, before the first step: later they would disturb each other."""
        self._rates = await measure_rates(self._config, self._cluster)

    def begin(self) -> None:
        """The next step begins; the time since the last one was spent between steps."""
        self._since = time.time()
        if self._ended is not None:
            self._all += Account(between=self._since - self._ended)

    def step(self, batch: Batch) -> dict[str, float]:
        """The metrics of the step that ends now."""
        driver, actors = self._clock.phases(), self._cluster.calls()
        now = time.time()
        spent = account((self._since, now), driver, actors, self._costs, self._rates)
        spent = spent.with_bytes("update", _batch_bytes(batch))
        self._ended = now
        self._all += spent
        self._timeline.add({name: self._of_run(calls) for name, calls in {DRIVER: driver, **actors}.items()})
        here = socket.gethostname()
        self._memory.add(calls.pid for calls in actors.values() if calls.host == here)
        return spent.metrics() | {"memory/peak_gib": self.peak_gib} | self._cluster.restarts.figures(self._cluster.supervised)

    def _of_run(self, calls: Calls) -> list[Span]:
        """The calls of this run; actors that stay warm have worked for others."""
        return [span for span in calls.done if span.start >= self._began]

    @property
    def peak_gib(self) -> float:
        return max(self._memory.peak, self._earlier_peak) / 2**30

    def close(self) -> None:
        self._memory.close()
        self._timeline.close()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        return {"all": self._all.to_record(), "memory_peak": max(self._memory.peak, self._earlier_peak)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from an earlier process of the run."""
        self._all, self._earlier_peak = Account.from_record(state["all"]), int(state["memory_peak"])

    def summary(self) -> dict[str, Any]:
        """For the run's summary, from which `run.accounting.show` prints a table."""
        rates = {"matrix_products_flop_per_s": dict(self._rates)}
        memory = {"memory_peak_gib": self.peak_gib, "this_node_alone": self._config.cluster.address is not None}
        return {"account": self._all.to_record(), **rates, **memory}


def _batch_bytes(batch: Batch) -> int:
    """Bytes of the batch's arrays, as they go to the learner."""
    rows = (row for streams in batch.steps for stream in streams for row in stream.rows)
    return sum(nbytes(row) + (row.scores.nbytes if row.scores else 0) for row in rows)
