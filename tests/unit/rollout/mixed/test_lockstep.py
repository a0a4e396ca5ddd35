"""Teacher-mixed sampling in lockstep: draws follow the enumerated mixture, and no similar distribution."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import minidist.rollout.mixed.lockstep as module
from minidist.rollout.hf import sample
from minidist.rollout.mixed.lockstep import Mixture, draw, sample_mixed
from minidist.types import Finish, Prompt, Rollout, Sampling
from tests.support.mixture import law, p_value
from tests.support.tiny import random_rollouts, tiny_model, tiny_renderer

RENDERER = tiny_renderer()
EOS = RENDERER.eos
DRAWS = 5_000
PROMPT = random_rollouts([(4, 1)])[0].prompt
FIVE = {"vocabulary": 5}  # the first five ids, the end of the sequence among them: 85 sequences of at most three tokens


@pytest.fixture(scope="module")
def pair() -> tuple[PreTrainedModel, PreTrainedModel]:
    """A student, and a teacher of another shape whose vocabulary is padded."""
    return tiny_model(seed=1), tiny_model("gpt2", seed=2, vocabulary=16)


def mixed(
    pair: tuple[PreTrainedModel, PreTrainedModel],
    prompts: list[Prompt],
    *,
    alpha: float = 0.3,
    vocabulary: int = 13,
    **options: Any,
) -> list[Rollout]:
    sampling = Sampling(**({"max_new_tokens": 12} | options))
    return sample_mixed(Mixture(*pair, alpha), RENDERER, prompts, sampling, version=3, vocabulary=vocabulary)


def draws(pair: tuple[PreTrainedModel, PreTrainedModel], **options: Any) -> list[Rollout]:
    return mixed(pair, [PROMPT], **(FIVE | {"samples": DRAWS, "max_new_tokens": 3} | options))


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_p": 0.9}, {"alpha": 1.0}, {"alpha": 0.0}])
def test_draws_follow_the_mixture(pair: tuple[PreTrainedModel, PreTrainedModel], options: dict[str, float]) -> None:
    expected = law(*pair, PROMPT, count=3, stops=RENDERER.stops, **{"alpha": 0.3, **FIVE, **options})  # type: ignore[arg-type]
    assert sum(expected.values()) == pytest.approx(1)
    assert p_value(expected, draws(pair, **options)) > 1e-3


def test_a_teacher_in_its_own_context_is_mixed_from_there(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    own = replace(PROMPT, teacher_tokens=np.array([7, 2, 9, 1, 4, 4]))
    options: dict[str, Any] = {"samples": DRAWS, "max_new_tokens": 3}
    drawn = mixed(pair, [own], alpha=0.6, **FIVE, **options)
    arguments: dict[str, Any] = {"alpha": 0.6, "count": 3, "stops": RENDERER.stops, **FIVE}
    assert p_value(law(*pair, own, **arguments), drawn) > 1e-3
    assert p_value(law(*pair, PROMPT, **arguments), drawn) < 1e-6
    assert all(rollout.prompt is own for rollout in drawn)


def test_the_p_value_tells_the_mixture_from_similar_distributions(
    pair: tuple[PreTrainedModel, PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mixture of logits, one coin for the whole sequence, and another alpha are rejected."""
    expected = law(*pair, PROMPT, alpha=0.3, count=3, stops=RENDERER.stops, **FIVE)
    teacher, student = draws(pair, alpha=1.0), draws(pair, alpha=0.0, seed=1)
    heads = np.random.default_rng(0).random(DRAWS) < 0.3
    assert p_value(expected, [teacher[i] if heads[i] else student[i] for i in range(DRAWS)]) < 1e-9
    assert p_value(expected, draws(pair, alpha=0.27, samples=4 * DRAWS)) < 1e-3

    def interpolated(q: torch.Tensor, p: torch.Tensor, alpha: float, uniforms: torch.Tensor) -> Any:
        both = torch.log_softmax(alpha * p + (1 - alpha) * q, -1)
        return draw(both, both, alpha, uniforms)

    monkeypatch.setattr(module, "draw", interpolated)
    assert p_value(expected, draws(pair)) < 1e-9


