"""The optimizer, its learning rate, its step and its state, the same for every backend."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter

from minidist.config.learner import OptimizerConfig
from minidist.errors import RunDirectoryError
from minidist.models.filling import whole_shape


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Rate of optimizer step `step` (from 0) of `steps`: linear warm-up, then constant, linear or cosine to zero."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    if config.schedule == "linear":
        return config.lr * (1 - done)
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * done))
    return config.lr


def make_optimizer(config: OptimizerConfig, named: Iterable[tuple[str, Parameter]]) -> torch.optim.Optimizer:
    """Two groups: matrices with weight decay; biases, norms and embeddings without."""
    parameters = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    undecayed = [
        p for name, p in parameters if len(whole_shape(p)) < 2 or "embed" in name or name.endswith(("wte.weight", "wpe.weight"))
    ]
    exempt = {id(parameter) for parameter in undecayed}
    decayed = [parameter for _, parameter in parameters if id(parameter) not in exempt]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if config.type == "sgd":
        return torch.optim.SGD(groups, lr=config.lr)
    # On a GPU in one kernel: torch's own choice there needs a temporary as large as the weights.
    fused = all(parameter.is_cuda for _, parameter in parameters) or None
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


def optimizer_step(
    optimizer: torch.optim.Optimizer, parameters: Iterable[Parameter], *, rate: float, limit: float | None
) -> float:
    """Clip the gradient to the norm `limit`, take an optimizer step at the learning rate `rate`, and clear the gradient.

    Returns the gradient's norm before it was clipped."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, float("inf") if limit is None else limit)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(norm)


def read_parameter(optimizer: torch.optim.Optimizer, parameter: Parameter) -> dict[str, Tensor]:
    """A parameter's `weight` and moments."""
    state = optimizer.state.get(parameter, {})
    return {"weight": parameter.data} | {name: value for name, value in state.items() if value.shape == parameter.shape}


def write_parameter(optimizer: torch.optim.Optimizer, parameter: Parameter, tensors: dict[str, Tensor], steps: int) -> None:
    """Restore what `read_parameter` gave after `steps` optimizer steps. Raises RunDirectoryError for other shapes."""
    check_shapes({name: list(tensor.shape) for name, tensor in tensors.items()}, list(parameter.shape))
    parameter.data.copy_(tensors.pop("weight"))
    if tensors:
        moments = {name: tensor.to(parameter) for name, tensor in tensors.items()}
        optimizer.state[parameter] = {"step": torch.tensor(float(steps)), **moments}


def check_shapes(found: dict[str, list[int]], expected: list[int]) -> None:
    """Raise RunDirectoryError unless a parameter's `weight` and moments are of its shape."""
    if "weight" not in found or any(shape != expected for shape in found.values()):
        raise RunDirectoryError(
            f"the checkpoint's training state of a parameter of shape {expected} has {found or 'no tensors'}: it is damaged "
            "or of another model; set run.overwrite=true to start again"
        )
