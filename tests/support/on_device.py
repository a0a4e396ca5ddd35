"""What must hold on every device, with the real engines. `tests/integration` runs it on a CPU, `tests/gpu` on GPUs."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minidist.data.batching import collate
from minidist.roles.transfer import ChannelTransfer, ObjectStoreTransfer
from minidist.rollout.mixed.turns import TurnTakingEngine
from minidist.types import Array, Finish, Rollout, Sampling
from tests.integration.conftest import Stack
from tests.integration.test_equalities import PROMPT, on_policy_batch, texts, written


@dataclass(frozen=True)
class Room:
    """The largest differences of log-probabilities that rounding explains, nats: on average, and of one token."""

    mean: float
    largest: float


ROOMS = {
    ("float32", False): Room(5e-5, 2e-4),
    ("float32", True): Room(0.005, 0.05),  # attention kernels may multiply in TF32
    ("bfloat16", False): Room(0.05, 0.5),
    ("bfloat16", True): Room(0.05, 0.5),
}
"""By precision, and whether the device is a GPU. Those of bfloat16 are the defaults of `canaries`."""


def room_of(stack: Stack) -> Room:
    return ROOMS[stack.dtype, stack.on_gpu]


def assert_close(stack: Stack, found: Array, wanted: Array) -> None:
    differences = np.abs(np.asarray(found, dtype=np.float64) - wanted)
    room = room_of(stack)
    assert differences.mean() <= room.mean and differences.max() <= room.largest, (differences.mean(), differences.max())


def measured(stack: Stack, rollouts: list[Rollout]) -> Array:
    """The learner's log-probabilities of the tokens of all rollouts, one after another."""
    return stack.run(stack.learner.measure(collate("main", rollouts, objective="main"))).student_logprob


def published(stack: Stack, *engines: Any) -> None:
    """The engines have the learner's weights, by the proof of a run."""
    stack.run(ObjectStoreTransfer(room_of(stack).largest).publish(stack.learner, list(engines)))


def engine_and_learner_agree_after_each_update(stack: Stack) -> None:
    for seed in (1, 2):
        stack.run(stack.learner.update(on_policy_batch(stack, written(stack, seed=seed))))
        before = stack.run(stack.engine.score([PROMPT]))
        published(stack, stack.engine)
        assert stack.run(stack.engine.score([PROMPT])) != before, "the update changes the weights"
        rollouts = written(stack, seed=seed)
        sampled = np.concatenate([rollout.logprobs for rollout in rollouts])
        assert np.std(sampled) > 0.3  # not a uniform model, on which anything agrees
        assert_close(stack, sampled, measured(stack, rollouts))


def a_channel_brings_the_bits_of_the_object_store(stack: Stack, engines: list[Any], *, processes: int = 1) -> None:
    """Over `stack.transfer`, twice: the first publication joins the channel. `processes`: of each engine."""
    channel = ChannelTransfer(room_of(stack).largest, stack.transfer, processes=processes, timeout_s=120)
    for _ in range(2):
        weights = stack.run(stack.learner.weights())
        scaled = {name: (array * 0.5).astype(array.dtype) for name, array in weights.arrays.items()}
        for engine in engines:
            stack.run(engine.load(replace(weights, version=-1, arrays=scaled)))
        others = [stack.run(engine.score([PROMPT])) for engine in engines]
        stack.run(channel.publish(stack.learner, engines))
        found = [stack.run(engine.score([PROMPT])) for engine in engines]
        assert all(one != other for one, other in zip(found, others, strict=True))
        assert {stack.run(engine.version()) for engine in engines} == {stack.run(stack.learner.describe())["optimizer_steps"]}
        published(stack, *engines)
        assert [stack.run(engine.score([PROMPT])) for engine in engines] == found


def rows_of_one_micro_batch_are_rows_alone(stack: Stack) -> None:
    """Rows end to end, as `layout: auto` lays them for this family, do not see one another."""
    stream = on_policy_batch(stack, written(stack)).steps[0][0]
    together = stack.run(stack.learner.measure(stream))
    each = [replace(stream, rows=(row,), loss_tokens=len(row.labels)) for row in stream.rows]
    alone = [stack.run(stack.learner.measure(one)) for one in each]
    assert len(alone) > 20
    assert_close(stack, together.student_logprob, np.concatenate([one.student_logprob for one in alone]))
    assert_close(stack, together.reverse_kl, np.concatenate([one.reverse_kl for one in alone]))


def mixed_sequences_are_whole(stack: Stack, teacher: Any, alpha: float = 0.4, *, at_once: bool = False) -> None:
    """The student's tokens have the learner's log-probabilities, the coins fall as often as they should, no token follows the
    one that ends an answer, and neither engine keeps a sequence."""
    published(stack, stack.engine)
    engine = TurnTakingEngine(stack.engine, teacher, alpha, stack.renderer, at_once=at_once)
    sampling = Sampling(samples=8, max_new_tokens=16, seed=3)
    rollouts = stack.run(engine.generate(stack.prompts(texts(12)), sampling))
    logprobs, coins = (np.concatenate([getattr(each, name) for each in rollouts]) for name in ("logprobs", "coins"))
    assert np.isnan(logprobs).tolist() == coins.tolist()
    assert abs(coins.mean() - alpha) < 4 * (alpha * (1 - alpha) / len(coins)) ** 0.5
    assert_close(stack, logprobs[~coins], measured(stack, rollouts)[~coins])
    for rollout in rollouts:
        ends = np.flatnonzero(np.isin(rollout.tokens, stack.renderer.stops)).tolist()
        assert ends == ([len(rollout.tokens) - 1] if rollout.finish is Finish.STOP else [])
    student, other = stack.run(stack.engine.describe()), stack.run(teacher.describe())
    assert (student["sequences_held"], other["takes_turns"]["sequences_held"]) == (0, 0)


def a_split_engine_takes_new_weights(stack: Stack, engine: Any, learner: Any) -> None:
    """Twice, since the second set meets layers that have been filled once."""
    transfer = ObjectStoreTransfer(room_of(stack).largest)
    before = stack.run(engine.score([PROMPT]))
    for factor in (0.5, 1.5):
        weights = stack.run(learner.weights())
        scaled = {name: (array * factor).astype(array.dtype) for name, array in weights.arrays.items()}
        stack.run(engine.load(replace(weights, arrays=scaled)))
        assert stack.run(engine.score([PROMPT])) != before, "other weights, other log-probabilities"
        stack.run(transfer.publish(learner, [engine]))
    assert_close(stack, np.array(stack.run(engine.score([PROMPT]))), np.array(before))
