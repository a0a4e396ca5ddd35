"""PromptKD: virtual tokens before every row, the steps of prompt and student, and the roles that a run with a prompt needs."""

import asyncio
import doctest
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel

from minidist.config import DistillConfig, EvaluateConfig
from minidist.config.learner import LearnerConfig, OptimizerConfig
from minidist.config.teacher import SoftPromptConfig
from minidist.data.batching import MicroBatch, collate, pack
from minidist.data.sources import Example
from minidist.errors import DivergedError
from minidist.learners.learner import LocalLearner
from minidist.losses import reverse_kl
from minidist.losses.objectives import Match, Supervised
from minidist.methods import promptkd
from minidist.methods.promptkd import PromptedTeacher, anchor_weight, initial_prompt
from minidist.models.forward import _with_virtual_tokens, hidden_states
from minidist.models.heads import head_of
from minidist.models.shape import read_shape
from minidist.preflight.cost import role_needs, step_bytes
from minidist.types import Batch, Row, Stream
from tests.support.learners import local_learner
from tests.support.tiny import VOCABULARY, hidden_scores, random_rollouts, row_logits, tiny_model, tiny_renderer

LENGTHS = [(3, 4), (1, 9), (6, 1), (2, 2), (5, 8), (4, 3)]
FAMILIES = ["llama", "qwen3", "gpt2"]
SGD = OptimizerConfig(type="sgd", lr=1.0, grad_clip=None)
P, STEPS = 3, 10
Make = Callable[..., LocalLearner]


def text() -> Stream:
    return collate("main", random_rollouts(LENGTHS), None, objective="main")


def start(teacher: PreTrainedModel, count: int = P, seed: int = 5) -> Tensor:
    """A prompt that the teacher has never seen."""
    generator = torch.Generator().manual_seed(seed)
    return 0.5 * torch.randn(count, teacher.config.hidden_size, generator=generator)


def prompted(teacher: PreTrainedModel, prompt: Tensor | None = None, **fields: Any) -> PromptedTeacher:
    changes = {name: fields.pop(name) for name in ("anchor", "lr", "weight_decay") if name in fields}
    config = SoftPromptConfig(**({"tokens": P, "weight_decay": 0.0} | changes))
    learner = LearnerConfig(**({"backend": "single", "optimizer": SGD} | fields))
    return PromptedTeacher(teacher, start(teacher) if prompt is None else prompt, config, learner)


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes learners, and ends their threads with the test."""
    made: list[LocalLearner] = []

    def learner(model: PreTrainedModel, teacher: PromptedTeacher, **fields: Any) -> LocalLearner:
        config = LearnerConfig(**({"optimizer": SGD} | fields))
        objectives: Any = {"main": Match(reverse_kl), "gold": Supervised()}
        made.append(local_learner(model, config, objectives, steps=STEPS, teacher=teacher))
        return made[-1]

    yield learner
    for each in made:
        asyncio.run(each.close())


def step(learner: LocalLearner, *streams: Stream) -> dict[str, float]:
    return asyncio.run(learner.update(Batch(0, (streams,)))).metrics


def copy_of(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def prompt_of(teacher: PromptedTeacher) -> Tensor:
    return dict(teacher.state())["teacher_prompt"]["weight"].clone()


def prompted_logits(teacher: PreTrainedModel, row: Row, prompt: Tensor) -> Tensor:
    """Logits [L, V] at a row's labels, from the model run on the prompt and that row alone, sliced."""
    ids = torch.tensor(row.tokens[None].astype(np.int64))
    embeddings = torch.cat([prompt[None], teacher.get_input_embeddings()(ids)], 1)
    logits = teacher(inputs_embeds=embeddings, use_cache=False).logits[0, len(prompt) :]
    assert len(logits) == len(row.tokens)
    return logits[row.outputs]


def prompt_loss(student: PreTrainedModel, teacher: PreTrainedModel, stream: Stream, prompt: Tensor, anchor: float) -> Tensor:
    """The formula once more, on the whole batch at once."""
    p = torch.cat([prompted_logits(teacher, row, prompt) for row in stream.rows]).log_softmax(-1)
    with torch.no_grad():
        q = torch.cat([row_logits(student, row) for row in stream.rows]).log_softmax(-1)
        base = torch.cat([row_logits(teacher, row) for row in stream.rows]).log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean() + anchor * (p.exp() * (p - base)).sum(-1).mean()


