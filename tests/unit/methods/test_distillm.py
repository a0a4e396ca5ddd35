"""DistiLLM's adaptive replay: schedule and buffer, and the text of a run that has it."""

import asyncio
import json
from typing import Any

import numpy as np
import pytest

from minidist.config import DistillConfig
from minidist.experience.source import Collector
from minidist.experience.streams import GoldText
from minidist.methods.distillm import AdaptiveReplay, Answers
from minidist.types import Batch, Finish, Prompt, Rollout, Writer
from tests.support.collecting import NamingTeacher, distill_config, make_collector, named_prompts
from tests.support.fakes import TableEngine

LONG = 4000  # steps
TABLE = np.random.default_rng(0).normal(size=(7, 7))


def answers(count: int, first: int = 0) -> list[Rollout]:
    prompt = Prompt(0, np.array([1]), "")
    made = (np.array([first + number], dtype=np.int32) for number in range(count))
    return [Rollout(prompt, tokens, np.zeros(1), np.zeros(1, dtype=np.int32), Finish.STOP) for tokens in made]


def filled(replay: AdaptiveReplay, *texts: list[Rollout]) -> AdaptiveReplay:
    """The replay after steps that wrote these answers."""
    for number, rollouts in enumerate(texts):
        replay.decide(number)
        replay.store(rollouts)
    replay.decide(len(texts))
    return replay


def replay_config(share: float, steps: int, seed: int, replay: dict[str, Any], **rollout: int) -> DistillConfig:
    return distill_config(
        run={"steps": steps, "seed": seed},
        data={"validation": {"path": "x", "answer": "{{ x }}"}},
        prefix={"student": share, "dataset": 1 - share, "per": "step", "replay": replay},
        rollout=rollout,
        evaluation={"every": 1},
    )


def make_replay(share: float, *, steps: int = LONG, capacity: int = 4, **options: Any) -> AdaptiveReplay:
    """A replay whose decisions are looked at; it draws nothing."""
    config = replay_config(share, steps, 3, {"capacity": capacity, **options}, prompts_per_step=1)
    return AdaptiveReplay(config, GoldText(0), GoldText(0))


def test_the_share_grows_when_the_loss_has_risen_and_only_then() -> None:
    """A scripted list of validation losses: the last rise is what the next one is measured from."""
    source, shares = make_replay(0.0), []
    for loss in (2.0, 1.5, 2.09, 2.11, 2.15, 2.05, 2.22, 3.0):
        source.observe({"gold_nats": loss})
        shares.append(round(source.share, 6))
    assert shares == [0.0, 0.0, 0.0, 0.1, 0.1, 0.1, 0.2, 0.3]
    for loss in range(4, 20):
        source.observe({"gold_nats": float(loss)})
    assert source.share == 1.0


def test_the_buffer_holds_the_newest_answers() -> None:
    source = filled(make_replay(1.0), answers(3), answers(3, first=10))
    drawn = source.replay(4, step=7)
    assert sorted(int(each.tokens[0]) for each in drawn) == [2, 10, 11, 12], "none twice, the oldest left first"
    assert all(each.logprobs is None for each in drawn), "the student that sampled them is gone"
    assert [int(each.tokens[0]) for each in source.replay(4, step=7)] == [int(each.tokens[0]) for each in drawn]
    assert len({tuple(int(each.tokens[0]) for each in source.replay(2, step=step)) for step in range(20)}) > 3


@pytest.mark.parametrize(
    ("schedule", "early", "late"), [("decreasing", 0.6, 0.0), ("constant", 0.3, 0.3), ("increasing", 0.0, 0.6)]
)
def test_shares_of_new_replayed_and_gold_answers_follow_the_schedule(schedule: Any, early: float, late: float) -> None:
    """Over the first and the last tenth of 4,000 steps with a full buffer; the standard error is 0.025."""
    source = filled(make_replay(0.6, schedule=schedule), answers(4))
    for steps, fresh in ((range(400), early), (range(LONG - 400, LONG), late)):
        found = [source.decide(step) for step in steps]
        progress = {"decreasing": -0.05, "constant": 0.0, "increasing": 0.05}[schedule] * 0.6
        wanted = fresh + (progress if steps.start == 0 else -progress)
        assert abs(found.count(Answers.NEW) / 400 - wanted) < 0.1
        assert abs(found.count(Answers.GOLD) / 400 - 0.4) < 0.1


