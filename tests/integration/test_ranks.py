"""Many of each role give the numbers of one: engines, teachers, learner ranks, shards of a teacher."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from minidist.concurrency import together
from minidist.config.models import LoraConfig, ModelConfig, StudentConfig
from minidist.data.batching import collate
from minidist.errors import DivergedError
from minidist.learners.learner import LocalLearner
from minidist.learners.state import StateReader
from minidist.models.hub import load_model
from minidist.roles.transfer import ChannelTransfer, ObjectStoreTransfer
from minidist.rollout.pool import Engines
from minidist.run.files import sha256
from minidist.types import Batch, Rollout, Sampling, TeacherScores, Weights
from tests.integration.conftest import SHAPE, Stack, save_model, settings
from tests.integration.test_equalities import EXACT, GREEDY, SAMPLING, on_policy_batch, plain_learner, texts, written
from tests.support.config import make_objective, objective_config, teacher_config

UNEVEN: dict[str, Any] = {"micro_batch_tokens": 90, "chunk_tokens": 40}  # many micro-batches, more than one chunk in some
WAYS: dict[str, dict[str, Any]] = {
    "ZeRO-0": {"zero_stage": 0},
    "ZeRO-1": {"zero_stage": 1},
    "ZeRO-2": {"zero_stage": 2},
    "ZeRO-3": {"zero_stage": 3},
    "parameter groups": {"zero_stage": 3, "parameter_group": 1},
    "offload": {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True},
    "checkpointing": {"zero_stage": 3, "activation_checkpointing": True},
}


@pytest.fixture(scope="module")
def batch(stack: Stack) -> Batch:
    """Rollouts of uneven length, scored, and a second stream that has fewer rows; by engines that hold the student anew."""
    stack.run(stack.engines.load(stack.student))
    return on_policy_batch(stack, written(stack, count=25, seed=5))


Expected = tuple[dict[str, np.ndarray], dict[str, float]]


@pytest.fixture(scope="module")
def expected(stack: Stack, batch: Batch) -> Expected:
    return step_in_one_process(stack, batch)


def step_in_one_process(stack: Stack, batch: Batch) -> Expected:
    """Weights and metrics of the plain learner, on the CPU, after a step of gradient descent at rate 1."""
    single = plain_learner(stack)
    update = asyncio.run(single.update(batch))
    return weights_of(single), update.metrics


def weights_of(learner: Any, stack: Stack | None = None) -> dict[str, np.ndarray]:
    weights: Weights = asyncio.run(learner.weights()) if stack is None else stack.run(learner.weights())
    return {name: array.copy() for name, array in weights.arrays.items()}


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], atol: float = 3e-6) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, atol=atol, err_msg=name)


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_give_the_gradient_of_one(stack: Stack, batch: Batch, expected: Expected, way: str) -> None:
    two_ranks_give_the_step(stack, batch, expected, way)


def two_ranks_give_the_step(stack: Stack, batch: Batch, expected: Expected, way: str, *, atol: float = 3e-6) -> None:
    """Also in tests/gpu, over NCCL."""
    learner = stack.ranks(settings(**UNEVEN, **WAYS[way]))
    update = stack.run(learner.update(batch))
    wanted, metrics = expected
    assert_same(weights_of(learner, stack), wanted, atol)
    for name in ("loss/nats_per_token", "main/teacher_logprob_nats", "sft/loss_nats_per_token", "learner/grad_norm"):
        assert update.metrics[name] == pytest.approx(metrics[name], rel=1e-4), name
    assert update.metrics["learner/loss_tokens"] == metrics["learner/loss_tokens"]
    assert stack.run(learner.describe())["ranks"] == 2


FAMILY: dict[str, dict[str, Any]] = {
    "sinkhorn": {"type": "sinkhorn", "group_tokens": 4},
    "jsd, union": {"type": "jsd", "support": "union", "top_k": 5},
}


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("name", FAMILY)
def test_two_ranks_give_the_gradient_of_one_whatever_the_objective(stack: Stack, batch: Batch, name: str, stage: int) -> None:
    """Groups of tokens stay whole, and ranks of a sharded head call it equally often, in chunks smaller than some answers."""
    main = replace(batch, steps=(batch.steps[0][:1],))
    single, objectives = plain_learner(stack), {"main": objective_config(**FAMILY[name])}
    single._objectives = {"main": make_objective(**FAMILY[name])}
    wanted = asyncio.run(single.update(main)).metrics
    learner = stack.ranks(settings(micro_batch_tokens=90, chunk_tokens=7, zero_stage=stage), objectives=objectives)
    found = stack.run(learner.update(main)).metrics
    assert_same(weights_of(learner, stack), weights_of(single))
    assert found["loss/nats_per_token"] == pytest.approx(wanted["loss/nats_per_token"], rel=1e-4)


def watch_gathers() -> None:
    """In a rank: from now on ZeRO-3 keeps no parameter gathered until its next use, and counts what it gathers."""
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator as Coordinator

    from minidist.learners import deepspeed

    plain: Any = deepspeed.engine_settings
    whole: Any = Coordinator._PartitionedParameterCoordinator__all_gather_params_  # type: ignore[attr-defined]
    forget: Any = Coordinator._invalidate_trace

    def settings_that_keep_none(*arguments: Any) -> dict[str, Any]:
        made = plain(*arguments)
        kept = ("param_persistence_threshold", "max_reuse_distance", "prefetch_bucket_size")
        none = {f"stage3_{name}": 0 for name in kept}
        return made | {"zero_optimization": made["zero_optimization"] | none}

    def gather(self: Any, params: Any, forward: bool, quantize: bool = False) -> None:
        Counted.gathers += [param.ds_numel for param in params if param.ds_status.name == "NOT_AVAILABLE"]
        whole(self, params, forward, quantize)

    def invalidate(self: Any) -> None:
        Counted.forgotten += 1
        forget(self)

    deepspeed.engine_settings = settings_that_keep_none
    Coordinator._PartitionedParameterCoordinator__all_gather_params_ = gather  # type: ignore[attr-defined]
    Coordinator._invalidate_trace = invalidate
    Counted.undo = lambda: (
        setattr(deepspeed, "engine_settings", plain),
        setattr(Coordinator, "_PartitionedParameterCoordinator__all_gather_params_", whole),
        setattr(Coordinator, "_invalidate_trace", forget),
    )


class Counted:
    """In a rank: sizes of the parameters that were gathered, and how often ZeRO-3 forgot the order of the modules."""

    gathers: ClassVar[list[int]] = []
    forgotten: ClassVar[int] = 0
    undo: ClassVar[Any] = None


def counted() -> tuple[list[int], int]:
    """What has been counted since the last time."""
    found = Counted.gathers, Counted.forgotten
    Counted.gathers, Counted.forgotten = [], 0
    return found


def stop_watching() -> None:
    Counted.undo()


@pytest.mark.parametrize("chunk_tokens", [3, 1000])
def test_a_sharded_head_is_gathered_twice_a_micro_batch_whatever_the_chunks(
    stack: Stack, batch: Batch, chunk_tokens: int
) -> None:
    """Once for the chunks, and once for their backward pass; an untied head, the largest parameter of the model."""
    save_model(stack.student.parent / "untied", SHAPE | {"tie_word_embeddings": False, "intermediate_size": 32}, 3)
    student = StudentConfig(model=str(stack.student.parent / "untied"))
    main = replace(batch, steps=(batch.steps[0][:1],))
    stack.run(together(rank.ask(watch_gathers) for rank in stack.pair))
    try:
        learner = stack.ranks(settings(**UNEVEN | {"chunk_tokens": chunk_tokens}, zero_stage=3), student=student)
        for _ in range(2):  # the order of the modules is known from the second step on
            stack.run(together(rank.ask(counted) for rank in stack.pair))
            update = stack.run(learner.update(main))
        found = stack.run(together(rank.ask(counted) for rank in stack.pair))
    finally:
        stack.run(together(rank.ask(stop_watching) for rank in stack.pair))
    head = load_model(ModelConfig(model=student.model or ""), "student").get_output_embeddings().weight.numel()
    micro_batches = int(update.metrics["learner/micro_batches"]) // 2
    for gathers, forgotten in found:
        # The embedding has as many numbers as the head, and is gathered as often.
        assert gathers.count(head) == 2 * 2 * micro_batches
        assert forgotten == 0


def test_two_engines_and_two_teachers_give_what_one_gives(stack: Stack, expected: Any, batch: Batch) -> None:
    """2 rollout actors x 2 teacher actors x 2 ranks under ZeRO-3, against 1 x 1 x 1."""
    prompts, one = stack.prompts(texts(25)), stack.engine
    for sampling in (GREEDY, replace(SAMPLING, seed=5)):
        alone = stack.run(one.generate(prompts, sampling))
        both = stack.run(stack.engines.generate(prompts, sampling))
        assert [r.tokens.tolist() for r in both] == [r.tokens.tolist() for r in alone]
        assert [r.prompt.row for r in both] == [r.prompt.row for r in alone]
        assert max(np.abs(a.logprobs - b.logprobs).max() for a, b in zip(alone, both, strict=True)) < EXACT
    three = stack.run(stack.engines.generate(prompts[:3], replace(SAMPLING, samples=3)))
    assert [(r.prompt.row, r.sample) for r in three] == [(row, sample) for row in range(3) for sample in range(3)]
    scores = stack.run(stack.teachers.score(both))
    for own, other in zip(stack.run(stack.teacher.score(both)), scores, strict=True):
        assert np.abs(own.hidden - other.hidden).max() < 1e-5
    dealt = replace(batch, steps=((collate("main", both, scores, objective="main"), batch.steps[0][1]),))
    learner = stack.ranks(settings(**UNEVEN, zero_stage=3))
    stack.run(learner.update(dealt))
    assert_same(weights_of(learner, stack), expected[0], atol=1e-5)


def test_partitioned_weights_reach_every_engine(stack: Stack, batch: Batch) -> None:
    """Through the object store, and over a channel, for which they are gathered layer by layer."""
    learner, transfer = stack.ranks(settings(zero_stage=3)), ObjectStoreTransfer(tolerance_nats=5e-3)
    channel = ChannelTransfer(5e-3, "gloo", processes=1, timeout_s=60)
    stack.run(learner.update(batch))
    assert stack.run(transfer.publish(learner, stack.engines.members)) < EXACT
    sequences = [[2, 5, 9, 4, 11, 3], [7, 7, 20, 6, 2, 15, 8]]
    said = [stack.run(engine.score(sequences)) for engine in stack.engines.members]
    for left, right in zip(*said, strict=True):
        assert left == pytest.approx(right, abs=1e-6)
    stack.run(stack.engines.load(stack.student))
    assert stack.run(channel.publish(learner, stack.engines.members)) < EXACT
    assert [stack.run(engine.score(sequences)) for engine in stack.engines.members] == said
    stack.run(transfer.publish(stack.learner, stack.engines.members))  # as the other tests expect them


def test_two_ranks_measure_what_one_measures(stack: Stack, batch: Batch) -> None:
    learner, single = stack.ranks(settings(**UNEVEN, zero_stage=3)), plain_learner(stack)
    for stream in (*batch.steps[0], one_row(batch).steps[0][0]):
        ours, theirs = stack.run(learner.measure(stream)), asyncio.run(single.measure(stream))
        assert ours.row.tolist() == theirs.row.tolist()
        assert np.abs(ours.student_logprob - theirs.student_logprob).max() < EXACT
        if theirs.reverse_kl is not None:
            assert ours.reverse_kl is not None and np.abs(ours.reverse_kl - theirs.reverse_kl).max() < EXACT


def one_row(batch: Batch) -> Batch:
    """Fewer rows than ranks: one of them has nothing to learn from."""
    stream = batch.steps[0][0]
    return replace(batch, steps=((replace(stream, rows=stream.rows[:1], loss_tokens=len(stream.rows[0].labels)),),))


@pytest.mark.parametrize("stage", [2, 3])
def test_a_rank_without_rows_keeps_step(stack: Stack, batch: Batch, stage: int) -> None:
    learner, single = stack.ranks(settings(zero_stage=stage)), plain_learner(stack)
    asyncio.run(single.update(one_row(batch)))
    stack.run(learner.update(one_row(batch)))
    assert_same(weights_of(learner, stack), weights_of(single))


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_loss_that_is_not_finite_on_one_rank_stops_all(stack: Stack, batch: Batch, expected: Any, stage: int) -> None:
    learner = stack.ranks(settings(**UNEVEN, zero_stage=stage))
    before = weights_of(learner, stack)
    with pytest.raises(DivergedError, match="the loss of stream main"):
        stack.run(learner.update(poisoned(batch)))
    assert_same(weights_of(learner, stack), before, atol=0)
    stack.run(learner.update(batch))  # and nothing of the bad step is left in the gradient
    assert_same(weights_of(learner, stack), expected[0])


def poisoned(batch: Batch) -> Batch:
    """One row's teacher says something that is no number."""
    stream = batch.steps[0][0]
    row = stream.rows[3]
    assert row.scores is not None and row.scores.hidden is not None
    bad: TeacherScores = replace(row.scores, hidden=np.full_like(row.scores.hidden, np.nan))
    rows = (*stream.rows[:3], replace(row, scores=bad), *stream.rows[4:])
    return replace(batch, steps=((replace(stream, rows=rows), *batch.steps[0][1:]),))


