"""Head and divergence in chunks, the plain computation and TRL's: `python -m tests.benchmarks.chunked [tokens [dtypes]]`.

Forward and backward of one divergence on the same tensors: V = 151,936, hidden size 1,024 of the student, 2,048 of the teacher,
4,096 tokens, or as many as the plain computation has the memory for.
Each measurement has a process of its own. Memory is the highest resident size while it runs, less what was there before (hidden
states and heads) and less the gradients that it returns. Times are medians over rounds in which the ways take turns; TRL has
one round.
"""

import gc
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from tests.support.config import make_objective

VOCABULARY, STUDENT, TEACHER, ROUNDS = 151_936, 1_024, 2_048, 3
DIVERGENCES: dict[str, dict[str, Any]] = {
    "forward_kl": {"type": "forward_kl"},
    "reverse_kl": {"type": "reverse_kl"},
    "jsd": {"type": "jsd"},
    "akl": {"type": "akl"},
}
TRL = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}  # its beta
PLAIN_TABLES = {"forward_kl": 5, "reverse_kl": 5, "jsd": 9, "akl": 12}
"""Tables of float32 logits that the plain way holds at its peak, as measured."""
RESULTS = Path("runs/bench/chunked.json")


def main() -> None:
    tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 4096
    dtypes = sys.argv[2:] or ["float32", "bfloat16"]
    rows = [row for dtype in dtypes for row in _compare(tokens, dtype)]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"result: {RESULTS}")


def _compare(wanted: int, dtype: str) -> list[dict[str, Any]]:
    print(f"{dtype}: seconds (ratio to plain), GiB above what is given and returned (ratio to plain)", flush=True)
    rows: list[dict[str, Any]] = []
    for name in DIVERGENCES:
        tokens = _room(name, wanted)
        ways = ["plain", "minidist"] + (["trl"] if name in TRL else [])
        found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for turn in range(ROUNDS):
            for way in ways if not turn else ways[:2]:
                found[way].append(_alone(way, name, tokens, dtype))
        row: dict[str, Any] = {"divergence": name, "tokens": tokens, "dtype": dtype}
        for way, runs in found.items():
            row[way] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        rows.append(row)
        plain, shown = row["plain"], []
        for way in ways:
            seconds, size = row[way]["seconds"], row[way]["bytes"]
            ratios = seconds / plain["seconds"], size / plain["bytes"]
            shown.append(f"{way} {seconds:.1f} s ({ratios[0]:.2f}), {size / 2**30:.2f} GiB ({ratios[1]:.3f})")
        differs = [f"{abs(row['minidist'][figure] / plain[figure] - 1):.1e}" for figure in ("loss", "slope")]
        print(
            f"  {name}, {tokens} tokens: {'; '.join(shown)}; loss, gradient norm differ by {' and '.join(differs)}", flush=True
        )
    return rows


def _room(name: str, tokens: int) -> int:
    """Tokens, halved until the plain way fits into three quarters of the memory that is free."""
    while PLAIN_TABLES[name] * tokens * VOCABULARY * 4 > 0.75 * psutil.virtual_memory().available:
        tokens //= 2
    return tokens


def _alone(way: str, name: str, tokens: int, dtype: str) -> dict[str, float]:
    """One measurement in a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_measure, args=(there, way, name, tokens, dtype))
    process.start()
    there.close()
    try:
        return here.recv()
    finally:
        process.join()


def _measure(answer: Connection, way: str, name: str, tokens: int, dtype: str) -> None:
    import torch

    generator = torch.Generator().manual_seed(0)

    def drawn(rows: int, columns: int, size: float) -> Any:
        return (size * torch.randn(rows, columns, generator=generator)).to(getattr(torch, dtype))

    hidden, taught = drawn(tokens, STUDENT, 1.0), drawn(tokens, TEACHER, 1.0)
    weight, theirs = drawn(VOCABULARY, STUDENT, 3 / STUDENT**0.5), drawn(VOCABULARY, TEACHER, 3 / TEACHER**0.5)
    hidden.requires_grad_()
    weight.requires_grad_()
    loss_of = {"plain": _plain, "minidist": _ours, "trl": _trl}[way](name)
    loss_of(hidden[:8], weight, taught[:8], theirs).backward()  # libraries are loaded, threads are there
    hidden.grad = weight.grad = None
    gc.collect()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    start = time.perf_counter()
    loss = loss_of(hidden, weight, taught, theirs)
    loss.backward()
    seconds = time.perf_counter() - start
    returned = sum(each.grad.numel() * each.grad.element_size() for each in (hidden, weight))
    answer.send(
        {
            "seconds": seconds,
            "bytes": _resident("VmHWM") - before - returned,
            "loss": float(loss.detach()),
            "slope": float(weight.grad.float().norm()),
        }
    )


def _resident(field: str) -> int:
    """Bytes of this process, from the kernel."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


Loss = Callable[[Any, Any, Any, Any], Any]


def _plain(name: str) -> Loss:
    """As it would be written down: all logits, then the divergence, then autograd."""
    import torch

    from minidist.losses.objectives import divergence
    from tests.support.config import objective_config

    function = divergence(objective_config(**DIVERGENCES[name]))  # type: ignore[arg-type]

    def loss(hidden: Any, weight: Any, taught: Any, theirs: Any) -> Any:
        with torch.no_grad():
            teacher = torch.log_softmax((taught @ theirs.T).float(), -1)
        return function(torch.log_softmax((hidden @ weight.T).float(), -1), teacher).sum()

    return loss


def _ours(name: str) -> Loss:
    import torch

    from minidist.config.learner import MeasureConfig
    from minidist.losses.chunked import LazyLogits, LinearHead, chunked_loss
    from minidist.losses.targets import TokenTargets

    objective, chunk = make_objective(**DIVERGENCES[name]), MeasureConfig().chunk(VOCABULARY)

    def loss(hidden: Any, weight: Any, taught: Any, theirs: Any) -> Any:
        labels = torch.zeros(len(hidden), dtype=torch.long)
        student, teacher = LazyLogits(LinearHead(weight), hidden), LazyLogits(LinearHead(theirs), taught)
        return chunked_loss(objective, student, TokenTargets(labels), teacher=teacher, chunk_tokens=chunk).loss

    return loss


def _trl(name: str) -> Loss:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction  # type: ignore[import-not-found]

    apply = partial(ChunkedDivergenceFunction.apply)

    def loss(hidden: Any, weight: Any, taught: Any, theirs: Any) -> Any:
        return apply(hidden, weight, None, taught, theirs, None, TRL[name])[0].sum()

    return loss


if __name__ == "__main__":
    main()
