"""`final/README.md`, the card of a trained model: metadata that the Hugging Face hub reads, and a page for people.

A card is made of what the run's directory holds (config.json, summary.json and final/), so it can be made again at any time.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from pydantic import BaseModel

from minidist.config import DistillConfig, SftConfig, TeachConfig
from minidist.config.citations import citations
from minidist.config.data import SourceConfig
from minidist.config.models import ModelConfig
from minidist.models.files import is_adapter
from minidist.publishing.figures import figure_lines
from minidist.publishing.loading import loading_lines, pipeline_tag
from minidist.publishing.markdown import block, code, plain
from minidist.run.files import write_text
from minidist.text import without_secrets

Trained = SftConfig | DistillConfig | TeachConfig
"""Configurations whose runs end in a model."""
CARD = "README.md"
_SLUG = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
_DATA_FILE = re.compile(r"\.(jsonl?|csv|tsv|parquet|txt)(\.(gz|xz))?$", re.IGNORECASE)
_SECTIONS = ("objective", "loss", "lesson", "prefix", "rollout", "learner", "loop", "batch_rows", "canaries")
_TITLES = {"sft": "supervised fine-tuning", "distill": "on-policy distillation", "teach": "distillation of labelled tasks"}


def write_card(final: Path, config: Trained, summary: Mapping[str, Any]) -> None:
    """Write the card into the directory of a finished model, whole or not at all. Raises DiskFullError."""
    write_text(final / CARD, card(final, config, summary))


def card(final: Path, config: Trained, summary: Mapping[str, Any]) -> str:
    """The card of the model in `final`, from the run's configuration and its summary."""
    parts = [f"---\n{metadata(final, config).to_yaml()}\n---\n", f"# {_title(final, config)}\n", _introduction(config)]
    parts += [_section("Models", _models(config)), _section("Data", _data(config))]
    parts += [_section("Objective", _objective(config)), _section("Figures", figure_lines(config, summary))]
    parts += [_section("Training", _training(config, summary)), _section("How to load it", loading_lines(final, config))]
    return "\n".join([*parts, _section("Limits", _limits(config))])


def metadata(final: Path, config: Trained) -> ModelCardData:
    """What the hub shows and searches. Only names that the hub takes stand in it."""
    base = config.student.model
    if base is None and config.student.init is not None:  # cut from the teacher
        base = next((teacher.model for teacher in _teachers(config).values()), None)
    known = _metadata_of(base) if base is not None else {}
    if base is not None and not is_hub_name(base):  # a model that was trained here: the model that it was trained from
        base = known.get("base_model")
    datasets = sorted(
        {source.path for _, source in sources(config) if is_hub_name(source.path)} | _names(known.get("datasets"))
    )
    tags = ["minidist", "generated_from_trainer"] if isinstance(config, SftConfig) else ["minidist", "knowledge-distillation"]
    if isinstance(config, DistillConfig):
        tags += ["on-policy-distillation", config.objective.type.replace("_", "-")]
    tags += [method.replace("_", "-")] if (method := getattr(config, "method", None)) else []
    adapter = is_adapter(final)
    relation = "adapter" if adapter else "finetune"
    based = {"base_model": base, "base_model_relation": relation} if isinstance(base, str) and is_hub_name(base) else {}
    library = "peft" if adapter else "transformers"
    named: dict[str, Any] = {"datasets": datasets or None, **_license(known), **based}
    return ModelCardData(library_name=library, pipeline_tag=pipeline_tag(final, config), tags=tags, **named)


def is_hub_name(name: str) -> bool:
    """Whether a configuration's name of a model or a data set is one of the hub: neither a task, a file nor a directory."""
    path = Path(name).expanduser()
    if name.startswith(("task:", ".", "/", "~")) or _DATA_FILE.search(name) or path.exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def sources(value: object, key: str = "") -> Iterator[tuple[str, SourceConfig]]:
    """The sources of data below a section, with their dotted keys."""
    if isinstance(value, SourceConfig):
        yield key, value
    elif isinstance(value, BaseModel | dict):
        names = list(type(value).model_fields) if isinstance(value, BaseModel) else list(value)
        for name in names:
            child = getattr(value, name) if isinstance(value, BaseModel) else value[name]
            yield from sources(child, f"{key}.{name}".lstrip("."))


def _metadata_of(model: str) -> dict[str, Any]:
    """The metadata of a model's own card, where it is on this machine and can be read."""
    found = Path(model).expanduser() / CARD if Path(model).expanduser().is_dir() else None
    if found is None and is_hub_name(model):
        cached = try_to_load_from_cache(model, CARD)
        found = Path(cached) if isinstance(cached, str) else None
    try:
        return {} if found is None or not found.is_file() else ModelCard.load(found, ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def _license(known: Mapping[str, Any]) -> dict[str, str]:
    """The student's own licence, where its card names one."""
    found, name = known.get("license"), known.get("license_name")
    if not isinstance(found, str) or not _SLUG.fullmatch(found):
        return {}
    return {"license": found} | ({"license_name": name} if isinstance(name, str) and _SLUG.fullmatch(name) else {})


def _names(value: Any) -> set[str]:
    listed = value if isinstance(value, list) else [value]
    return {name for name in listed if isinstance(name, str) and is_hub_name(name)}


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}"