def student_gradient(student: PreTrainedModel, teacher: PreTrainedModel, stream: Stream, prompt: Tensor) -> dict[str, Tensor]:
    q = torch.cat([row_logits(student, row) for row in stream.rows]).log_softmax(-1)
    with torch.no_grad():
        p = torch.cat([prompted_logits(teacher, row, prompt) for row in stream.rows]).log_softmax(-1)
    names, parameters = zip(*student.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad((q.exp() * (q - p)).sum(-1).mean(), parameters), strict=True))


def largest(gaps: Iterator[Tensor]) -> float:
    return max(float(gap.abs().max()) for gap in gaps)


# The layout of the virtual tokens.


def whole(padded: bool) -> MicroBatch:
    return pack(text().rows, budget=1000, padded=padded)[0]


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_row_sees_the_prompt_and_no_other_row(kind: str, padded: bool) -> None:
    """Value and gradient of both layouts, against each row alone."""
    teacher, micro, rows = tiny_model(kind, seed=1), whole(padded), text().rows
    prompt = start(teacher).requires_grad_()
    hidden = hidden_states(teacher, micro, padded=padded, prompt_PD=prompt)
    logits = head_of(teacher)(hidden)
    alone = torch.cat([prompted_logits(teacher, rows[index], prompt) for index in micro.rows])
    assert logits.shape == alone.shape == (len(micro.labels), VOCABULARY)
    assert (logits - alone).abs().max() < 2e-5 * alone.abs().max()
    found, wanted = (torch.autograd.grad(table.log_softmax(-1).square().sum(), prompt)[0] for table in (logits, alone))
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
    base = torch.cat([row_logits(teacher, rows[index]) for index in micro.rows])
    assert (alone - base).abs().max() > 0.1  # the prompt says something


