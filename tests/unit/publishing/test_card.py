"""The card of a finished model: valid metadata, what the run recorded, and text from outside as text."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from minidist.config import CONFIGS, DistillConfig
from minidist.publishing.card import card, is_hub_name
from minidist.publishing.markdown import block, code, plain
from minidist.run.recorded import read_config, read_summary
from tests.support.config import TREES
from tests.support.teach import teach
from tests.support.teach import tree as teach_tree

HOSTILE = "a`b|c](http://x)<script>\n---\nlicense: mit\n# <b>"
EVALUATIONS = [
    {"step": 0, "accuracy": 0.25, "accuracy_se": 0.04, "reverse_kl": 0.9},
    {"step": 50, "accuracy": 0.75, "accuracy_se": 0.03, "reverse_kl": 0.1},
]
SUMMARY: dict[str, Any] = {"steps": 50, "seconds": 61.5, "evaluations": EVALUATIONS}
SUMMARY |= {
    "environment": {
        "packages": {"minidist": "0.1.0", "torch": "2.13.0+cpu"},
        "hardware": {"machine": "x86_64", "cores": 2, "memory_gib": 23.5, "gpus": ["NVIDIA H100 | 80GB"]},
        "joined_cluster": False,
    }
}


def config(**changes: Any) -> DistillConfig:
    tree = TREES["distill"] | {"student": {"model": "owner/small"}, "teacher": {"model": "owner/large"}} | changes
    return DistillConfig.model_validate(tree)


@pytest.fixture
def final(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "final"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    return folder


def data(text: str) -> dict[str, Any]:
    """The metadata of a card as the hub's own client reads it."""
    found = ModelCard(text)
    assert found.content == text
    return found.data.to_dict()


def test_metadata_name_models_data_sets_and_use(final: Path) -> None:
    prompts = {"prompts": {"path": "owner/prompts"}, "validation": {"path": "task:sort", "split": "valid"}}
    found = data(card(final, config(data=prompts, method="minillm", objective={}), SUMMARY))
    assert found["base_model"] == "owner/small" and found["base_model_relation"] == "finetune"
    assert found["datasets"] == ["owner/prompts"]
    assert found["library_name"] == "transformers" and found["pipeline_tag"] == "text-generation"
    assert {"minidist", "minillm", "on-policy-distillation"} <= set(found["tags"])
    assert "license" not in found


def test_a_card_says_what_was_measured_how_and_from_where(final: Path) -> None:
    text = card(final, config(method="minillm", objective={}), SUMMARY)
    assert "| before training | after 50 steps |" in text
    assert "| `accuracy`: share of right answers | 0.25 ± 0.04 | 0.75 ± 0.03 |" in text
    assert "Gu et al., [arXiv:2306.08543](https://arxiv.org/abs/2306.08543)" in text
    assert "[`owner/large`](https://huggingface.co/owner/large)" in text
    assert "torch 2.13.0+cpu" in text and "61.5 s" in text and "NVIDIA H100 \\| 80GB" in text
    assert 'AutoModelForCausalLM.from_pretrained("path/to/final")' in text and "vllm serve path/to/final" in text
    assert f"at most {config().data.max_prompt_tokens + 128} tokens" in text


def test_a_model_of_the_kept_weights_has_their_figures(final: Path) -> None:
    text = card(final, config(), SUMMARY | {"best": {"step": 0}})
    assert "| figure | before training |" in text


def test_text_from_outside_is_text(final: Path) -> None:
    hostile = config(
        student={"model": HOSTILE},
        teacher={"model": f"/home/user/secret/{HOSTILE}"},
        data={"prompts": {"path": f"https://user:password@host/{HOSTILE}", "split": HOSTILE, "prompt": "{{ x }}```\n---\n"}},
        rollout={"max_new_tokens": 4},
    )
    text = card(final, hostile, SUMMARY | {"evaluations": [{"step": 0, HOSTILE: 1.0}]})
    found = data(text)
    assert "license" not in found and "base_model" not in found and "datasets" not in found
    body = text.split("\n---\n", 1)[1]
    assert "\n---\n" not in body and "/home/user" not in text and "password" not in text
    assert not [line for line in body.splitlines() if line.startswith("# ") and "<b>" in line]
    assert [len(line.replace("\\|", "").split("|")) for line in body.splitlines() if "data.prompts" in line] == [6]


