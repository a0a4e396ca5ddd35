"""Generation settings of checkpoints: kept where transformers can write them, never fatal."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from minidist.config.learner import LearnerConfig
from minidist.config.models import ModelConfig
from minidist.errors import ModelError
from minidist.models.hub import load_model
from tests.support.learners import local_learner
from tests.support.tiny import tiny_model


def saved_again(path: Path, settings: Any) -> dict[str, Any]:
    """The settings of a checkpoint after it is loaded, trained and saved as a run does."""
    tiny_model().save_pretrained(path / "model")
    (path / "model" / "generation_config.json").write_text(json.dumps(settings))
    learner = local_learner(load_model(ModelConfig(model=str(path / "model")), "student.model"), LearnerConfig(), {})
    asyncio.run(learner.save(path / "final"))
    asyncio.run(learner.close())
    return {
        name: value
        for name, value in json.loads((path / "final" / "generation_config.json").read_text()).items()
        if name != "transformers_version"
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "eos_token_id": [0, 2], "pad_token_id": 3},
        {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True},
        {"eos_token_id": 2, "repetition_penalty": 1.1, "a_field_of_its_own": [1]},
    ],
)
def test_settings_without_a_contradiction_are_kept(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert saved_again(tmp_path, settings) == settings


@pytest.mark.parametrize(
    ("extra", "kept"),
    [
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, {"do_sample": False}),
        ({"top_k": 20, "top_p": 0.9}, {}),
        ({"temperature": "hot"}, {}),
        ({"early_stopping": "perhaps"}, {}),
        ({"length_penalty": 2.0}, {}),
        ({"watermarking_config": 3, "compile_config": 3}, {}),
        ({"cache_implementation": "odd"}, {}),
        ({"max_new_tokens": 0}, {}),
        ({"num_return_sequences": 4}, {}),
        ({"pad_token_id": -1}, {}),
        ({"output_scores": True}, {}),
        ({"logits_processor": []}, {}),
        ({"suppress_tokens": [2], "forced_eos_token_id": 2}, {"suppress_tokens": [2]}),
        ({"use_cache": False, "cache_implementation": "static"}, {"use_cache": False}),
        ({"validate": 3, "to_dict": 1}, {}),
    ],
    ids=str,
)
def test_what_contradicts_the_rest_is_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, extra: dict[str, Any], kept: Any
) -> None:
    monkeypatch.setattr(logging.getLogger("minidist"), "propagate", True)  # in case another test has started a log
    with caplog.at_level(logging.WARNING, logger="minidist"):
        assert saved_again(tmp_path, {"eos_token_id": [0, 2]} | extra) == {"eos_token_id": [0, 2]} | kept
    assert all(name in caplog.text for name in extra.keys() - kept.keys())


def test_settings_of_config_json_are_not_fatal_either(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"temperature": 0.6, "top_k": 7}))
    model = load_model(ModelConfig(model=str(tmp_path)), "student.model")
    model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text())["eos_token_id"] == 0


@pytest.mark.parametrize("text", ["[]", "null", "{", "[" * 100_000])
def test_a_file_without_settings_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"generation_config.json (is of another shape|cannot be read) .* of student.model"):
        load_model(ModelConfig(model=str(tmp_path)), "student.model")
