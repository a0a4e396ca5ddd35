"""Checks of a model's family: refused by name before weights are read, or computed right."""

from importlib.util import find_spec

from minidist.config import DistillConfig, EvaluateConfig, ScoreConfig, ScoreTableConfig
from minidist.config.learner import MeasureConfig
from minidist.errors import ModelError
from minidist.preflight.facts import ModelFacts


def check_learnt(model: ModelFacts, learner: MeasureConfig) -> list[str]:
    """The learner computes the model's logits right; lines of the plan about the layout of its rows."""
    check_in_transformers(model, f"set {model.where} to the checkpoint that it was quantised from")
    return _layout_lines(model, learner)


def check_teacher(config: DistillConfig | EvaluateConfig | ScoreConfig | ScoreTableConfig, teacher: ModelFacts) -> None:
    """transformers computes the teacher's logits right, where it does."""
    kind = config.teacher
    if kind.payload == "hidden" or (kind.hosted and not kind.in_vllm):
        check_in_transformers(teacher, "set teacher.backend=vllm and teacher.payload=top_k")


def check_in_transformers(model: ModelFacts, cure: str) -> None:
    """The weights are plain, and the logits are those of the output head."""
    from minidist.models.heads import check_logits

    if (quantised := getattr(model.config, "quantization_config", None)) is not None:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else getattr(quantised, "quant_method", None)
        found = f"{model.where} is quantised ({method or 'by a method that it does not name'})"
        raise ModelError(f"{found}, and minidist reads plain weights in transformers; {cure}")
    assert model.shape.parameters  # a configuration of which no model can be built is refused here, in a sentence
    check_logits(model.config, model.where)


def check_in_vllm(model: ModelFacts, gpus: float, cure: str) -> None:
    """vLLM can run the model's kinds of layers on this machine."""
    from minidist.models.families import DIFFERENT_IN_VLLM, is_wrapped, other_layers

    if is_wrapped(model.config) and find_spec("torchvision") is None:
        found = f"{model.where} is {model.config.model_type}, which also reads images or sound"
        raise ModelError(f"{found}; vLLM needs torchvision for it, which is not installed; install it, or set {cure}")
    if not gpus and (layers := other_layers(model.config)):
        found = f"{model.where} is {model.config.model_type} with layers of {' and '.join(layers)}"
        raise ModelError(f"{found}, which minidist does not run in vLLM on a CPU; set {cure}")
    if not gpus and (family := str(model.config.model_type)) in DIFFERENT_IN_VLLM:
        found = f"{model.where} is {family}, for which vLLM 0.32 on a CPU gives other log-probabilities than transformers"
        raise ModelError(f"{found}; set {cure}")


def _layout_lines(model: ModelFacts, learner: MeasureConfig) -> list[str]:
    from minidist.models.families import PACKED

    family = str(model.config.model_type)
    if family in PACKED or learner.layout == "buckets":
        return []
    unproved = f"no test proves that packed rows of {family} do not see one another"
    if learner.layout == "packed":
        raise ModelError(f"learner.layout is packed, and {unproved}; set learner.layout=auto")
    return [f"learner: rows of similar length side by side, padded (buckets), since {unproved}"]
