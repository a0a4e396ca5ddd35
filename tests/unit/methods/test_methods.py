"""Published methods by name: what each presets, what a configuration says against it, and what is refused."""

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from minidist.config import DistillConfig, dump, load
from minidist.config.divergences import SinkhornConfig
from minidist.config.methods import names
from minidist.config.objective import ObjectiveSection
from minidist.config.objectives import ObjectiveConfig
from minidist.errors import ConfigError
from minidist.losses.objectives import PolicyGradient, make_objective
from minidist.methods import CREDIT_METHODS
from minidist.preflight.checks import check_classes, check_kernel
from minidist.types import Vocabulary

BASE: dict[str, Any] = {
    "stage": "distill",
    "run": {"directory": "runs/distill"},
    "student": {"model": "runs/sft/final"},
    "teacher": {"model": "runs/teacher/final"},
    "data": {"prompts": {"path": "task:sort"}, "validation": {"path": "task:sort", "split": "valid"}},
    "evaluation": {"every": 10},
}


def made(tmp_path: Path, *overrides: str, **sections: Any) -> DistillConfig:
    file = tmp_path / "distill.yaml"
    file.write_text(yaml.safe_dump(BASE | sections))
    config = load(file, overrides)
    assert isinstance(config, DistillConfig)
    return config


# Objective (with what is published of it), shares of student, teacher, data set, coin, and the teacher's share of a token.
PUBLISHED: dict[str, tuple[dict[str, Any], tuple[float, float, float], str, float]] = {
    "sft": ({"type": "supervised"}, (0, 0, 1), "row", 0),
    "kd": ({"type": "kd", "ratio": 0.5, "temperature": 1.0}, (0, 0, 1), "row", 0),
    "seqkd": ({"type": "supervised"}, (0, 1, 0), "row", 0),
    "imitkd": ({"type": "forward_kl"}, (0.5, 0, 0.5), "row", 0),
    "gkd": ({"type": "jsd", "beta": 0.5}, (0.5, 0, 0.5), "step", 0),
    "distillm": ({"type": "skew_reverse_kl", "alpha": 0.1, "detach_mixture": False}, (0, 0, 1), "step", 0),
    "distillm2": ({"type": "skew_reverse_kl", "alpha": 0.1, "detach_mixture": True}, (1, 0, 0), "row", 0),
    "fdistill_kl": ({"type": "forward_kl"}, (0, 1, 0), "row", 0),
    "fdistill_rkl": ({"type": "reverse_kl"}, (1, 0, 0), "row", 0),
    "fdistill_js": ({"type": "skew_reverse_kl", "alpha": 0.5}, (1, 0, 0), "row", 0),
    "fdistill_tvd": ({"type": "total_variation"}, (1, 0, 0), "row", 0),
    "akl": ({"type": "akl", "mu": 0.5, "head_rule": "released"}, (0, 0, 1), "row", 0),
    "sinkd": ({"type": "sinkhorn", "paired": "forward_kl", "epsilon": 0.1, "iterations": 20}, (0, 0, 1), "row", 0),
    "abkd": ({"type": "alpha_beta", "alpha": 0.2, "beta": 0.7}, (0, 0, 1), "row", 0),
    "todi": ({"type": "todi"}, (0, 0, 1), "row", 0),
    "opd": ({"type": "policy_gradient", "credit": "own", "gamma": 0.0, "length_norm": False}, (1, 0, 0), "row", 0),
    "opsd": ({"type": "forward_kl"}, (1, 0, 0), "row", 0),
    "promptkd": ({"type": "reverse_kl"}, (1, 0, 0), "row", 0),
    "ranking": ({"type": "ranking", "f": "reverse_kl", "beta": 2.0}, (1, 0, 0), "row", 0),
    "minillm": ({"type": "minillm", "preset": "paper", "clip": None}, (1, 0, 0), "row", 0.2),
    "minillm_lmops": ({"type": "minillm", "preset": "lmops", "clip": 0.2, "inner_epochs": 4}, (1, 0, 0), "row", 0.2),
}


@pytest.mark.parametrize("kind", get_args(get_args(ObjectiveConfig)[0]), ids=lambda kind: kind.__name__)
def test_objectives_whose_loss_reads_credit_declare_a_credit_method(kind: type[ObjectiveSection]) -> None:
    reads_credit = isinstance(make_objective(kind.model_validate({})), PolicyGradient)
    assert kind.credited_by in ({*CREDIT_METHODS} if reads_credit else {None})