# A large eps: where a gradient is all rounding, a small one would make a step of it.
ADAM = {"type": "adamw", "lr": 1e-2, "eps": 1e-3, "grad_clip": 0.5, "weight_decay": 0.1}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_training_goes_on_with_another_number_of_ranks(stack: Stack, batch: Batch, tmp_path: Path, stage: int) -> None:
    """Two steps with two ranks, one more with one, one more with two again; against four steps with one. Each goes on with the
    same bits."""
    config = adam(zero_stage=stage)
    undisturbed = adam_learner(stack)
    for _ in range(4):
        asyncio.run(undisturbed.update(batch))
    two = stack.ranks(config)
    for _ in range(2):
        stack.run(two.update(batch))
    sums = stack.run(two.save_state(tmp_path / "a"))
    assert {name: sha256(tmp_path / "a" / name) for name in sums} == sums
    assert len(sums) == (2 if stage else 1)
    one = adam_learner(stack)
    asyncio.run(one.resume(tmp_path / "a"))
    asyncio.run(one.save_state(tmp_path / "one"))
    assert_same_state(tmp_path / "one", tmp_path / "a")
    asyncio.run(one.update(batch))
    asyncio.run(one.save_state(tmp_path / "b"))
    two = stack.ranks(config)
    stack.run(two.resume(tmp_path / "b"))
    stack.run(two.save_state(tmp_path / "two"))
    assert_same_state(tmp_path / "two", tmp_path / "b")
    update = stack.run(two.update(batch))
    assert update.version == 4
    assert_same(weights_of(two, stack), weights_of(undisturbed), atol=2e-5)


