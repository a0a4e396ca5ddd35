"""Low-rank adapters in a student, through PEFT: injected, merged into the plain weights, saved alone, read back.

An adapted layer computes W x + scale * B (A x), with A [R, in], B [out, R] and scale = alpha / R. Adapters are injected into
the model in place, so the PreTrainedModel keeps its class, and only A and B are trained. PEFT names W `layer.base_layer.weight`
and the adapters `layer.lora_A.default.weight` and `layer.lora_B.default.weight`.
"""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from minidist.config.models import LoraConfig
from minidist.errors import ModelError
from minidist.models.adapted import A, B, merge
from minidist.models.families import is_wrapped, other_layers
from minidist.models.files import ADAPTER_CONFIG, refused
from minidist.models.filling import whole_shape
from minidist.run.files import open_tensors, read_record

_BASE, _A, _B = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"
_OF_EXPERTS = ("gate_proj", "up_proj", "down_proj")
_SAVED_PREFIX, _SAVED_WEIGHTS = "base_model.model.", "adapter_model.safetensors"


@dataclass(frozen=True)
class Adapters:
    """The adapters of one model: their layers by full name, and the checkpoint `base` that they adapt.

    `transposed`: checkpoint names of the weights that are stored as [in, out] (GPT-2's Conv1D).
    """

    config: LoraConfig
    base: str
    layers: tuple[str, ...]
    transposed: frozenset[str]

    @property
    def scale(self) -> float:
        return self.config.alpha / self.config.rank

    def peft(self) -> Any:
        """The same as PEFT's configuration."""
        import peft

        return peft.LoraConfig(
            r=self.config.rank,
            lora_alpha=self.config.alpha,  # type: ignore[arg-type]  # PEFT takes a float too
            target_modules=list(self.layers),
            fan_in_fan_out=bool(self.transposed),
            base_model_name_or_path=self.base,
            task_type=peft.TaskType.CAUSAL_LM,
        )


def inject(model: PreTrainedModel, config: LoraConfig, base: str, *, seed: int, where: str = "student.lora") -> Adapters:
    """Inject adapters into `model` in place and freeze all other parameters. B is zero, so the model's output is unchanged.

    `base`: the directory or hub name of the model's checkpoint. A is random, from `seed`. Adapters are float32, whatever the
    model's dtype. The model may be a skeleton on the meta device. `where`: the section, for messages.

    Raises ModelError for a target that names no linear layer.
    """
    from accelerate import init_empty_weights
    from peft import inject_adapter_in_model

    linear = linear_layers(model)
    layers = _chosen(config.targets, tuple(linear), type(model).__name__, f"{where}.targets")
    _check_saved(model, config, layers)
    transposed = frozenset(f"{name}.weight" for name in layers if isinstance(linear[name], Conv1D))
    adapters = Adapters(config, _location(base), layers, transposed)
    torch.manual_seed(seed)
    placing = init_empty_weights() if next(model.parameters()).is_meta else nullcontext()
    # PEFT would look at the configuration of a model with experts, and adapt these in place of other layers of the same name.
    parts = nn.Module()
    for name, part in model.named_children():
        parts.add_module(name, part)
    with refused(f"{where}: PEFT cannot adapt {type(model).__name__}"), placing:
        inject_adapter_in_model(adapters.peft(), parts)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # a 16-bit adapter would round its small steps away
    model.eval()
    return adapters


def _check_saved(model: PreTrainedModel, config: LoraConfig, layers: tuple[str, ...]) -> None:
    """Raise ModelError for saved adapters that PEFT would read as those of experts in one tensor."""
    stacked = any(".experts." in name and len(whole_shape(parameter)) == 3 for name, parameter in model.named_parameters())
    if config.save == "adapter" and stacked and any(_named(layer, end) for layer in layers for end in _OF_EXPERTS):
        raise ModelError(
            f"student.lora.save is adapter, and PEFT reads adapters of {' and '.join(_OF_EXPERTS)} as those of the experts of "
            f"{type(model).__name__}, which get none here; set student.lora.save=merged, or targets to other layers"
        )


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Every linear layer of the language model but the output head, by its full name.

    Those whose weights fused kernels of a state space read themselves (`out_proj`) are left out: an adapter would not be seen.
    """
    language = {id(m) for m in (model.get_decoder() if is_wrapped(model.config) else model).modules()}
    language.discard(id(model.get_output_embeddings()))
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and id(m) in language}
    bypassed = ".out_proj" if "mamba" in other_layers(model.config) else None
    return {name: m for name, m in layers.items() if bypassed is None or not name.endswith(bypassed)}


def _chosen(targets: list[str], layers: tuple[str, ...], model: str, where: str) -> tuple[str, ...]:
    if "all-linear" in targets:
        return layers
    for target in targets:
        if not any(_named(layer, target) for layer in layers):
            known = ", ".join(dict.fromkeys(layer.rpartition(".")[2] for layer in layers))
            raise ModelError(
                f"{where}: {target} names no linear layer of {model} that can be adapted; use one of {known}, or "
                "all-linear for all of these (the output head takes no adapter)"
            )
    return tuple(layer for layer in layers if any(_named(layer, target) for target in targets))


def _named(layer: str, target: str) -> bool:
    """Whether a target is the layer's full name, or the end of its name after a dot."""
    return layer == target or layer.endswith(f".{target}")