@pytest.mark.parametrize("kind", FAMILIES)
def test_hiding_the_virtual_tokens_gives_the_teacher_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotary positions are relative, so shifted ones do; absolute ones must be put back."""
    teacher, micro = tiny_model(kind, seed=1), whole(True)
    plain = hidden_states(teacher, micro, padded=True)
    forward = teacher.base_model.forward

    def hiding(inputs_embeds: Tensor, **options: Any) -> Any:
        rows, length = inputs_embeds.shape[:2]
        seen = torch.ones(length, length).tril().bool()
        seen[P:, :P] = False
        options["attention_mask"] = torch.zeros(rows, 1, length, length).masked_fill(~seen, torch.finfo(torch.float32).min)
        if kind == "gpt2":
            options["position_ids"] = (torch.arange(length) - P).clamp(min=0)[None]
        return forward(inputs_embeds=inputs_embeds, **options)

    monkeypatch.setattr(teacher.base_model, "forward", hiding)
    hidden = hidden_states(teacher, micro, padded=True, prompt_PD=start(teacher))
    assert (hidden - plain).abs().max() < 2e-5 * plain.abs().max()


@pytest.mark.parametrize("padded", [True, False])
def test_rows_behind_virtual_tokens_keep_their_tokens_and_outputs(padded: bool) -> None:
    micro = whole(padded)
    longer = _with_virtual_tokens(micro, P)
    text_N = longer.positions >= P
    assert len(longer.tokens) == len(micro.tokens) + P * len(micro.rows)
    assert longer.tokens[text_N].tolist() == micro.tokens.tolist()
    assert (longer.positions[text_N] - P).tolist() == micro.positions.tolist()
    assert longer.sequence[text_N].tolist() == micro.sequence.tolist()
    assert np.flatnonzero(text_N)[micro.outputs].tolist() == longer.outputs.tolist()
    assert np.bincount(longer.sequence[~text_N]).tolist() == [P] * len(micro.rows)
    for name in ("tokens", "positions", "sequence", "outputs"):
        assert np.array_equal(getattr(_with_virtual_tokens(micro, 0), name), getattr(micro, name))


# The two steps.


@pytest.mark.parametrize(("layout", "budget", "chunk"), [("packed", 1000, 1000), ("buckets", 20, 3), ("packed", 1, 4)])
@pytest.mark.parametrize("kind", FAMILIES)
def test_prompt_and_student_step_along_their_gradients(make: Make, kind: str, layout: Any, budget: int, chunk: int) -> None:
    """The prompt moves by the gradient of its loss, the student by that of its divergence to the newly prompted teacher."""
    student, teacher, stream = tiny_model(kind), tiny_model(kind, seed=1), text()
    shape: dict[str, Any] = {"layout": layout, "micro_batch_tokens": budget, "chunk_tokens": chunk}
    resident = prompted(teacher, anchor=0.7, lr=0.1, **shape)
    before, prompt, frozen = copy_of(student), prompt_of(resident).requires_grad_(), copy_of(teacher)
    loss = prompt_loss(student, teacher, stream, prompt, 0.7)
    slope = torch.autograd.grad(loss, prompt)[0]
    old = student_gradient(student, teacher, stream, prompt.detach())
    new = student_gradient(student, teacher, stream, prompt.detach() - 0.1 * slope)

    metrics = step(make(student, resident, **shape), stream)
    total = metrics["prompt/kl_to_student_nats"] + 0.7 * metrics["prompt/kl_to_base_nats"]
    assert metrics["prompt/regulariser"] == 0.7
    assert total == pytest.approx(loss.item(), rel=1e-6, abs=1e-6)
    assert metrics["prompt/grad_norm"] == pytest.approx(slope.norm().item(), rel=1e-5)
    moved = (prompt.detach() - prompt_of(resident)) / 0.1
    assert (moved - slope).abs().max() < 1e-6 * max(1.0, 5 * float(slope.abs().max()))
    names = dict(student.named_parameters())
    scale = largest(iter(new.values()))
    assert largest(before[name] - names[name].detach() - new[name] for name in new) < 2e-5 * max(1.0, scale)
    assert largest(old[name] - new[name] for name in new) > 1e-2 * scale  # which prompt it is can be seen
    assert all(torch.equal(parameter, frozen[name]) for name, parameter in teacher.named_parameters())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())


def test_activation_checkpointing_does_not_change_the_prompt(make: Make) -> None:
    found = []
    for checkpointing in (False, True):
        resident = prompted(tiny_model(seed=1), activation_checkpointing=checkpointing)
        step(make(tiny_model(), resident), text())
        found.append(prompt_of(resident))
    assert (found[0] - found[1]).abs().max() < 1e-6


def test_a_prompt_of_no_tokens_gives_the_plain_step(make: Make) -> None:
    teacher, rollouts, weights = tiny_model(seed=1), random_rollouts(LENGTHS), []
    residents = prompted(teacher, torch.zeros(0, teacher.config.hidden_size)), prompted(teacher)
    streams = text(), collate("main", rollouts, hidden_scores(teacher, rollouts), objective="main")
    for resident, stream in zip(residents, streams, strict=True):  # what has been scored is matched to its scores
        student = tiny_model()
        metrics = step(make(student, resident), stream)
        weights.append(copy_of(student))
        assert metrics["main/loss_nats_per_token"] > 0.1
    assert largest(weights[0][name] - weights[1][name] for name in weights[0]) < 1e-6


def test_only_the_main_stream_trains_the_prompt(make: Make) -> None:
    student, resident = tiny_model(), prompted(tiny_model(seed=1))
    before = prompt_of(resident)
    gold = collate("gold", [Example(np.arange(8, dtype=np.int32), 3).as_rollout()])
    metrics = step(make(student, resident), gold)
    assert torch.equal(prompt_of(resident), before)
    assert not any(name.startswith("prompt/") or name == "gold/teacher_logprob_nats" for name in metrics)


def test_measures_are_of_the_prompted_teacher(make: Make) -> None:
    student, teacher, stream = tiny_model(), tiny_model(seed=1), text()
    resident = prompted(teacher)
    measures = asyncio.run(make(student, resident).measure(stream))
    with torch.no_grad():
        p = torch.cat([prompted_logits(teacher, row, prompt_of(resident)) for row in stream.rows]).log_softmax(-1)
    labels = torch.as_tensor(np.concatenate([row.labels for row in stream.rows]))
    assert np.abs(measures.teacher_logprob - p.gather(-1, labels[:, None])[:, 0].numpy()).max() < 1e-4
    assert measures.reverse_kl is not None and len(measures.reverse_kl) == stream.loss_tokens


def test_a_prompt_that_is_nan_stops_the_step_before_the_student_moves(make: Make) -> None:
    student, teacher = tiny_model(), tiny_model(seed=1)
    resident, before = prompted(teacher, torch.full((P, 64), float("nan"))), copy_of(student)
    with pytest.raises(DivergedError, match="teacher's prompt is not finite"):
        step(make(student, resident), text())
    assert all(torch.equal(parameter, before[name]) for name, parameter in student.named_parameters())


# What it does in the long run.


def steps_of_the_prompt(
    make: Make, student: PreTrainedModel, teacher: PromptedTeacher, count: int, at: int = 0
) -> list[dict[str, float]]:
    """`count` steps of the prompt while the student stands still at its step `at`."""
    learner = make(student, teacher)
    learner._step = at
    return [learner._teach(text()) for _ in range(count)]


ADAM = OptimizerConfig(lr=0.02, grad_clip=None)


def test_the_prompted_teacher_moves_towards_the_student(make: Make) -> None:
    resident = prompted(tiny_model(seed=1), anchor=0.0, optimizer=ADAM)
    losses = [figures["prompt/kl_to_student_nats"] for figures in steps_of_the_prompt(make, tiny_model(), resident, 60)]
    assert losses[-1] < 0.8 * losses[0]
    assert sum(after < before for before, after in pairwise(losses)) > 50


def test_a_strong_anchor_keeps_the_prompted_teacher_near_the_plain_one(make: Make) -> None:
    """At the first step; at the end of the run it holds nothing."""
    ends = {}
    for at in (0, STEPS):
        resident = prompted(tiny_model(seed=1), anchor=1000.0, optimizer=ADAM)
        ends[at] = steps_of_the_prompt(make, tiny_model(), resident, 60, at)
    held, free = ends[0], ends[STEPS]
    assert held[0]["prompt/regulariser"] == 1000 and free[0]["prompt/regulariser"] == 0
    assert held[-1]["prompt/kl_to_base_nats"] < 0.2 * held[0]["prompt/kl_to_base_nats"]
    assert held[-1]["prompt/kl_to_base_nats"] < 0.2 * free[-1]["prompt/kl_to_base_nats"]
    assert held[-1]["prompt/kl_to_student_nats"] > free[-1]["prompt/kl_to_student_nats"]


def test_the_anchor_falls_with_the_students_steps(make: Make) -> None:
    learner = make(tiny_model(), prompted(tiny_model(seed=1), anchor=2.0, optimizer=ADAM), optimizer=ADAM)
    assert [step(learner, text())["prompt/regulariser"] for _ in range(3)] == pytest.approx([2.0, 1.8, 1.6])
    assert anchor_weight(2.0, STEPS, STEPS) == 0
    assert doctest.testmod(promptkd).failed == 0


def test_a_resumed_prompt_continues_bit_for_bit(make: Make, tmp_path: Path) -> None:
    optimizer = OptimizerConfig(lr=0.01, warmup_steps=5)

    def fresh() -> tuple[LocalLearner, PromptedTeacher]:
        resident = prompted(tiny_model(seed=1), lr=0.03, weight_decay=0.1, optimizer=optimizer)
        return make(tiny_model(), resident, optimizer=optimizer), resident

    learner, resident = fresh()
    for _ in range(2):
        step(learner, text())
    asyncio.run(learner.save(tmp_path))
    asyncio.run(learner.save_state(tmp_path))
    middle, undisturbed = prompt_of(resident), [step(learner, text()) for _ in range(2)]
    resumed, again = fresh()
    asyncio.run(resumed.resume(tmp_path))
    assert torch.equal(prompt_of(again), middle) and not torch.equal(prompt_of(resident), middle)
    assert [step(resumed, text()) for _ in range(2)] == undisturbed
    assert torch.equal(prompt_of(again), prompt_of(resident))
    # Not beside model.safetensors, where vLLM would read it as the model's.
    assert not list(tmp_path.glob("*prompt*"))
    assert torch.equal(load_file(tmp_path / "teacher" / "prompt.safetensors")["prompt"], middle)


def test_the_prompt_starts_from_the_embeddings_of_its_text() -> None:
    teacher, tokenizer = tiny_model(seed=1), tiny_renderer().tokenizer
    rows = initial_prompt(teacher, tokenizer, SoftPromptConfig(tokens=7, text="123"))
    ids = tokenizer.encode("1231231", add_special_tokens=False)
    assert torch.equal(rows, teacher.get_input_embeddings()(torch.tensor(ids)).detach())
    assert len(initial_prompt(teacher, tokenizer, SoftPromptConfig(tokens=2, text="123"))) == 2
    resident = prompted(teacher.bfloat16(), rows.bfloat16())
    assert prompt_of(resident).dtype == torch.float32  # small steps would be lost in 16 bits


# Who is asked for what.

TREE: dict[str, Any] = {
    "stage": "distill",
    "run": {"directory": "runs/x"},
    "student": {"model": "runs/student"},
    "teacher": {"model": "runs/teacher", "placement": "learner", "prompt": {}},
    "data": {"prompts": {"path": "task:sort"}},
    "objective": {"type": "reverse_kl"},
}
TEXT = {"data": {"path": "task:sort"}, "objective": {"type": "kd"}}
VALIDATION = {"data": {"prompts": {"path": "task:sort"}, "validation": {"path": "task:sort"}}, "evaluation": {"every": 5}}


def config(**sections: Any) -> DistillConfig:
    return DistillConfig.model_validate(TREE | sections)


def test_prompt_defaults_are_the_published_settings() -> None:
    prompt = config().teacher.prompt
    assert prompt is not None
    assert (prompt.tokens, prompt.text, prompt.lr) == (7, "Suppose you are a student.", None)
    assert (prompt.weight_decay, prompt.anchor) == (0.01, 1.0)


@pytest.mark.parametrize(
    ("sections", "asked"),
    [
        ({}, False),
        ({"streams": {"gold": {"data": {"path": "task:sort"}}}}, False),
        ({"streams": {"text": TEXT}}, True),
        (VALIDATION, True),
        ({"prefix": {"student": 0.5, "teacher": 0.5}}, True),
        ({"rollout": {"teacher_mix": 0.2}}, True),
        ({"teacher": {"model": "runs/teacher"}}, True),
    ],
)
def test_a_teacher_actor_starts_only_if_some_text_needs_it(sections: dict[str, Any], asked: bool) -> None:
    found = config(**sections)
    assert found.main_scored == (not found.teacher.learns)
    assert ("teacher" in found.hosted) == asked == found.asks_actors
    shape = read_shape(LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1))
    roles = {need.role for need in role_needs(found, shape, shape, longest=64, gpu=None)}
    assert ("teacher" in roles) == asked


def test_the_memory_of_the_learner_includes_the_teacher() -> None:
    small = read_shape(LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1))
    large = read_shape(LlamaConfig(hidden_size=512, intermediate_size=512, num_hidden_layers=8, num_attention_heads=8))
    here, away = config(), config(teacher={"model": "runs/teacher"})
    parts = [role_needs(each, small, large, longest=64, gpu=None)[0].parts for each in (here, away)]
    assert parts[0]["weights"] - parts[1]["weights"] == 4 * large.parameters
    assert parts[0]["activations"] > 4 * parts[1]["activations"]
    assert parts[0]["optimizer"] == parts[1]["optimizer"]
    assert step_bytes(here, small, large)[0] == 0 < step_bytes(away, small, large)[0]


PROMPT: dict[str, Any] = TREE["teacher"]


@pytest.mark.parametrize(
    ("sections", "part"),
    [
        ({"teacher": {"model": "t", "placement": "learner"}}, "teacher.prompt is missing, and teacher.placement=learner needs"),
        ({"teacher": {"model": "t", "prompt": {}}}, "teacher.prompt belongs to teacher.placement=learner"),
        ({"teacher": PROMPT | {"payload": "top_k"}}, "teacher.placement=learner does not give payload top_k"),
        ({"teacher": PROMPT | {"backend": "vllm"}}, "Input should be 'hf'"),
        ({"teacher": PROMPT | {"prompt": {"tokens": 0}}}, "greater than or equal to 1"),
        ({"objective": {"type": "k2"}}, "objective.type k2 is no divergence"),
        ({"objective": {"type": "minillm"}}, "set objective.type=reverse_kl, or teacher.placement=actor"),
        ({"objective": {"type": "supervised"}, "prefix": {"student": 0, "teacher": 1}}, "supervised is no divergence"),
    ],
)
def test_prompt_settings_that_contradict_each_other_are_refused(sections: dict[str, Any], part: str) -> None:
    with pytest.raises(ValidationError, match=part):
        config(**sections)


def test_evaluate_refuses_a_teacher_that_learns() -> None:
    tree = {"stage": "evaluate", "run": TREE["run"], "models": {"a": "b"}, "teacher": PROMPT}
    with pytest.raises(ValidationError, match="evaluate trains nothing"):
        EvaluateConfig.model_validate(tree | {"data": {"test": {"path": "task:sort"}}})
