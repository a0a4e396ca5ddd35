"""Models are written tensor by tensor, and filled from files part by part, as transformers would write and load them whole."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_tie_weights

from minidist.config.models import LoraConfig, ModelConfig
from minidist.errors import ModelError
from minidist.models import saving
from minidist.models.filling import fill, whole_shape
from minidist.models.hub import load_config, load_model
from minidist.models.lora import adapted_groups, inject, merged
from minidist.models.saving import save_configuration, write_weights
from minidist.run.files import sha256
from tests.support.families import FAMILIES, saved_family


class Whole:
    """The tensors of a model in one process."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def state(self) -> dict[str, Tensor]:
        return dict(self.model.state_dict(keep_vars=True))

    @contextmanager
    def whole(self, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        yield {name: self.model.state_dict()[name] for name in names}


def written(path: Path, model: PreTrainedModel, ranks: int = 1, merge: Any = dict, groups: Any = None) -> dict[str, str]:
    """The sums of the files that the ranks write, one after another."""
    path.mkdir(parents=True, exist_ok=True)
    save_configuration(path, model)
    groups = groups or [[name] for name in model.state_dict()]
    sums: dict[str, str] = {}
    for rank in range(ranks):
        sums |= write_weights(path, model, Whole(model), merge=merge, groups=groups, rank=(rank, ranks))
    return sums


def weights(path: Path) -> dict[str, Tensor]:
    return {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_written_as_transformers_writes_it(family: str, tmp_path: Path) -> None:
    saved_family(family, tmp_path / "files")
    model = load_model(ModelConfig(model=str(tmp_path / "files")), "student.model")
    model.save_pretrained(tmp_path / "whole")
    sums = written(tmp_path / "parts", model)
    assert sums == {"model.safetensors": sha256(tmp_path / "parts" / "model.safetensors")}
    assert_same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    names = {
        path: {file.name: file.read_bytes() for file in path.iterdir()} for path in (tmp_path / "parts", tmp_path / "whole")
    }
    for files in names.values():
        del files["model.safetensors"]
    assert names[tmp_path / "parts"] == names[tmp_path / "whole"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_filled_as_transformers_loads_it(family: str, tmp_path: Path) -> None:
    saved_family(family, tmp_path)
    config = ModelConfig(model=str(tmp_path))
    wanted = load_model(config, "student.model")
    model = AutoModelForCausalLM.from_config(load_config(config, "student.model"), dtype=torch.float32)
    fill(model, tmp_path, "student.model")
    assert_same(dict(model.state_dict()), dict(wanted.state_dict()))
    assert_same(dict(model.named_buffers()), dict(wanted.named_buffers()))
    ties = [{name: id(each) for name, each in found.named_parameters(remove_duplicate=False)} for found in (model, wanted)]
    assert len(set(ties[0].values())) == len(set(ties[1].values()))
    written(tmp_path / "again", model)
    assert_same(weights(tmp_path / "again"), weights(tmp_path))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_each_of_three_ranks_fills_its_own_elements(family: str, tmp_path: Path) -> None:
    saved_family(family, tmp_path)
    config = ModelConfig(model=str(tmp_path))
    wanted = load_model(config, "student.model")
    parts: dict[str, list[Tensor]] = {}
    for rank in range(3):
        model = AutoModelForCausalLM.from_config(load_config(config, "student.model"), dtype=torch.float32)
        for parameter in model.parameters():
            partition(parameter, rank, 3)
        fill(model, tmp_path, "student.model")
        for name, parameter in model.named_parameters():
            parts.setdefault(name, []).append(parameter.ds_tensor)  # type: ignore[attr-defined]
    for name, parameter in wanted.named_parameters():
        assert torch.equal(torch.cat(parts[name])[: parameter.numel()], parameter.detach().flatten()), name


def partition(parameter: Any, rank: int, ranks: int) -> None:
    """As DeepSpeed leaves a partitioned parameter: empty, with this rank's elements beside it."""
    parameter.ds_shape, parameter.ds_numel = parameter.shape, parameter.numel()
    parameter.ds_tensor = torch.full((-(-parameter.numel() // ranks),), float("nan"))
    parameter.ds_tensor.ds_numel = parameter.ds_tensor.numel()
    parameter.ds_zero_partition_rank, parameter.ds_status = rank, SimpleNamespace(name="NOT_AVAILABLE")
    parameter.data = torch.empty(0)
    assert whole_shape(parameter).numel() > 0


def test_ranks_share_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = saved_family("llama", tmp_path / "files")
    monkeypatch.setattr(saving, "_SMALLEST", 1)
    sums = written(tmp_path / "parts", model, ranks=3)
    assert len(sums) >= 3 and {name: sha256(tmp_path / "parts" / name) for name in sums} == sums
    assert_same(weights(tmp_path / "parts"), weights(tmp_path / "files"))
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == weights(tmp_path / "files").keys() and set(index["weight_map"].values()) == set(sums)
    loaded = load_model(ModelConfig(model=str(tmp_path / "parts")), "student.model")
    assert_same(dict(loaded.state_dict()), dict(model.state_dict()))


def test_adapters_are_merged_layer_by_layer(tmp_path: Path) -> None:
    model = saved_family("gpt2", tmp_path / "files")
    adapters = inject(model, LoraConfig(rank=2, alpha=4), str(tmp_path / "files"), seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()

    def plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return merged(state, scale=adapters.scale, transposed=adapters.transposed)

    written(tmp_path / "parts", model, merge=plain, groups=adapted_groups(model.state_dict()))
    model.save_pretrained(tmp_path / "whole", state_dict=plain(dict(model.state_dict())))
    assert_same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_files_of_another_model_are_refused(change: str, tmp_path: Path) -> None:
    model = saved_family("llama", tmp_path)
    held = weights(tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    held[name] = torch.zeros(3)
    if change == "missing":
        del held[name]
    save_file(held, tmp_path / "model.safetensors", metadata={"format": "pt"})
    expected = rf"has no weights of {name}" if change == "missing" else rf"has {name} in shape \[3\]; expected \[96, 64\]"
    with pytest.raises(ModelError, match=rf"student.model: .* {expected}"):
        fill(model, tmp_path, "student.model")


def test_a_tied_model_whose_files_differ_is_not_tied(tmp_path: Path) -> None:
    model = saved_family("llama", tmp_path)
    held = weights(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert not torch.equal(held["lm_head.weight"], held["model.embed_tokens.weight"])
    untied = load_model(ModelConfig(model=str(tmp_path)), "student.model")
    with no_tie_weights():
        tied = AutoModelForCausalLM.from_config(load_config(ModelConfig(model=str(tmp_path)), "student.model"))
    fill(tied, tmp_path, "student.model")
    assert_same(dict(tied.state_dict()), dict(untied.state_dict()))
    assert_same(dict(tied.state_dict()), dict(model.state_dict()))
