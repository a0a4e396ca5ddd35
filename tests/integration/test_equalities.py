"""The numbers that must agree, with the real engines: vLLM, transformers, DeepSpeed and plain torch."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from minidist.config.learner import LearnerConfig
from minidist.config.models import ModelConfig
from minidist.data.batching import collate
from minidist.data.sources import Example
from minidist.data.tasks import generate
from minidist.errors import CanaryError
from minidist.learners.learner import LocalLearner
from minidist.losses.targets import Objective
from minidist.models.heads import load_teacher_head
from minidist.models.hub import build_student, load_model
from minidist.roles.transfer import ObjectStoreTransfer
from minidist.rollout.hf import HFEngine
from minidist.run.canaries import check_engine
from minidist.types import Batch, Finish, Rollout, Sampling, Weights
from tests.integration.conftest import OBJECTIVES, SHAPE, Stack, save_model, settings
from tests.support.config import make_objective, teacher_config
from tests.support.learners import local_learner
from tests.support.tiny import answer_of

SAMPLING = Sampling(max_new_tokens=16, seed=3)
GREEDY = replace(SAMPLING, temperature=0.0)
PROMPT = [2, 5, 9, 4, 11, 3]
EXACT = 2e-4  # nats; float32, two implementations of the same arithmetic


def texts(count: int) -> list[str]:
    rows = generate("sort", split="train", rows=count, seed=0)
    return [row["prompt"][: 2 + index % 8] for index, row in enumerate(rows)]  # of uneven length


def written(stack: Stack, count: int = 24, **changes: Any) -> list[Rollout]:
    return stack.run(stack.engine.generate(stack.prompts(texts(count)), replace(SAMPLING, **changes)))


def on_policy_batch(stack: Stack, rollouts: list[Rollout]) -> Batch:
    scores = stack.run(stack.teacher.score(rollouts))
    rows = generate("sort", split="train", rows=7, seed=9)
    answers = [answer_of(stack.renderer, row["answer"]) for row in rows]
    prompts = [stack.renderer.prompt(row["prompt"]) for row in rows]
    examples = [Example(np.concatenate([p, a]), len(p)) for p, a in zip(prompts, answers, strict=True)]
    given = [example.as_rollout() for example in examples]
    regulariser = collate("sft", given, objective="supervised", weight=0.3)
    return Batch(0, ((collate("main", rollouts, scores, objective="main"), regulariser),))


def test_engine_gives_the_learners_log_probabilities_of_its_samples(stack: Stack) -> None:
    rollouts = written(stack)
    measured = stack.run(stack.learner.measure(on_policy_batch(stack, rollouts).steps[0][0]))
    engine = np.concatenate([rollout.logprobs for rollout in rollouts])
    assert len({tuple(rollout.tokens) for rollout in rollouts}) > 1
    assert np.std(engine) > 0.3  # not a uniform model, on which anything agrees
    assert np.abs(engine - measured.student_logprob).max() < EXACT


@pytest.mark.parametrize("warped", [{"temperature": 0.7, "top_p": 0.9}, {"temperature": 1.3}, {"temperature": 0.0}], ids=str)
def test_the_canary_holds_at_other_temperatures_and_top_p(stack: Stack, warped: dict[str, float]) -> None:
    rollouts, sampling = written(stack, **warped), replace(SAMPLING, **warped)  # type: ignore[arg-type]
    stream = on_policy_batch(stack, rollouts).steps[0][0]
    difference = check_engine(stack.run(stack.learner.measure(stream, *sampling.processed)), rollouts, 1e-3)
    assert difference is not None and difference < EXACT
    with pytest.raises(CanaryError, match="engine and learner disagree"):
        check_engine(stack.run(stack.learner.measure(stream, 0.5, 0.8)), rollouts, 0.05)


def test_log_probabilities_are_of_the_sampled_distribution(stack: Stack) -> None:
    warped = {"temperature": 0.7, "top_p": 0.9}
    rollouts = written(stack, **warped)
    reference = load_model(ModelConfig(model=str(stack.student)), "student")
    for rollout in rollouts[:6]:
        ids = torch.tensor(np.concatenate([rollout.prompt.tokens, rollout.tokens])[None].astype(np.int64))
        with torch.no_grad():
            logits = reference(ids).logits[0, len(rollout.prompt.tokens) - 1 : -1]
        logprobs = torch.log_softmax(logits / 0.7, -1)
        ordered, order = logprobs.sort(-1, descending=True)
        kept = ordered.exp().cumsum(-1) - ordered.exp() < 0.9
        mask = torch.zeros_like(kept).scatter(-1, order, kept)
        kept_logprobs = torch.log_softmax(logprobs.masked_fill(~mask, float("-inf")), -1)
        expected = kept_logprobs.gather(-1, torch.tensor(rollout.tokens[:, None].astype(np.int64))).squeeze(-1)
        assert np.abs(rollout.logprobs - expected.numpy()).max() < EXACT


def test_vllm_equals_the_transformers_engine(stack: Stack) -> None:
    reference = HFEngine(ModelConfig(model=str(stack.student)), stack.renderer)
    prompts = stack.prompts(texts(12))
    slow = asyncio.run(reference.generate(prompts, GREEDY))
    fast = stack.run(stack.engine.generate(prompts, GREEDY))
    assert [list(rollout.tokens) for rollout in slow] == [list(rollout.tokens) for rollout in fast]
    assert [(rollout.finish, rollout.text) for rollout in slow] == [(rollout.finish, rollout.text) for rollout in fast]
    sequences = [[*rollout.prompt.tokens.tolist(), *rollout.tokens.tolist()] for rollout in fast]
    ours, theirs = asyncio.run(reference.score(sequences)), stack.run(stack.engine.score(sequences))
    assert max(abs(a - b) for left, right in zip(ours, theirs, strict=True) for a, b in zip(left, right, strict=True)) < EXACT


@pytest.mark.parametrize("size", [2, 3])
def test_vllm_blocks_the_ngrams_that_transformers_blocks(stack: Stack, size: int) -> None:
    """Requests with and without it share the batch of one engine, more of them than it holds at once."""
    reference = HFEngine(ModelConfig(model=str(stack.student)), stack.renderer)
    prompts = stack.prompts([text + text for text in texts(12)])
    slow = asyncio.run(reference.generate(prompts, replace(GREEDY, no_repeat_ngram_size=size)))
    together = asyncio.gather

    async def both() -> list[list[Rollout]]:
        blocked = stack.engine.generate(prompts, replace(GREEDY, no_repeat_ngram_size=size))
        return list(await together(blocked, stack.engine.generate(prompts, GREEDY)))

    fast, plain = stack.run(both())
    assert [list(rollout.tokens) for rollout in slow] == [list(rollout.tokens) for rollout in fast]
    assert [list(rollout.tokens) for rollout in plain] != [list(rollout.tokens) for rollout in fast]
    left, right = (np.concatenate([rollout.logprobs for rollout in each]) for each in (slow, fast))
    assert np.abs(left - right).max() < EXACT
    asyncio.run(reference.close())
    sampled = stack.run(stack.engine.generate(prompts, replace(SAMPLING, samples=30, no_repeat_ngram_size=size)))
    for rollout in sampled:
        grams = list(
            zip(*([*rollout.prompt.tokens.tolist(), *rollout.tokens.tolist()][at:] for at in range(size)), strict=False)
        )
        given = len(rollout.prompt.tokens) - size + 1
        assert all(gram not in grams[:at] for at, gram in enumerate(grams) if at >= given)


def test_each_of_the_ids_that_end_an_answer_ends_it(stack: Stack) -> None:
    rollouts, stops = written(stack, samples=8), stack.renderer.stops
    ended = [rollout for rollout in rollouts if rollout.finish is Finish.STOP]
    assert {int(rollout.tokens[-1]) for rollout in ended} == set(stops) and len(stops) == 2
    for rollout in rollouts:
        assert not np.isin(rollout.tokens[:-1], stops).any()
        assert (rollout.finish is Finish.STOP) == bool(np.isin(rollout.tokens[-1], stops))
        kept = rollout.tokens[:-1] if rollout.finish is Finish.STOP else rollout.tokens
        assert rollout.text == stack.renderer.tokenizer.decode(kept)


def test_same_seed_same_samples_other_seed_other_samples(stack: Stack) -> None:
    first, again, other = written(stack), written(stack), written(stack, seed=4)
    assert [list(r.tokens) for r in first] == [list(r.tokens) for r in again]
    assert [list(r.tokens) for r in first] != [list(r.tokens) for r in other]
    alone = stack.run(stack.engine.generate(stack.prompts(texts(24))[5:6], SAMPLING))
    assert list(alone[0].tokens) == list(first[5].tokens)  # whatever it is batched with


def test_more_prompts_than_the_engine_holds_at_once(stack: Stack) -> None:
    rollouts = written(stack, count=300, samples=2, max_new_tokens=3)
    assert [rollout.prompt.row for rollout in rollouts] == [row for row in range(300) for _ in range(2)]
    assert {rollout.sample for rollout in rollouts} == {0, 1}


def test_after_each_sync_engine_and_learner_are_one(stack: Stack, tmp_path: Path) -> None:
    transfer, prompts = ObjectStoreTransfer(tolerance_nats=5e-3), stack.prompts(texts(12))
    texts_before = [list(r.tokens) for r in stack.run(stack.engine.generate(prompts, GREEDY))]
    for version in (1, 2, 3):
        stack.run(stack.learner.update(on_policy_batch(stack, written(stack, seed=version))))
        assert stack.run(transfer.publish(stack.learner, [stack.engine])) < EXACT
        rollouts = stack.run(stack.engine.generate(prompts, GREEDY))
        stack.run(stack.learner.save(tmp_path / str(version)))
        learner = AutoModelForCausalLM.from_pretrained(tmp_path / str(version))
        for rollout in rollouts:
            ids = torch.tensor(rollout.prompt.tokens[None].astype(np.int64))
            greedy = learner.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
            assert greedy[0, ids.shape[1] :].tolist() == rollout.tokens.tolist()
            assert (rollout.versions == stack.run(stack.learner.describe())["optimizer_steps"]).all()
    assert texts_before != [list(r.tokens) for r in rollouts]  # the updates changed what it writes
    assert transfer.proved == 3


def test_weights_taken_in_place_are_those_of_vllms_own_procedure(stack: Stack) -> None:
    in_place, reloaded = stack.engines.members
    before = stack.run(stack.learner.weights())
    rng = np.random.default_rng(0)
    arrays = {name: (array * rng.normal(1, 0.3, array.shape)).astype(np.float32) for name, array in before.arrays.items()}
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]
    # A name that the engine has not met, of a tensor that it ignores: it takes these weights by vLLM's `reload_weights`.
    other = arrays | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, dtype=np.float32)}
    try:
        stack.run(in_place.load(before))
        stack.run(in_place.load(before))
        start = stack.run(in_place.score([PROMPT]))
        stack.run(in_place.load(Weights(1, arrays, before.dtypes)))
        stack.run(reloaded.load(Weights(1, other, dict.fromkeys(other, "float32"))))
        found, expected = (stack.run(engine.score([PROMPT])) for engine in (in_place, reloaded))
        assert found == expected != start
    finally:
        stack.run(ObjectStoreTransfer(tolerance_nats=EXACT).publish(stack.learner, [in_place, reloaded]))


def test_a_sync_without_the_tied_head_is_caught(stack: Stack) -> None:
    class Forgetful:
        """The learner, whose weights lack the tied output head, as a tied checkpoint does."""

        async def weights(self, whole: bool = True) -> Weights:
            weights = await stack.learner.weights()
            arrays = {name: array for name, array in weights.arrays.items() if name != "lm_head.weight"}
            return Weights(weights.version, arrays, weights.dtypes)

        async def probe(self, version: int) -> Any:
            return await stack.learner.probe(version)

    stack.run(stack.learner.update(on_policy_batch(stack, written(stack, seed=8))))
    transfer = ObjectStoreTransfer(tolerance_nats=5e-3)
    with pytest.raises(CanaryError, match="did not take the new weights"):
        stack.run(transfer.publish(Forgetful(), [stack.engine]))  # type: ignore[arg-type]
    assert stack.run(transfer.publish(stack.learner, [stack.engine])) < EXACT  # and mended by the whole set


def test_hidden_state_scores_equal_full_logits(stack: Stack) -> None:
    rollouts = written(stack)
    scores = stack.run(stack.teacher.score(rollouts))
    head = load_teacher_head(teacher_config(model=str(stack.teacher_path)), None)
    teacher = load_model(ModelConfig(model=str(stack.teacher_path)), "teacher")
    for rollout, scored in zip(rollouts, scores, strict=True):
        ids = torch.tensor(np.concatenate([rollout.prompt.tokens, rollout.tokens])[None].astype(np.int64))
        with torch.no_grad():
            full = torch.log_softmax(teacher(ids).logits[0, len(rollout.prompt.tokens) - 1 : -1], -1)
        assert scored.hidden is not None and len(scored.hidden) == len(rollout.tokens)
        assert (torch.log_softmax(head(torch.tensor(scored.hidden)), -1) - full).abs().max() < EXACT


def test_deepspeed_equals_the_plain_learner_with_uneven_micro_batches(stack: Stack) -> None:
    batch = on_policy_batch(stack, written(stack, seed=5))
    start = load_model(ModelConfig(model=str(stack.student)), "student").state_dict()
    gradients: dict[str, dict[str, np.ndarray]] = {}
    for stage in (1, 2):
        learner = stack.host_learner(settings(micro_batch_tokens=90, zero_stage=stage))
        update = stack.run(learner.update(batch))
        assert update.metrics["learner/micro_batches"] > 3
        weights = stack.run(learner.weights())
        gradients[f"ZeRO-{stage}"] = {name: start[name].numpy() - array for name, array in weights.arrays.items()}
        stack.dismiss(learner)
    single = plain_learner(stack)
    whole = asyncio.run(single.update(batch))
    plain = asyncio.run(single.weights())
    expected = {name: start[name].numpy() - array for name, array in plain.arrays.items()}
    assert max(np.abs(gradient).max() for gradient in expected.values()) > 1e-2
    for gradient in gradients.values():
        for name, array in expected.items():
            np.testing.assert_allclose(gradient[name], array, atol=2e-6)
    assert update.metrics["loss/nats_per_token"] == pytest.approx(whole.metrics["loss/nats_per_token"], rel=1e-5)
    assert update.metrics["learner/grad_norm"] == pytest.approx(whole.metrics["learner/grad_norm"], rel=1e-4)


def plain_learner(stack: Stack, config: LearnerConfig | None = None) -> LocalLearner:
    from minidist.config.models import StudentConfig

    model = build_student(StudentConfig(model=str(stack.student)), stack.renderer.tokenizer, 0)
    head = load_teacher_head(teacher_config(model=str(stack.teacher_path)), None)
    objectives: dict[str, Objective] = {name: make_objective(kind) for name, kind in OBJECTIVES.items()}
    return local_learner(model, config or settings(), objectives, steps=100, teacher=head)


def test_streamed_answers_are_those_of_one_call_and_come_as_they_finish(stack: Stack) -> None:
    prompts = stack.prompts(texts(12))

    async def streamed() -> list[tuple[int, list[Rollout]]]:
        return [each async for each in stack.engine.stream(prompts, SAMPLING)]

    found = stack.run(streamed())
    together = stack.run(stack.engine.generate(prompts, SAMPLING))
    for index, (rollout,) in found:
        assert rollout.tokens.tolist() == together[index].tokens.tolist() and rollout.prompt.row == together[index].prompt.row
    assert sorted(index for index, _ in found) == list(range(12))
    lengths = [len(rollout.tokens) for _, (rollout,) in found]
    assert lengths[0] < lengths[-1], "short answers do not wait for long ones"


def test_closing_a_stream_aborts_its_requests(stack: Stack) -> None:
    async def closed() -> int:
        before = (await stack.engine.describe())["requests_aborted"]
        stream = stack.engine.stream(stack.prompts(texts(12)), replace(SAMPLING, max_new_tokens=38, samples=4))
        await anext(stream)
        await stream.aclose()
        for _ in range(100):
            described = await stack.engine.describe()
            if described["requests_aborted"] > before and not described["requests_running"]:
                return int(described["requests_aborted"] - before)
            await asyncio.sleep(0.1)
        raise AssertionError("the requests of a closed stream were not aborted")

    assert 0 < stack.run(closed()) < 48


def test_a_cancelled_generation_is_aborted(stack: Stack) -> None:
    async def cancelled() -> None:
        long = replace(SAMPLING, max_new_tokens=38, samples=4)  # more than any machine writes before the cancellation arrives
        task = asyncio.ensure_future(stack.engine.generate(stack.prompts(texts(200)), long))
        while not (await stack.engine.describe())["requests_running"]:
            assert not task.done(), "the call ended before it was cancelled"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(600):
            if (await stack.engine.describe())["requests_aborted"]:
                return
            await asyncio.sleep(0.1)
        raise AssertionError("the requests of a cancelled call were not aborted")

    stack.run(cancelled())
    assert len(written(stack)) == 24


def test_no_cancelled_call_goes_on(stack: Stack) -> None:
    """Calls that are cancelled before, while and after they begin in the actor."""

    class Waiter:
        def __init__(self) -> None:
            self.ended = 0

        async def wait(self, seconds: float) -> None:
            try:
                await asyncio.sleep(seconds)
            finally:
                self.ended += 1

        async def count(self) -> int:
            return self.ended

        async def close(self) -> None: ...

    async def cancelled(role: Any, delay: float) -> None:
        task = asyncio.ensure_future(role.wait(600))
        await asyncio.sleep(delay)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def all_cancelled() -> None:
        role = await stack.cluster.host("learner", Waiter)
        begun = asyncio.ensure_future(role.wait(0))
        delays = np.random.default_rng(0).choice([0.0, 0.001, 0.01, 0.05], 400)
        await asyncio.gather(*(cancelled(role, delay) for delay in delays), begun)
        remote: Any = role
        for _ in range(600):
            if not await remote.actor.under_way.remote():
                break
            await asyncio.sleep(0.1)
        else:
            raise AssertionError("a cancelled call is still under way")
        assert 1 <= await role.count() <= 401
        await stack.cluster.dismiss(role)

    stack.run(all_cancelled())


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_weights_of_other_families_reach_vllm(stack: Stack, tmp_path: Path, family: str) -> None:
    shapes = {
        "gpt2": {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 64},
        "qwen3": SHAPE | {"model_type": "qwen3", "tie_word_embeddings": False},
    }
    save_model(tmp_path / "old", shapes[family], 1)
    new = save_model(tmp_path / "new", shapes[family], 2)
    engine = stack.host_engine(tmp_path / "old")
    sequences = [[2, 5, 9, 4, 11, 3], [7, 7, 20, 6, 2, 15, 8]]
    states = {name: tensor.numpy() for name, tensor in new.state_dict().items()}
    stack.run(engine.load(Weights(1, states, dict.fromkeys(states, "float32"))))
    through_store = stack.run(engine.score(sequences))
    stack.run(engine.load(tmp_path / "old"))
    stack.run(engine.load(tmp_path / "new"))
    from_disk = stack.run(engine.score(sequences))
    stack.dismiss(engine)
    for sequence, *scored in zip(sequences, through_store, from_disk, strict=True):
        ids = torch.tensor([sequence])
        with torch.no_grad():
            logprobs = torch.log_softmax(new(ids).logits[0, :-1], -1)
        expected = logprobs.gather(-1, ids[0, 1:, None]).squeeze(-1).numpy()
        for values in scored:
            assert np.abs(np.array(values) - expected).max() < EXACT