def assert_same_state(found: Path, wanted: Path) -> None:
    """Two checkpoints, of whatever numbers of ranks, hold the same bits."""
    left, right = StateReader(found), StateReader(wanted)
    assert left.keys == right.keys and left.steps == right.steps and len(left.keys) > 20
    for parameter in {key.rpartition("|")[0] for key in left.keys}:
        pairs = left.tensors(parameter), right.tensors(parameter)
        assert all(torch.equal(tensor, pairs[1][kind]) for kind, tensor in pairs[0].items()), parameter


def adam(**changes: Any) -> Any:
    config = settings(**changes)
    return config.model_copy(update={"optimizer": config.optimizer.model_copy(update=ADAM)})


def adam_learner(stack: Stack) -> LocalLearner:
    return plain_learner(stack, adam(backend="single"))


def test_adapters_of_a_partitioned_student_are_published_merged(stack: Stack, batch: Batch) -> None:
    student = StudentConfig(model=str(stack.student), lora=LoraConfig(rank=4, alpha=8))
    learner = stack.ranks(settings(zero_stage=3), student=student)
    before = weights_of(learner, stack)
    for _ in range(2):
        stack.run(learner.update(batch))
    after = weights_of(learner, stack)
    assert before.keys() == after.keys() and not any("lora" in name for name in after)
    moved = {name for name in before if np.abs(before[name] - after[name]).max() > 1e-6}
    assert moved and all(name.endswith("_proj.weight") for name in moved)
    transfer = ObjectStoreTransfer(tolerance_nats=5e-3)
    assert stack.run(transfer.publish(learner, stack.engines.members)) < EXACT
    stack.run(transfer.publish(stack.learner, stack.engines.members))


