"""What supervision costs: `python -m tests.benchmarks.supervision`.

The roles of `tests.benchmarks.overlap`: engine, teacher and learner in actors of their own, models of 3 and 6 M parameters.
Rounds of on-policy steps take turns in the same actors, with and without supervision: signs of life at the default pause, every
call with a deadline, engine and teacher behind `Supervised`; or none of it, and Ray's handles alone. Two rounds on the same
prompts are a pair, in alternating order; `cost` is the median of the pairs' ratios of step times, less 1.
"""

import asyncio
import json
import statistics
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from minidist.cluster.cluster import Cluster
from minidist.cluster.heartbeat import Heartbeats
from minidist.cluster.killing import kill
from minidist.cluster.remote import Remote
from minidist.config.cluster import ClusterConfig
from minidist.config.data import RenderConfig
from minidist.config.supervision import SupervisionConfig
from minidist.data.rendering import Renderer, character_tokenizer
from tests.benchmarks.overlap import SHAPES, _Bench, _save

PAIRS, STEPS = 12, 6
RESULTS = Path("runs/bench/supervision.json")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        pairs = asyncio.run(_measure(Path(folder)))
    ratios = [pair["with"] / pair["without"] for pair in pairs]
    cost = statistics.median(ratios) - 1
    low, high = statistics.quantiles(ratios, n=4)[0] - 1, statistics.quantiles(ratios, n=4)[2] - 1
    step = statistics.median(pair["without"] for pair in pairs)
    print(f"step {step:.3f} s; cost of supervision {cost:+.2%} (quartiles {low:+.2%} to {high:+.2%} of {len(pairs)} pairs)")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"cost": cost, "quartiles": [low, high], "step_s": step, "pairs": pairs}, indent=1))


async def _measure(folder: Path) -> list[dict[str, float]]:
    renderer = Renderer(character_tokenizer("".join(chr(0x4E00 + i) for i in range(4094))), RenderConfig())
    for role, sizes in SHAPES.items():
        _save(folder / role, renderer, sizes)
    pairs: list[dict[str, float]] = []
    # Its own signs of life would go on in the rounds without.
    config = ClusterConfig(threads=1, supervision=SupervisionConfig(heartbeat_s=1e6, heartbeat_timeout_s=1e7))
    async with Cluster(config, folder / "logs") as cluster:
        bench = await _Bench.of(folder, renderer, cluster)
        await bench.run(0, 3)  # warms up
        with_, without = _supervised(bench, cluster), _bare(bench)
        for number in range(PAIRS):
            order = [("with", with_), ("without", without)][:: 1 if number % 2 else -1]
            pairs.append({})
            for name, roles in order:
                roles.taken = number * STEPS  # its seed
                async with _beating(cluster, name == "with"):
                    steps = await roles.run(0, STEPS)
                pairs[-1][name] = statistics.median(step["speed/seconds_per_step"] for step in steps)
            print(f"with {pairs[-1]['with']:.3f} s, without {pairs[-1]['without']:.3f} s", flush=True)
    return pairs


def _supervised(bench: _Bench, cluster: Cluster) -> _Bench:
    """The roles as a run has them."""
    engine, teacher = (cluster.supervise([role], _never, {}) for role in (bench.engine, bench.teacher))
    return _Bench(engine, teacher, bench.learner)


def _bare(bench: _Bench) -> _Bench:
    """The same actors, of which nobody asks how they are."""
    engine, teacher, learner = (Remote(role.name, role.actor) for role in (bench.engine, bench.teacher, bench.learner))
    return _Bench(engine, teacher, learner)


def _never() -> None:
    raise AssertionError("no actor dies here")


@asynccontextmanager
async def _beating(cluster: Cluster, beats: bool) -> AsyncGenerator[None, None]:
    """Signs of life are asked for inside, at the default pause."""
    actors: Any = cluster.actors
    task = asyncio.create_task(Heartbeats(SupervisionConfig(), lambda: actors.seated if beats else [], kill).run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


if __name__ == "__main__":
    main()