def _location(base: str) -> str:
    """The absolute path of a directory, so that an adapter finds its base from anywhere; a hub name unchanged."""
    path = Path(base).expanduser()
    return str(path.resolve()) if path.is_dir() else base


@torch.no_grad()
def merged(state: Mapping[str, Tensor], *, scale: float, transposed: frozenset[str]) -> dict[str, Tensor]:
    """The plain checkpoint that equals an adapted model: every adapted weight is W + scale * B A, the others are unchanged.

    Args:
        state: PEFT's names to whole tensors: W [out, in], A [R, in], B [out, R]. It is not modified.
        scale: alpha / R.
        transposed: checkpoint names of the weights stored as [in, out].

    The sum is taken in float32 and rounded once, to the dtype of W.
    """
    plain = {}
    for name, tensor in state.items():
        if is_adapter_name(name):
            continue
        layer, is_base, rest = name.partition(_BASE)
        plain_name = f"{layer}.{rest}" if is_base else name
        if is_base and rest == "weight":
            tensor = merge(tensor, state[layer + _A], state[layer + _B], scale=scale, transposed=plain_name in transposed)
        plain[plain_name] = tensor
    return plain


def is_adapter_name(name: str) -> bool:
    """Whether a tensor of an adapted model is A or B of an adapter."""
    return name.endswith((_A, _B))


def plain_names(names: Iterable[str]) -> list[str]:
    """Names of the plain checkpoint's tensors, from those of an adapted model's."""
    return [plain_name(name) for name in names if not is_adapter_name(name)]


def plain_name(name: str) -> str:
    """The plain checkpoint's name of a tensor of an adapted model, which is no adapter's."""
    return name.replace(_BASE, ".")


def starts_at_zero(name: str) -> bool:
    """Whether a tensor of an adapted model is B of an adapter."""
    return name.endswith(_B)


def adapted_groups(names: Iterable[str]) -> list[list[str]]:
    """The tensors of an adapted model that `merged` takes together: the weight of an adapted layer with its A and B, and each
    other tensor for itself."""
    groups = []
    for name in names:
        layer, is_base, rest = name.partition(_BASE)
        if not is_adapter_name(name):
            groups.append([name, layer + _A, layer + _B] if is_base and rest == "weight" else [name])
    return groups


def published_adapters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A and B of an adapted model's state, under the names of the weights that they change (`models.adapted`)."""
    return {
        name.removesuffix(long) + ".weight" + short: tensor
        for name, tensor in state.items()
        for long, short in ((_A, A), (_B, B))
        if name.endswith(long)
    }


def adapters_only(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A and B of an adapted model's state."""
    return {name: tensor for name, tensor in state.items() if is_adapter_name(name)}


def rebased(checkpoint: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of an adapted model that equals a plain checkpoint: its weights as W, A from `state`, and B zero."""
    fresh = {name: torch.zeros_like(tensor) if name.endswith(_B) else tensor for name, tensor in adapters_only(state).items()}
    return fresh | {name: checkpoint[name.replace(_BASE, ".")] for name in state if name not in fresh}


def save_adapters(path: Path, adapters: Adapters, state: Mapping[str, Tensor]) -> None:
    """Write a directory that PEFT and transformers load: A and B of an adapted model's state, and their configuration."""
    path.mkdir(parents=True, exist_ok=True)
    written = adapters.peft()
    written.inference_mode = True
    written.save_pretrained(str(path))
    tensors = {_saved_name(name): tensor.detach().cpu().contiguous() for name, tensor in adapters_only(state).items()}
    save_file(tensors, path / _SAVED_WEIGHTS, metadata={"format": "pt"})


def read_adapters(path: Path, adapters: Adapters, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A and B that `save_adapters` wrote, under the names of an adapted model's state. Raises ModelError if the adapter is not
    for this model."""
    remedy = "set run.overwrite=true to start the run again"
    saved = read_record(path / ADAPTER_CONFIG, dict[str, Any], remedy, ModelError)
    base, rank, alpha = adapters.base, adapters.config.rank, adapters.config.alpha
    for key, expected in {"base_model_name_or_path": base, "r": rank, "lora_alpha": alpha}.items():
        if saved.get(key) != expected:
            raise ModelError(f"weights: the adapter in {path} has {key} {saved.get(key)!r}, but this student has {expected!r}")
    with open_tensors(path / _SAVED_WEIGHTS, remedy, ModelError, "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    names = {_saved_name(name): name for name in adapters_only(state)}
    if found.keys() != names.keys():
        name = min(found.keys() ^ names.keys())
        raise ModelError(
            f"weights: the adapter in {path} is for other layers than this student's: only one of the two has {name}"
        )
    return {names[name]: tensor for name, tensor in found.items()}


def _saved_name(name: str) -> str:
    return _SAVED_PREFIX + name.replace(".default.", ".")
