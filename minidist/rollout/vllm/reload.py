"""New weights in a process that holds a part of vLLM's model, where vLLM alone would refuse them or compute with others."""

from typing import Any

_TIED_HEAD = "lm_head"


def reload(worker: Any, tensors: list[tuple[str, Any]], *, on_gpu: bool) -> None:
    """Replace the weights of the worker's model; `tensors` are named as in a checkpoint, a tied output head among them.

    Raises ValueError for names that the model does not have.
    """
    model = worker.get_model()
    modules = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    # Some models (Gemma's) read a tied head through the embedding and refuse it; others (Llama's) keep the old one without it.
    loaded = [(name, tensor) for name, tensor in tensors if _TIED_HEAD in modules or not name.endswith(f"{_TIED_HEAD}.weight")]
    worker.model_runner.reload_weights(weights_iterator=iter(loaded))
    if not on_gpu:
        _pack_experts(model)


def _pack_experts(model: Any) -> None:
    """Bring new experts into the order in which the kernels of a CPU read them; vLLM 0.32 does so only when it starts."""
    for layer in model.modules():
        kernel = getattr(getattr(layer, "quant_method", None), "moe_kernel", None)
        if kernel is not None:
            kernel.fused_experts.process_weights_after_loading(layer)