def test_every_method_has_its_published_values_here() -> None:
    assert set(PUBLISHED) == set(names())


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_method_is_its_published_setting(name: str, tmp_path: Path) -> None:
    config = made(tmp_path, f"method={name}")
    objective, shares, per, mix = PUBLISHED[name]
    found = config.objective.model_dump()
    assert {key: found[key] for key in objective} == objective
    assert (config.prefix.student, config.prefix.teacher, config.prefix.dataset) == shares
    assert (config.prefix.per, config.teacher_mix) == (per, mix)
    assert callable(make_objective(config.objective)), "the loss exists"
    again = DistillConfig.model_validate(dump(config))
    assert again == config, "what is written down gives the same again"


def test_methods_of_several_terms_have_their_published_streams(tmp_path: Path) -> None:
    wanted = {
        "distillm2": ("skew_forward_kl", 0.1),
        "fdistill_js": ("skew_forward_kl", 0.5),
        "fdistill_tvd": ("total_variation", None),
    }
    for name, (kind, alpha) in wanted.items():
        stream = made(tmp_path, f"method={name}").streams["taught"]
        assert (stream.writer, stream.weight, stream.data) == ("teacher", 1.0, None)
        assert (stream.objective.type, getattr(stream.objective, "alpha", None)) == (kind, alpha)
    assert made(tmp_path, "method=distillm2").rollout.temperature == 0.8
    replay = made(tmp_path, "method=distillm").prefix.replay
    assert replay is not None and (replay.capacity, replay.growth, replay.tolerance, replay.schedule) == (
        1000,
        0.1,
        0.1,
        "decreasing",
    )


def test_explicit_keys_override_the_method_preset(tmp_path: Path) -> None:
    config = made(tmp_path, "method=gkd", "objective.beta=0.1", "prefix={student: 0.25, dataset: 0.75}", "rollout.top_p=0.9")
    assert config.objective.model_dump()["beta"] == 0.1
    assert (config.prefix.student, config.prefix.per) == (0.25, "step")
    assert (config.rollout.temperature, config.rollout.top_p) == (1.0, 0.9)
    other = made(tmp_path, "method=gkd", "objective.type=reverse_kl")
    assert other.objective.type == "reverse_kl", "another divergence shares no fields with the method's"


REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "unknown": (["method=gdk"], ["method is 'gdk'", "expected one of abkd", "did you mean gkd?"]),
    "k1": (["objective.type=k1"], ["objective.type k1", "gradient", "zero", "set objective.type=k2 or policy_gradient"]),
    "k3": (["objective.type=k3"], ["objective.type k3", "forward KL's", "set objective.type=k2 or policy_gradient"]),
    "k3 of a stream": (
        ["method=gkd", "streams.s={writer: teacher, objective: {type: k3}}"],
        ["objective.type k3", "set objective.type=k2"],
    ),
    "jsd 0": (["objective={type: jsd, beta: 0}"], ["beta of jsd is 0", "set type=jsd_normalised", "endpoint=kl"]),
    "jsd 1.5": (["objective={type: jsd, beta: 1.5, endpoint: kl}"], ["beta of jsd is 1.5", "between 0 and 1"]),
    "jsd_normalised": (
        ["objective={type: jsd_normalised, beta: -0.1}"],
        ["objective.beta is -0.1", "greater than or equal to 0"],
    ),
    "skew": (["objective={type: skew_forward_kl, alpha: 1}"], ["objective.alpha is 1", "less than 1"]),
    "skew reverse": (["objective={type: skew_reverse_kl, alpha: -1}"], ["objective.alpha is -1", "greater than or equal to 0"]),
    "mu": (["objective={type: akl, mu: 0}"], ["objective.mu is 0", "greater than 0"]),
    "alpha beta": (["objective={type: alpha_beta, alpha: 3}"], ["objective.alpha is 3", "less than or equal to 2"]),
    "alpha beta below 0": (
        ["objective={type: alpha_beta, alpha: -0.6, beta: 0.5}"],
        ["alpha + beta of alpha_beta is -0.1", "a sum below 0", "raise alpha or beta"],
    ),
    "epsilon without end": (["objective={type: sinkhorn, epsilon: .inf}"], ["objective.epsilon is inf", "finite"]),
    "epsilon": (["objective={type: sinkhorn, epsilon: 0}"], ["objective.epsilon is 0", "greater than 0"]),
    "support": (
        ["teacher.payload=top_k", "objective={type: jsd, support: union}"],
        ["teacher.payload top_k", "objective.support union of jsd", "set teacher.payload=hidden"],
    ),
    "student's support": (
        ["teacher={model: t, backend: vllm, payload: top_k}", "objective={type: reverse_kl, support: student}"],
        ["teacher.payload top_k", "objective.support student of reverse_kl", "set teacher.payload=hidden"],
    ),
    "more than listed": (
        ["teacher={model: t, payload: top_k, top_k: 16}", "objective={type: akl, support: teacher, top_k: 32}"],
        ["objective.top_k is 32", "lists 16", "set teacher.top_k=32"],
    ),
    "temperature": (
        ["teacher.payload=top_k", "objective={type: kd, temperature: 2}", "prefix={student: 0, dataset: 1}"],
        ["objective.temperature 2", "set teacher.payload=hidden"],
    ),
    "replay": (
        ["method=distillm", "evaluation.every=null"],
        ["prefix.replay follows the loss", "set evaluation.every", "prefix.replay.growth=0"],
    ),
    "small buffer": (["method=distillm", "prefix.replay.capacity=10"], ["capacity 10", "64 texts", "raise it"]),
    "kept samples": (
        ["method=opd", "prefix={per: step, replay: {growth: 0}}"],
        ["objective.type policy_gradient", "samples of the current student", "set prefix.student=1, without replay"],
    ),
    "replay by rows": (["method=distillm", "prefix.per=row"], ["prefix.replay", "prefix.per=step"]),
    "two origins": (
        ["method=distillm2", "streams.taught.data={path: task:sort}"],
        ["a stream has data or a writer, not both", "leave one of them out"],
    ),
    "no origin": (["method=gkd", "streams.s={rows: 3}"], ["no data to train on", "writer: teacher or dataset"]),
    "one answer": (
        ["method=ranking", "rollout.samples_per_prompt=1"],
        ["ranking compares", "set rollout.samples_per_prompt=4"],
    ),
    "samples": (["method=opd", "rollout.top_p=0.9"], ["objective.type policy_gradient", "set rollout.top_p=1"]),
    "sampled stream": (
        ["method=gkd", "streams.s={writer: teacher, objective: {type: policy_gradient}}"],
        ["streams.s.objective.type policy_gradient", "not on given text"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_contradictory_settings_are_refused_with_a_fix(case: str, tmp_path: Path) -> None:
    overrides, parts = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        made(tmp_path, *(["objective={type: reverse_kl}"] if "method" not in overrides[0] else []), *overrides)
    sentence = str(caught.value)
    assert "\n" not in sentence
    for part in parts:
        assert part in sentence


def test_the_released_preset_of_sinkhorn_sets_temperature_and_scale(tmp_path: Path) -> None:
    released = made(tmp_path, "method=sinkd", "objective.preset=released").objective
    assert isinstance(released, SinkhornConfig)
    assert (released.temperature, released.scale, released.weight, released.epsilon) == (2.0, 0.001, 0.8, 0.1)
    assert (released.iterations, released.cost, released.gradient, released.debias) == (20, "l1", "unrolled", False)
    plain, mixed = (
        made(tmp_path, "method=sinkd", *more).objective for more in ((), ("objective.preset=released", "objective.scale=1"))
    )
    assert isinstance(plain, SinkhornConfig) and isinstance(mixed, SinkhornConfig)
    assert (plain.temperature, plain.scale, mixed.temperature, mixed.scale) == (1.0, 1.0, 2.0, 1.0)


def test_jsd_accepts_its_ends_with_endpoint_kl(tmp_path: Path) -> None:
    for beta, name in ((0, "forward"), (1, "reverse")):
        config = made(tmp_path, f"objective={{type: jsd, beta: {beta}, endpoint: kl}}")
        assert make_objective(config.objective) is not None, name


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["objective={type: jsd, support: union, top_k: 30}"], "objective.top_k"),
        (
            ["method=distillm2", "streams.taught.objective={type: akl, support: student, top_k: 30}"],
            "streams.taught.objective.top_k",
        ),
        (["objective={type: akl}", "teacher={model: t, payload: top_k, top_k: 30}"], "teacher.top_k"),
    ],
)
def test_a_list_longer_than_the_vocabulary_is_refused(overrides: list[str], key: str, tmp_path: Path) -> None:
    config = made(tmp_path, *overrides)
    with pytest.raises(ConfigError) as caught:
        check_classes(config, Vocabulary(29))
    assert str(caught.value) == f"{key} is 30, and student and teacher share 29 tokens; set it to 29 or less"
    check_classes(config, Vocabulary(30))


def test_a_kernel_that_is_not_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, asking = (
        made(tmp_path, "objective={type: jsd}", f"learner.kernel={kernel}", "cluster.gpus=1") for kernel in ("torch", "liger")
    )
    check_kernel(asking)
    monkeypatch.setattr("minidist.preflight.checks.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install --no-deps liger-kernel, or set learner\.kernel=torch"):
        check_kernel(asking)
    check_kernel(plain)


def test_a_default_list_may_be_longer(tmp_path: Path) -> None:
    check_classes(made(tmp_path, "objective={type: akl}", "teacher={model: t, payload: top_k}"), Vocabulary(29))
