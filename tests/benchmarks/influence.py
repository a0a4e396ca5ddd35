"""Per-sample influence: two forward passes against one backward pass for each sample, and against torch.func.

Usage: python -m tests.benchmarks.influence [FILE]  (writes the records there; default runs/bench/influence.json)

Each way is timed in turn, round by round, on a BERT-class model in float32 at batch 32; a ratio is a median of rounds.
The three must agree. Also: the peak memory and the time of a step of each lesson, as ratios to online distillation's, in
processes of their own.
"""

import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minidist.config.lessons import LGTMConfig, MetaConfig, OnlineConfig
from minidist.config.models import StudentConfig
from minidist.learners.group import OneProcess
from minidist.models.classifiers import Predictor, load_predictor
from minidist.teaching.lgtm import LGTM
from minidist.teaching.meta import Meta
from minidist.teaching.online import Online
from minidist.teaching.pair import Pair
from minidist.types import Exercise, LabelledRow, TaskFacts
from tests.support.classifiers import tokenizer
from tests.support.lessons import learning

ROWS, ROUNDS = 32, 5
SHAPES = [(2, 128, 8), (2, 128, 16), (2, 128, 32), (4, 256, 32), (4, 256, 64), (6, 384, 64)]  # layers, width, tokens


def predictor(layers: int, width: int, folder: Path) -> Predictor:
    """A BERT-class classifier with random weights and a vocabulary of 8,192."""
    shape = {"model_type": "bert", "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 32}
    shape |= {"intermediate_size": 4 * width, "vocab_size": 8192}
    config = StudentConfig(architecture=shape, tokenizer=str(tokenizer(folder)))
    return load_predictor(config, TaskFacts("classes", ("a", "b")), "student.model", seed=0)


def exercise(tokens: int) -> Exercise:
    """Random rows of one length, and as many held out."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 8000, (2 * ROWS, tokens), generator=generator).numpy()
    rows = tuple(LabelledRow(number, line, number % 2) for number, line in enumerate(ids))
    return Exercise(0, rows[:ROWS], rows[:ROWS], rows[ROWS:])


def pair(layers: int, width: int, folder: Path, loss: dict[str, Any], teacher_loss: dict[str, Any]) -> Pair:
    """A student of `layers` layers and a teacher of twice as many."""
    adamw = {"type": "adamw", "lr": 1e-4}
    student = learning("student", predictor(layers, width, folder), loss, optimizer=adamw)
    teacher = learning("teacher", predictor(2 * layers, width, folder), teacher_loss, optimizer=adamw)
    return Pair(student, teacher, ROWS, OneProcess())


def ways(both: Pair, drawn: Exercise) -> dict[str, Callable[[], Tensor]]:
    """Each way to the influence of all rows, [B]."""
    parameters = list(both.student.parameters.values())
    direction = both.gradient(both.student, Exercise(0, drawn.feedback, drawn.feedback)).gradient
    model = both.student.predictor.model
    inputs = both.student.predictor.inputs(drawn.student)
    assert both.teacher is not None
    imitated = both.teacher.predict(drawn.teacher)  # which every way needs, and which takes them the same time
    target_NC = imitated.logprobs_NC()
    lesson, micro = LGTM(both, LGTMConfig()), next(both.micros(drawn))

    def finite_differences() -> Tensor:
        return lesson.influence_of(micro, imitated, direction)

    def loop() -> Tensor:
        found = []
        for number, row in enumerate(drawn.student):
            own = both.student.predictor.predict([row]).logprobs_NC()
            loss = (target_NC[number].exp() * (target_NC[number] - own)).sum()
            found.append(sum((g * v).sum() for g, v in zip(torch.autograd.grad(loss, parameters), direction, strict=True)))
        return torch.stack(found)  # type: ignore[arg-type]

    def of_one(weights: dict[str, Tensor], ids: Tensor, target_C: Tensor) -> Tensor:
        output = torch.func.functional_call(model, weights, (), {"input_ids": ids[None]})  # rows of one length need no mask
        logprobs_C = torch.log_softmax(output.logits[0], -1)
        return (target_C.exp() * (target_C - logprobs_C)).sum()

    def per_sample() -> Tensor:
        weights = {name: each.detach() for name, each in both.student.parameters.items()}
        each = torch.func.vmap(torch.func.grad(of_one), in_dims=(None, 0, 0))
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            gradients = each(weights, inputs["input_ids"], target_NC)
        return sum((gradients[name].flatten(1) @ g.flatten()) for name, g in zip(weights, direction, strict=True))  # type: ignore[return-value]

    return {"finite_differences": finite_differences, "loop": loop, "torch.func": per_sample}


def compare(layers: int, width: int, tokens: int, threads: int) -> dict[str, Any]:
    """Seconds of each way, median of rounds in turn, and how far the results are apart."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        both = pair(layers, width, Path(folder), {"kd": {}}, {"kd": {}})
        made = ways(both, exercise(tokens))
        values = {name: way() for name, way in made.items()}  # warm
        seconds: dict[str, list[float]] = {name: [] for name in made}
        for _ in range(ROUNDS):
            for name, way in made.items():
                start = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    exact = values["loop"]
    errors = {name: float((value - exact).abs().max() / exact.abs().max()) for name, value in values.items()}
    ratios = {f"{name}_over_differences": medians[name] / medians["finite_differences"] for name in ("loop", "torch.func")}
    return {
        "layers": layers,
        "width": width,
        "tokens": tokens,
        "rows": ROWS,
        "threads": threads,
        "seconds": medians,
        "errors": errors,
    } | ratios


def step(name: str, results: Any) -> None:
    """Peak memory, GiB, and seconds of a step of a lesson, in this process."""
    terms: dict[str, Any] = {"cross_entropy": {"weight": 0.6}, "kd": {"weight": 0.4}}
    with tempfile.TemporaryDirectory() as folder:
        both = pair(4, 256, Path(folder), {"kd": {}}, {} if name == "meta" else terms)
        lessons = {
            "online": lambda: Online(both, OnlineConfig()),
            "meta": lambda: Meta(both, MetaConfig()),
            **{way: lambda way=way: LGTM(both, LGTMConfig(influence=way)) for way in ("hvp", "explicit", "reweight")},  # type: ignore[misc]
        }
        lesson, drawn, seconds = lessons[name](), exercise(64), []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            lesson.teach(drawn)
            seconds.append(time.perf_counter() - start)
    status = Path("/proc/self/status").read_text()  # of this process alone: a usage count would begin with its parent's
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 2**20
    results.put({"lesson": name, "peak_gib": peak, "seconds": statistics.median(seconds)})


def lessons() -> list[dict[str, Any]]:
    """Each lesson's step in a process of its own, with ratios to online distillation's."""
    context, found = multiprocessing.get_context("spawn"), []
    for name in ("online", "hvp", "explicit", "reweight", "meta"):
        results = context.Queue()
        process = context.Process(target=step, args=(name, results))
        process.start()
        found.append(results.get())
        process.join()
    base = found[0]
    return [
        each | {"memory_ratio": each["peak_gib"] / base["peak_gib"], "time_ratio": each["seconds"] / base["seconds"]}
        for each in found
    ]


def main() -> None:
    """Measure, print and write."""
    file = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/bench/influence.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    record = {"influence": [compare(*shape, threads) for shape in SHAPES for threads in (1, 2)], "lessons": lessons()}
    file.write_text(json.dumps(record, indent=2) + "\n")
    for each in record["influence"]:
        shape = "{layers} layers x {width}, {tokens} tokens, {threads} threads".format(**each)
        shown = f"{shape}: a loop takes {each['loop_over_differences']:.1f} times as long"
        print(f"{shown}, torch.func {each['torch.func_over_differences']:.1f} times; errors {each['errors']}")
    for each in record["lessons"]:
        print("{lesson}: {memory_ratio:.2f} of online distillation's memory, {time_ratio:.2f} of its time".format(**each))


if __name__ == "__main__":
    main()