def test_coins_have_their_posterior(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    """Of the tokens that the teacher chose, the first follows the teacher alone; of the student's, the student."""
    rollouts = draws(pair)
    for heads, model in ((True, pair[1]), (False, pair[0])):
        chosen = np.array(
            [rollout.tokens[0] for rollout in rollouts if rollout.coins is not None and rollout.coins[0] == heads]
        )
        expected = law(model, model, PROMPT, alpha=0.5, count=1, stops=RENDERER.stops, **FIVE)
        assert len(chosen) == pytest.approx(DRAWS * (0.3 if heads else 0.7), abs=4 * math.sqrt(0.21 * DRAWS))
        for (token,), probability in expected.items():
            spread = 4 * math.sqrt(probability * (1 - probability) / len(chosen))
            assert (chosen == token).mean() == pytest.approx(probability, abs=spread)


def test_rollouts_hold_tokens_coins_and_student_logprobs(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    """Log-probabilities are the student's at the student's tokens and NaN at the teacher's; rows end at their first EOS."""
    prompts = [rollout.prompt for rollout in random_rollouts([(2, 1), (7, 1), (4, 1)])]
    rollouts = mixed(pair, prompts, samples=8)
    assert [(each.prompt.row, each.sample) for each in rollouts] == [(row, number) for row in range(3) for number in range(8)]
    assert {each.finish for each in rollouts} == {Finish.STOP, Finish.LENGTH}
    for rollout in rollouts:
        stops = np.flatnonzero(np.isin(rollout.tokens, RENDERER.stops))
        assert stops.tolist() == ([len(rollout.tokens) - 1] if rollout.finish is Finish.STOP else [])
        assert rollout.finish is Finish.STOP or len(rollout.tokens) == 12
        assert rollout.versions.tolist() == [3] * len(rollout.tokens)
        ids = torch.tensor([[*rollout.prompt.tokens.tolist(), *rollout.tokens.tolist()]])
        with torch.no_grad():
            table = torch.log_softmax(pair[0](ids).logits[0].double(), -1)
        start = len(rollout.prompt.tokens)
        student_logprobs = table[start - 1 : -1].gather(-1, ids[0, start:, None])[:, 0].numpy()
        assert rollout.logprobs is not None
        assert rollout.coins is not None
        assert np.isnan(rollout.logprobs).tolist() == rollout.coins.tolist()
        assert np.allclose(rollout.logprobs[~rollout.coins], student_logprobs[~rollout.coins], atol=1e-5)


def test_a_row_ends_at_any_id_that_ends_answers(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    sampling, renderer = Sampling(max_new_tokens=12, samples=40), tiny_renderer(4)
    found = sample_mixed(Mixture(*pair, 0.3), renderer, [PROMPT], sampling, version=3, vocabulary=13)
    for rollout, free in zip(found, mixed(pair, [PROMPT], samples=40), strict=True):
        ids = free.tokens.tolist()
        end = min((ids.index(stop) for stop in (EOS, 4) if stop in ids), default=11)
        assert rollout.tokens.tolist() == ids[: end + 1] and rollout.coins is not None and len(rollout.coins) == end + 1
        assert (rollout.finish is Finish.STOP) == (ids[end] in (EOS, 4)) and rollout.text == renderer.decode(rollout.tokens)
    assert {int(rollout.tokens[-1]) for rollout in found} >= {EOS, 4}


def test_a_sample_depends_on_its_seed_and_not_on_the_batch(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    prompts = [rollout.prompt for rollout in random_rollouts([(2, 1), (7, 1), (4, 1)])]
    together = [rollout.tokens.tolist() for rollout in mixed(pair, prompts)]
    assert together == [mixed(pair, [prompt])[0].tokens.tolist() for prompt in prompts]
    assert together != [rollout.tokens.tolist() for rollout in mixed(pair, prompts, seed=1)]


def test_rows_and_samples_of_one_prompt_draw_differently(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    rollouts = mixed(pair, [replace(PROMPT, row=row) for row in range(4)], samples=4)
    assert len({tuple(rollout.tokens.tolist()) for rollout in rollouts}) > 12


def test_padded_ids_are_never_drawn() -> None:
    """Nor do they take probability: the teacher's rows beyond the student's vocabulary are cut off before its softmax."""
    teacher = tiny_model("gpt2", seed=2, vocabulary=64)
    rollouts = mixed((tiny_model(seed=1), teacher), [PROMPT], alpha=1.0, samples=400)
    assert max(int(rollout.tokens.max()) for rollout in rollouts) < 13
    sharp = {"max_new_tokens": 1, "top_p": 1e-6}
    alone = sample(teacher, RENDERER, [PROMPT], Sampling(**sharp), version=0, vocabulary=13)
    sharp_mixture = mixed((tiny_model(seed=1), teacher), [PROMPT], alpha=1.0, **sharp)
    assert sharp_mixture[0].tokens.tolist() == alone[0].tokens.tolist()


def test_a_token_of_no_probability_is_not_drawn() -> None:
    """At both ends of the unit interval, and where the table ends in zeros."""
    impossible = torch.tensor([[-math.inf, math.log(0.5), math.log(0.5), -math.inf]]).repeat(2, 1)
    points = torch.tensor([[0.0, 0.5], [1 - 2**-53, 0.5]], dtype=torch.float64)
    assert draw(impossible, impossible, 0.3, points)[0].tolist() == [1, 2]
