"""What a user gets wrong: one sentence, exit code 2, and no model loaded or process started."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from minidist import cli
from minidist.cluster.cluster import Cluster
from minidist.config import DistillConfig
from minidist.data.rendering import character_tokenizer
from minidist.preflight.plan import plan_distill

ROWS = [{"question": "ab=", "answer": "ab"}, {"question": "", "answer": "x"}, {"question": "ba=" * 30, "answer": "ab"}]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models that fit together, one with another tokenizer, one vLLM cannot serve on a CPU, and a data file."""
    root = tmp_path_factory.mktemp("home")
    for name, alphabet, heads in (("student", "ab=", 1), ("teacher", "ab=", 1), ("stranger", "ba=", 1), ("narrow", "ab=", 4)):
        shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": heads}
        LlamaForCausalLM(LlamaConfig(vocab_size=5, max_position_embeddings=64, **shape)).save_pretrained(root / name)
        character_tokenizer(alphabet).save_pretrained(root / name)
    GPT2LMHeadModel(GPT2Config(vocab_size=5, n_embd=32, n_layer=1, n_head=1, n_positions=16)).save_pretrained(root / "short")
    character_tokenizer("ab=").save_pretrained(root / "short")
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (root / "good.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    return root


def distill(home: Path) -> dict[str, Any]:
    return {
        "stage": "distill",
        "run": {"directory": str(home / "run")},
        "student": {"model": str(home / "student")},
        "teacher": {"model": str(home / "teacher")},
        "data": {"prompts": {"path": str(home / "good.jsonl"), "prompt": "{{ question }}"}, "max_prompt_tokens": 20},
        "objective": {"type": "reverse_kl"},
        "rollout": {"max_new_tokens": 12, "prompts_per_step": 1},
    }


CASES = {
    "rollout.tempreature=1": "unknown key rollout.tempreature; did you mean temperature?",
    "objective.type=reverse_lk": "objective.type is 'reverse_lk'; expected one of reverse_kl, forward_kl",
    "teacher.model={home}/stranger": "different tokenizers: id 2 is 'a' in the student's and 'b' in the teacher's, which",
    "teacher.payload=sampled": "teacher.payload sampled is poorer than objective.type reverse_kl needs",
    "student.model={home}/nowhere": "student.model: no model directory at",
    "teacher.model=runs/nowhere": "teacher.model: runs/nowhere is not a directory, and the hub did not provide it",
    "data.prompts.path={home}/nowhere.jsonl": "no data file or directory at",
    "data.prompts.prompt='{{{{ instruction }}}}'": "has no column 'instruction', which prompt uses; its columns are question,",
    "data.prompts.path={home}/rows.jsonl": "2 of 3 rows of {home}/rows.jsonl cannot be used; the first is row 1: the prompt is",
    "cluster.gpus=64": "cluster.gpus is 64, and this machine has",
    "student.model={home}/short": "is 32, more than the model's context of 16 tokens",
    "student.model={home}/narrow": "attention heads of size 8; vLLM on a CPU has 32,",
    "cluster.rollout.tensor_parallel=2": "cluster.rollout.tensor_parallel is 2, and student.model has 1 attention heads",
    "teacher={{model: t, backend: server, server: {{url: http://a}}}}": "does not give payload hidden; set teacher.payload to",
    "rollout.prompts_per_step=2": "rollout.prompts_per_step is 2, and {home}/good.jsonl has 1 prompts; lower it",
    "run.directory={home}": "holds files but no run",
    "student.lora.targets=[c_attn]": "student.lora.targets: c_attn names no linear layer of LlamaForCausalLM that can be",
}


@pytest.mark.parametrize("override", CASES)
def test_bad_input_is_one_sentence_and_code_2(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], override: str
) -> None:
    assert refused(home, monkeypatch, capsys, override.format(home=home)).find(CASES[override].format(home=home)) >= 0