@pytest.mark.parametrize("payload", ["hidden", "top_k"])
def test_a_teacher_in_two_shards_equals_the_whole_one(stack: Stack, payload: Any) -> None:
    rollouts = written(stack, count=9)
    config = teacher_config(model=str(stack.teacher_path), payload=payload, top_k=5, batch_tokens=64)
    shards = stack.shards(config)
    for some in (rollouts, rollouts[:1]):  # the second time one of them has nothing to score
        whole = stack.run(stack.teachers.score(some))
        for own, other in zip(stack.run(shards.score(some)), whole, strict=True):
            if payload == "hidden":
                assert np.abs(own.hidden - other.hidden).max() < 1e-4
            else:
                assert own.top_logprobs.shape == (len(own.logprobs), 5)
    prompts = stack.prompts(texts(5))
    assert told(stack.run(shards.extend(prompts, SAMPLING))) == told(stack.run(stack.teacher.extend(prompts, SAMPLING)))


def told(rollouts: list[Rollout]) -> list[list[int]]:
    return [rollout.tokens.tolist() for rollout in rollouts]


def test_engines_deal_prompts_in_turn() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.rows: list[int] = []

        async def generate(self, prompts: Any, sampling: Sampling) -> list[Any]:
            self.rows += list(prompts)
            return sampling.jobs(prompts)

    members: list[Any] = [Recorder(), Recorder(), Recorder()]
    done = asyncio.run(Engines(members).generate(list(range(7)), Sampling(samples=2, max_new_tokens=1)))  # type: ignore[arg-type]
    assert [member.rows for member in members] == [[0, 3, 6], [1, 4], [2, 5]]
    assert done == [(row, sample) for row in range(7) for sample in range(2)]
