"""Settings that may change when a run resumes, and records of earlier versions."""

from typing import Any

import pytest

from minidist.config import CONFIGS, DistillConfig, EvaluateConfig, SftConfig, ToyConfig, difference, dump
from minidist.config.changes import free_settings

DISTILL: dict[str, Any] = {
    "stage": "distill",
    "run": {"directory": "runs/distill"},
    "student": {"model": "runs/sft/final"},
    "data": {"prompts": {"path": "task:sort"}},
    "objective": {"type": "reverse_kl"},
}
TEACHERS: dict[str, dict[str, Any]] = {
    "hf": {"model": "t"},
    "vllm": {"model": "t", "backend": "vllm", "payload": "top_k", "kv_cache_gib": 2.0},
    "server": {"model": "t", "backend": "server", "payload": "top_k", "server": {"url": "http://a"}},
    "cache": {"model": "t", "backend": "cache", "cache": "scores"},
    "prompted": {"model": "t", "placement": "learner", "prompt": {"tokens": 3}},
}
# Every field of a teacher as version 0 recorded it, whatever the backend.
OLD_TEACHER: dict[str, Any] = {
    "dtype": "float32",
    "trust_remote_code": False,
    "placement": "actor",
    "prompt": None,
    "backend": "hf",
    "server": None,
    "cache": None,
    "payload": "hidden",
    "top_k": 64,
    "batch_tokens": 8192,
    "kv_cache_gib": 0.25,
    "gpu_memory_utilization": 0.4,
    "max_sequences": 256,
}


def distill(**sections: Any) -> DistillConfig:
    given_text = {"prefix": {"student": 0, "dataset": 1}, "objective": {"type": "forward_kl"}}
    needed = given_text if sections["teacher"].get("backend") == "cache" else {}
    return DistillConfig.model_validate(DISTILL | needed | sections)


@pytest.mark.parametrize("kind", TEACHERS)
def test_a_record_that_lists_the_fields_of_all_backends_is_no_difference(kind: str) -> None:
    config = distill(teacher=TEACHERS[kind])
    recorded = dump(config)
    recorded["teacher"] = OLD_TEACHER | recorded["teacher"]
    assert difference(recorded, config) is None
    recorded["teacher"]["model"] = "another"
    assert difference(recorded, config) == ("teacher.model", "another", "t")


def test_a_record_of_another_backend_is_a_difference() -> None:
    recorded = dump(distill(teacher=TEACHERS["vllm"]))
    found = difference(recorded, distill(teacher={"model": "t", "payload": "top_k", "kv_cache_gib": 2.0}))
    assert found is not None and found[0] == "teacher.backend" and found[1:] == ("vllm", "hf")


def test_a_record_that_is_refused_today_is_compared_as_it_is() -> None:
    config = distill(teacher=TEACHERS["hf"])
    assert difference(dump(config) | {"gone": 1}, config) == ("gone", 1, None)


def test_a_record_of_options_as_they_were_written_is_no_difference() -> None:
    tree = {
        "stage": "toy",
        "run": {"directory": "runs/toy"},
        "teachers": {"zipf": {"type": "zipf"}},
        "divergences": {"forward_kl": {}, "mixed": {"type": "jsd", "beta": 0.3}},
    }
    config = ToyConfig.model_validate(tree)
    assert difference(dump(config) | {"divergences": tree["divergences"]}, config) is None


def test_free_settings_are_those_that_change_no_number() -> None:
    machine = {f"learner.{name}" for name in ("micro_batch_tokens", "layout", "chunk_tokens")}
    trained = machine | {
        f"learner.{name}"
        for name in (
            "backend",
            "zero_stage",
            "offload_optimizer",
            "offload_parameters",
            "parameter_group",
            "activation_checkpointing",
            "kernel",
        )
    }
    kept = {"run.directory", "run.overwrite", "run.mirror"}
    run = kept | {
        f"run.{name}"
        for name in ("steps", "checkpoint_every", "checkpoints_kept", "rollouts_every", "timeline_steps", "tensorboard")
    }
    run |= {"run.wandb", "run.push_to_hub", "run.push_private"}
    names = ("length", "truncated", "repetition", "distinct", "clip", "weight_max", "weight_min", "disliked", "floored", "age")
    alarms = {f"canaries.alarm_{name}" for name in names} | {"canaries.stop_on"}
    assert free_settings(SftConfig) == {"cluster"} | run | trained | alarms
    engines = {"rollout.max_sequences", "rollout.batch_tokens"}
    assert free_settings(DistillConfig) == free_settings(SftConfig) | engines | {"loop.stream"}
    assert free_settings(EvaluateConfig) == {"cluster"} | run | machine | engines | alarms
    chosen = {f"choose.{name}" for name in ("values", "by", "seeds")}
    assert free_settings(CONFIGS["compare"]) == {"base", "cells", "seeds"} | chosen | kept
    assert free_settings(CONFIGS["toy"]) == kept