def _title(final: Path, config: Trained) -> str:
    name = config.run.push_to_hub
    return plain(name.partition("/")[2] if name else final.absolute().parent.name)


def _introduction(config: Trained) -> str:
    method = getattr(config, "method", None)
    return f"Trained with minidist by {_TITLES[config.stage]}{f', method {code(method)}' if method else ''}.\n"


def _models(config: Trained) -> str:
    student = config.student
    if student.model is not None:
        lines = [f"- Student: {_place(student.model)}, " + ("low-rank adapters" if student.lora else "all weights trained")]
    elif student.architecture is not None:
        lines = [f"- Student: {code(student.architecture.get('model_type', ''))}, from random weights"]
    else:
        lines = ["- Student: layers of the teacher"]
    if student.init is not None:
        lines[0] += f", cut to the layers {', '.join(map(str, student.init.layers))}"
    if student.tokenizer is not None:
        lines.append(f"- Tokenizer: {_place(student.tokenizer)}")
    lines += [
        f"- {code(key) if key != 'teacher' else 'Teacher'}: {_place(each.model)}" for key, each in _teachers(config).items()
    ]
    return "\n".join(lines) + "\n"


def _teachers(config: Trained) -> dict[str, ModelConfig]:
    """The teachers by their keys: one, several, or none."""
    one = getattr(config, "teacher", None)
    return dict(getattr(config, "named_teachers", {})) or ({} if one is None else {"teacher": one})


def _place(name: str) -> str:
    """A hub name with its link, or a path: of an absolute one the end, which names no home directory."""
    if is_hub_name(name):
        return f"[{code(name)}](https://huggingface.co/{name})"
    path = Path(name)
    return code("/".join(path.parts[-2:]) if path.is_absolute() or name.startswith("~") else without_secrets(name))


def _data(config: Trained) -> str:
    rows = ["| use | source | split | rows |", "|---|---|---|---|"]
    for key, source in sources(config):
        link = f"[{code(source.path)}](https://huggingface.co/datasets/{source.path})"
        place = link if is_hub_name(source.path) else _place(source.path)
        subset = f", {code(source.subset)}" if source.subset else ""
        rows.append(f"| {code(key)} | {place}{subset} | {code(source.split)} | {source.rows or 'all'} |")
    return "\n".join(rows) + "\n"


def _objective(config: Trained) -> str:
    if isinstance(config, DistillConfig):
        losses = {name: objective.type for name, objective in config.objectives.items()}
    elif isinstance(config, TeachConfig):
        losses = {f"loss.{name}": term.type for name, term in config.loss.items()} | {"lesson": config.lesson.type}
    else:
        losses = {"loss": "cross-entropy on the labels"}
    lines = [f"- {code(name)}: {plain(kind) if ' ' in kind else code(kind)}" for name, kind in losses.items()]
    cited = [f"{plain(each.authors)}, " * bool(each.authors) + f"[{each.name}]({each.url})" for each in citations(config)]
    return "\n".join([*lines, *([f"\nSources: {'; '.join(cited)}."] if cited else [])]) + "\n"


def _training(config: Trained, summary: Mapping[str, Any]) -> str:
    found = summary.get("environment", {})
    hardware, packages = found.get("hardware", {}), found.get("packages", {})
    lines = [f"- Steps: {plain(summary.get('steps', ''))}; seed {config.run.seed}; precision {code(config.student.dtype)}"]
    lines.append(f"- Time: {plain(summary.get('seconds', '?'))} s from the last start of the run to its end")
    if hardware:
        gpus = ", ".join(map(plain, hardware["gpus"])) or "no GPU"
        joined = "; a Ray cluster was joined" if found.get("joined_cluster") else ""
        size = f"{hardware['cores']} cores ({code(hardware['machine'])}), {hardware['memory_gib']} GiB of memory"
        lines.append(f"- Hardware of the driver: {size}, {gpus}{joined}")
    lines.append("- Packages: " + ", ".join(f"{plain(name)} {plain(number)}" for name, number in packages.items()))
    if not (settings := _settings(config)):
        return "\n".join([*lines, "- Settings: the defaults"]) + "\n"
    shown = block(yaml.safe_dump(settings, sort_keys=False, width=110), "yaml")
    return "\n".join(lines) + f"\n\nSettings that differ from their defaults:\n\n{shown}"


def _settings(config: Trained) -> dict[str, Any]:
    """Sections that say how the model was trained, without defaults, and without places on the machine."""
    dumped = config.model_dump(mode="json", exclude_defaults=True)
    kept = {name: dumped[name] for name in _SECTIONS if dumped.get(name)}
    if "streams" in dumped:
        kept["streams"] = {name: {k: v for k, v in each.items() if k != "data"} for name, each in dumped["streams"].items()}
    return kept


def _limits(config: Trained) -> str:
    lines = ["- The figures are those of the prompts or rows named above, and of nothing else."]
    if isinstance(config, DistillConfig):
        longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
        lines.append(f"- It was trained on sequences of at most {longest} tokens.")
    elif isinstance(config, SftConfig | TeachConfig):
        lines.append(f"- It was trained on sequences of at most {config.data.max_tokens} tokens.")
    if _teachers(config):
        lines.append(
            "- A student takes over errors and biases of its teacher. The licence of the teacher may bind its outputs."
        )
    lines.append("- Safety was not examined. Licences of the student's origin and of the data hold for this model, too.")
    return "\n".join(lines) + "\n"