VLLM = ["teacher.backend=vllm", "teacher.payload=top_k", "rollout.engine=hf"]
SERVER = ["teacher.backend=server", "teacher.payload=top_k", "teacher.server.url=http://127.0.0.1:1"]
TEACHERS = {
    "cluster.teacher.tensor_parallel=2": (VLLM, "cluster.teacher.tensor_parallel is 2, and teacher.model has 1 attention"),
    "teacher.model={home}/narrow": (VLLM, "teacher.model has attention heads of size 8; vLLM on a CPU has"),
    "run.seed=1": (SERVER, "teacher.server.url: no server answers at http://127.0.0.1:1 (ConnectError"),
    "cluster.teacher.shards=3": (SERVER, "cluster.teacher.shards splits a teacher of backend hf, not of server"),
}


def test_layers_of_sentence_transformers_behind_a_pooled_teacher_are_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "teacher" / "modules.json").write_text("[]")
    sentence = refused(home, monkeypatch, capsys, "teacher.backend=vllm", "rollout.engine=hf")
    assert f"teacher.model: {home}/teacher/modules.json lists layers" in sentence and "set teacher.backend=hf" in sentence


@pytest.mark.parametrize("override", TEACHERS)
def test_a_teacher_that_cannot_run_is_one_sentence(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], override: str
) -> None:
    common, sentence = TEACHERS[override]
    assert sentence in refused(home, monkeypatch, capsys, *common, override.format(home=home))


def test_padded_ids_of_a_vllm_teacher_are_a_line_of_the_plan(home: Path) -> None:
    LlamaForCausalLM(
        LlamaConfig(vocab_size=8, max_position_embeddings=64, hidden_size=32, intermediate_size=32, num_attention_heads=1)
    ).save_pretrained(home / "padded")
    character_tokenizer("ab=").save_pretrained(home / "padded")
    settings = distill(home) | {"teacher": {"model": str(home / "padded"), "backend": "vllm", "payload": "top_k"}}
    plan = plan_distill(DistillConfig.model_validate(settings))
    assert any("hold the share of 3 ids that are not shared" in line for line in plan.lines)


def refused(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    """The one line of a refused `minidist distill`."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded or a process started")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", forbidden)
    monkeypatch.setattr(Cluster, "__aenter__", forbidden)
    config = home / "distill.yaml"
    config.write_text(yaml.safe_dump(distill(home)))
    monkeypatch.setattr("sys.argv", ["minidist", "distill", str(config), *overrides])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    errors = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2
    assert len(errors) == 1 and errors[0].startswith("minidist: ")
    return errors[0]


def test_another_configuration_in_the_directory(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "other").mkdir()
    (home / "other" / "config.json").write_text(json.dumps({"stage": "distill", "run": {"steps": 7}}))
    line = refused(home, monkeypatch, capsys, f"run.directory={home}/other")
    assert "holds a run of another configuration" in line and "run.overwrite=true" in line
    assert (home / "other" / "config.json").exists()


def test_skipped_rows_are_counted(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    config = home / "skip.yaml"
    config.write_text(yaml.safe_dump(distill(home)))
    skip = [f"data.prompts.path={home}/rows.jsonl", "data.prompts.bad_rows=skip", f"run.directory={home}/skipped"]
    monkeypatch.setattr("sys.argv", ["minidist", "check", str(config), *skip])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    assert "1 rows of" in (shown := capsys.readouterr().out) and "2 left out" in shown
    assert not (home / "skipped").exists()


def test_adapters_are_planned(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    config = home / "lora.yaml"
    config.write_text(yaml.safe_dump(distill(home)))
    monkeypatch.setattr("sys.argv", ["minidist", "check", str(config), "student.lora.rank=4", "student.lora.save=adapter"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    # Seven square layers of width 32, each with A and B.
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "LoRA: rank 4 in 7 layers (q_proj, k_proj, v_proj," in shown and f"{7 * 2 * 4 * 32:,} parameters are trained" in shown
    )