@pytest.mark.parametrize("text", [HOSTILE, "`", "``x``", "", "a\u202eb", "x" * 999])
def test_a_span_of_code_is_closed_by_its_own_fence_alone(text: str) -> None:
    span = code(text)
    fence = span[: len(span) - len(span.lstrip("`"))]
    assert span.endswith(fence) and fence not in span[len(fence) : -len(fence)] and "\n" not in span and "\u202e" not in span
    assert block("a\n````\nb", "yaml").splitlines() == ["`````yaml", "a", "````", "b", "`````"]
    assert plain("<a>*b*[c](d)") == "\\<a\\>\\*b\\*\\[c\\]\\(d\\)"


def test_a_student_trained_here_has_the_origin_and_the_licence_of_its_own_start(final: Path, tmp_path: Path) -> None:
    start = tmp_path / "start"
    start.mkdir()
    (start / "README.md").write_text("---\nbase_model: owner/first\nlicense: apache-2.0\ndatasets: [owner/rows]\n---\n")
    found = data(card(final, config(student={"model": str(start)}), SUMMARY))
    assert (found["base_model"], found["license"], found["datasets"]) == ("owner/first", "apache-2.0", ["owner/rows"])


@pytest.mark.parametrize("content", ["---\nlicense: [mit\n---\n", "---\nlicense: {a: b}\n---\n", "\x00", "---\n- a\n---\n"])
def test_a_broken_card_of_the_start_is_passed_over(final: Path, tmp_path: Path, content: str) -> None:
    start = tmp_path / "start"
    start.mkdir()
    (start / "README.md").write_text(content)
    assert "license" not in data(card(final, config(student={"model": str(start)}), SUMMARY))


def test_a_student_cut_from_its_teacher_is_based_on_it(final: Path) -> None:
    text = card(final, config(student={"init": {"layers": [0, 2]}}), SUMMARY)
    assert data(text)["base_model"] == "owner/large" and "layers of the teacher, cut to the layers 0, 2" in text


def test_adapters_are_loaded_with_their_base(final: Path) -> None:
    (final / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/small"}))
    adapted = config(student={"model": "owner/small", "lora": {"save": "adapter"}})
    text = card(final, adapted, SUMMARY)
    found = data(text)
    assert (found["library_name"], found["base_model_relation"]) == ("peft", "adapter")
    assert "vllm serve owner/small --enable-lora --lora-modules student=path/to/final" in text
    assert "arXiv:2106.09685" in text


def test_settings_are_yaml_without_places(final: Path) -> None:
    settings = card(final, config(learner={"optimizer": {"lr": 2e-3}}, rollout={"max_new_tokens": 7}), SUMMARY)
    found = yaml.safe_load(settings.split("```yaml\n")[1].split("```")[0])
    assert found["learner"] == {"optimizer": {"lr": 2e-3}} and found["rollout"]["max_new_tokens"] == 7
    assert not {"run", "data", "cluster", "teacher"} & found.keys()


@pytest.mark.parametrize(
    "name", ["task:sort", "./owner/name", "/a/b", "~/a/b", "rows/a.jsonl", "rows/a.csv.gz", "a/b/c", "a b"]
)
def test_paths_and_tasks_are_no_names_of_the_hub(name: str) -> None:
    assert not is_hub_name(name)


def test_a_directory_is_no_name_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("owner/name")
    (tmp_path / "owner/name").mkdir(parents=True)
    assert not is_hub_name("owner/name")


def test_a_classifier_is_loaded_by_its_own_class(tmp_path: Path) -> None:
    settings = teach_tree(tmp_path)
    settings["run"] |= {"steps": 2}
    teach(tmp_path, settings, "classifier")
    text = (tmp_path / "classifier/final/README.md").read_text()
    assert data(text)["pipeline_tag"] == "text-classification"
    assert "AutoModelForSequenceClassification.from_pretrained" in text and "vllm serve" not in text
    assert "on `data.test`" in text


def test_a_trained_model_has_its_card_and_loads_with_it(trained: Path) -> None:
    final = trained / "final"
    config, summary = read_config(trained), read_summary(trained)
    assert summary is not None and type(config) is CONFIGS["sft"]
    assert (final / "README.md").read_text() == card(final, config, summary)
    assert summary["environment"]["packages"].keys() >= {"torch", "transformers", "ray"}
    AutoTokenizer.from_pretrained(final)
    assert AutoModelForCausalLM.from_pretrained(final).num_parameters() > 0