def test_a_buffer_that_is_not_full_is_filled_first() -> None:
    source = filled(make_replay(1.0, steps=10), answers(3))
    assert {source.decide(step) for step in range(10)} == {Answers.NEW}
    source.store(answers(1))
    assert source.decide(10) is Answers.REPLAYED, "share 1 at the end of the run: all out of the buffer"
    assert {make_replay(0.0).decide(step) for step in range(50)} == {Answers.GOLD}


def source_of(share: float, engine: Any, steps: int = 8) -> Collector:
    rollout = {"prompts_per_step": 5, "samples_per_prompt": 2, "max_new_tokens": 3}
    config = replay_config(share, steps, 1, {"capacity": 10}, **rollout)
    return make_collector(config, named_prompts(), engine, NamingTeacher())


def test_a_run_is_on_new_replayed_and_gold_answers() -> None:
    engine = TableEngine(TABLE)
    source = source_of(0.7, engine, steps=30)
    batches = [asyncio.run(source.next(step)) for step in range(30)]
    fresh = [
        batch for batch in batches if batch.rollouts[0].writer is Writer.STUDENT and batch.rollouts[0].logprobs is not None
    ]
    kept = [batch for batch in batches if batch.rollouts[0].writer is Writer.STUDENT and batch.rollouts[0].logprobs is None]
    given = [batch for batch in batches if batch.rollouts[0].writer is Writer.DATASET]
    assert len(fresh) == len(engine.asked) and len(fresh) + len(kept) + len(given) == 30
    assert fresh and kept and given
    written = {(each.prompt.row, tuple(each.tokens)) for batch in fresh for each in batch.rollouts}
    assert all((each.prompt.row, tuple(each.tokens)) in written for batch in kept for each in batch.rollouts)
    assert all(row.scores is not None for batch in batches for row in batch.steps[0][0].rows), "scores are of now"
    assert [len(batch.rollouts) for batch in kept] == [10] * len(kept)
    assert {batch.metrics["replay/share"] for batch in batches} == {0.7}


def test_a_resumed_run_draws_what_an_uninterrupted_run_draws() -> None:
    def tokens(batch: Batch) -> list[list[int]]:
        return [row.tokens.tolist() for row in batch.steps[0][0].rows]

    straight = source_of(0.5, TableEngine(TABLE), steps=30)
    first = source_of(0.5, TableEngine(TABLE), steps=30)
    wanted = []
    for step in range(12):
        wanted.append(tokens(asyncio.run(straight.next(step))))
        if step < 6:
            asyncio.run(first.next(step))
        for source in (straight, first) if step < 6 else (straight,):
            source.observe({"gold_nats": step / 4, "reverse_kl": 0.0})
    state = json.loads(json.dumps(first.state_dict()))
    second = source_of(0.5, TableEngine(TABLE), steps=30)
    second.load_state_dict(state)
    for step in range(6, 12):
        assert tokens(asyncio.run(second.next(step))) == wanted[step]
        second.observe({"gold_nats": step / 4})


def test_the_share_follows_the_loss_on_gold_answers_alone() -> None:
    source = source_of(0.5, TableEngine(TABLE))
    for found in ({"reverse_kl": 1.0}, {"gold_nats": 1.0}, {"reverse_kl": 5.0}, {"gold_nats": 1.05}, {"reverse_kl": 9.0}):
        source.observe(found)
    assert source.state_dict()["share"] == 0.5
    source.observe({"gold_nats": 1.2, "reverse_kl": 0.0})
    assert source.state_dict()["share"] == pytest.approx(0.6)


def test_a_step_that_is_abandoned_and_repeated_stores_its_answers_once() -> None:
    source = filled(make_replay(1.0, capacity=6), answers(2))
    for _ in range(3):
        assert source.decide(2) is Answers.NEW
        source.store(answers(2, first=10))
    state = json.loads(json.dumps(source.state_dict()))
    again = make_replay(1.0, capacity=6)
    again.load_state_dict(state, [Prompt(0, np.array([1]), "")])
    again.decide(2)
    again.store(answers(2, first=10))
    for each in (source, again):
        each.decide(3)
        assert sorted(int(kept.tokens[0]) for kept in each.replay(4, step=1)) == [0, 1, 10, 11]
