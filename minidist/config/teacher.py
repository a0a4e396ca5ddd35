"""`teacher`: the model that scores tokens, one class a backend; each class declares what its backend can do."""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from minidist.config.base import Section
from minidist.config.context import ContextConfig
from minidist.config.models import ModelConfig
from minidist.types import Payload


def _address(url: str) -> str:
    """The url, if it is an address and nothing else; messages show no part of one that may hold a password."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna").decode()
        port = parts.port
    except ValueError as error:  # UnicodeError is one
        raise ValueError(f"teacher.server.url is no address ({str(error)[:80]}); {_EXPECTED}") from None
    if "@" in parts.netloc:
        raise ValueError("teacher.server.url holds a user or a password; leave it out, and set teacher.server.key_variable")
    if not re.fullmatch(r"[\w.-]+|[0-9a-f:.]+", host) or port == 0 or not re.fullmatch(r"[!-~]+", url):
        raise ValueError(f"teacher.server.url is {url[:80]!r}, no address; {_EXPECTED}")
    if parts.query or parts.fragment or not parts.scheme.isascii():
        raise ValueError(f"teacher.server.url is {url[:80]!r}, with a query or a fragment; {_EXPECTED}")
    return url


_EXPECTED = "expected http://NAME:PORT or https://NAME:PORT"


class ServerConfig(Section):
    """The server that holds the teacher.

    A log-probability below ln 2^-149 = -103.28, the least that float32 can hold as a probability, counts as that number: -inf,
    and vLLM's -9999, too. The metric `teacher/floored_frac` counts such tokens, canaries.alarm_floored names the first, and
    canaries.floored_frac refuses many. NaN, +inf, numbers above 0 by more than rounding, and answers of another shape are not
    used: the request is sent again, and after the last attempt the run ends.
    """

    url: Annotated[str, AfterValidator(_address)] = Field(pattern=r"^https?://")
    """Address of the server without /v1, such as http://127.0.0.1:8000; no user, no password."""
    api: Literal["vllm", "sglang"] = "vllm"
    """What the server speaks. vllm: the OpenAI protocol as vLLM extends it. sglang: SGLang's native /generate."""
    model: str | None = None
    """Name under which the server offers the teacher. None: the server's only model."""
    requests: int = Field(default=32, ge=1)
    """Most requests in flight at one time."""
    timeout_s: float = Field(default=120, gt=0)
    """Longest wait for one response, seconds."""
    attempts: int = Field(default=6, ge=1)
    """Attempts of one request. When the server is busy (429, 5xx), does not respond or sends a malformed answer, the request is
    sent again after a pause that doubles each time, or that the Retry-After header sets."""
    pause_s: float = Field(default=60, gt=0)
    """Longest pause between two attempts, seconds, whatever Retry-After requests."""
    key_variable: str | None = None
    """Environment variable that holds the server's API key. None: no key is sent."""


class SoftPromptConfig(Section):
    """Trainable virtual tokens in front of all text that the teacher reads; the teacher's own weights stay frozen (PromptKD,
    Kim et al., arXiv:2402.12842). Each step first trains the prompt to bring the teacher closer to the student, then trains the
    student on the prompted teacher.

    The prompt's optimizer takes type, betas, warm-up, schedule and clipping from learner.optimizer.
    """

    tokens: int = Field(default=7, ge=1)
    """Number of virtual tokens."""
    text: str = Field(default="Suppose you are a student.", min_length=1)
    """Text whose embeddings initialise the virtual tokens, repeated or cut to their number."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of the prompt. None: learner.optimizer.lr."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay of the prompt."""
    anchor: float = Field(default=1.0, ge=0)
    """Weight of KL(prompted teacher || teacher without the prompt), which falls linearly to 0 at the end of the run."""


class TeacherConfig(ModelConfig):
    """The model that scores tokens. Fields of all backends, and the declarations that each backend overrides."""

    payloads: ClassVar[tuple[Payload, ...]]
    """Payloads that the backend can give."""
    live: ClassVar[bool] = True
    """Whether the teacher runs beside the training: it scores any text, and writes. False: it knows given text only."""
    writes: ClassVar[bool] = True
    """Whether a live teacher writes text, beside the scores that it gives."""
    takes_turns: ClassVar[bool] = False
    """Whether the teacher can sample single tokens of a text that the student continues, as rollout.teacher_mix needs."""
    splits_by: ClassVar[Literal["shards", "tensor_parallel"] | None] = None
    """The field of cluster.teacher that splits one teacher over several devices; tensor_parallel: pipeline_parallel, too."""
    in_vllm: ClassVar[bool] = False
    """Whether vLLM runs the scorer in this program's actors: its attention kernels and splits limit the model."""
    learns: ClassVar[bool] = False
    """Whether parts of the teacher are trained; such a teacher lives in every process of the learner, and reads its rows."""
    cuts_padding: ClassVar[bool] = True
    """Whether padded token ids are cut off before the softmax."""
    hosted: ClassVar[bool] = False
    """Whether this program's actors hold the weights, and need memory for them."""
    remote_name: ClassVar[str | None] = None
    """What names the weights where a server holds them."""

    model: str
    """A directory, or a name on the Hugging Face hub. Every backend reads the tokenizer and the shape from here."""
    backend: str
    """Engine of the teacher. hf: transformers, every payload. vllm: vLLM, every payload; with payload hidden it does not write.
    server: a vLLM or SGLang server over HTTP, payload sampled, and top_k up to the server's limit. The softmax of vllm and
    server includes padded ids. cache: no engine; scores of given text are read from the directory that minidist score wrote."""
    payload: Payload = Payload.HIDDEN
    """What the teacher returns for each token: `sampled` (the token's log-probability), `top_k` (also the K likeliest classes;
    the other classes are the tail), `hidden` (the hidden state, from which the learner forms the full vocabulary exactly)."""
    top_k: int = Field(default=64, ge=1)
    """K of payload top_k, in classes; a smaller vocabulary is listed in full."""
    context: ContextConfig | None = None
    """What the teacher reads in place of the student's prompt: self-distillation, where teacher.model is the student's start.
    None: the student's prompt."""

    @model_validator(mode="after")
    def _gives_payload(self) -> "TeacherConfig":
        if self.payload not in self.payloads:
            given = f"{' or '.join(self.payloads)} (a frozen teacher of backend=hf or vllm gives all three)"
            raise ValueError(f"teacher.{_kind(self)} does not give payload {self.payload}; set teacher.payload to {given}")
        return self


class LocalTeacherConfig(TeacherConfig):
    """Fields of a teacher that this program runs itself."""

    takes_turns: ClassVar[bool] = True
    hosted: ClassVar[bool] = True
    batch_tokens: int = Field(default=8192, ge=1)
    """Tokens of one forward pass; bounds its memory."""
    kv_cache_gib: float = Field(default=0.25, gt=0)
    """Key-value cache of the teacher's vLLM engine on a CPU, GiB. With backend hf this field and the next two configure the
    engine that writes for rollout.teacher_mix."""
    gpu_memory_utilization: float = Field(default=0.4, gt=0, le=1)
    """Share of a GPU's memory that the teacher's vLLM engine may use."""
    max_sequences: int = Field(default=256, ge=1)
    """Most sequences at one time in the teacher's vLLM engine."""


class HFTeacherConfig(LocalTeacherConfig):
    """A frozen teacher in transformers, in actors of its own."""

    payloads: ClassVar = tuple(Payload)
    splits_by: ClassVar = "shards"
    backend: Literal["hf"] = "hf"
    placement: Literal["actor"] = "actor"
    """Where the teacher lives. actor: frozen, in actors of its own. learner: in every process of the learner, where the soft
    prompt `prompt` is trained."""


class VLLMTeacherConfig(LocalTeacherConfig):
    """A frozen teacher in vLLM, in actors of its own. Hidden states come from an engine without an output head, which does not
    write: mixed sampling, answers of the teacher and evaluations on them need another payload, or backend hf."""

    payloads: ClassVar = tuple(Payload)
    splits_by: ClassVar = "tensor_parallel"
    in_vllm: ClassVar[bool] = True
    backend: Literal["vllm"] = "vllm"

    @property
    def writes(self) -> bool:
        return self.payload != Payload.HIDDEN

    @property
    def takes_turns(self) -> bool:
        return self.writes

    @property
    def cuts_padding(self) -> bool:
        """The learner cuts the rows of the head that it applies to hidden states; vLLM's own softmax runs over all of them."""
        return self.payload == Payload.HIDDEN


class ServerTeacherConfig(TeacherConfig):
    """A frozen teacher behind HTTP."""

    payloads: ClassVar = (Payload.SAMPLED, Payload.TOP_K)
    cuts_padding: ClassVar[bool] = False
    backend: Literal["server"] = "server"
    server: ServerConfig
    """The server, with its url."""

    @property
    def remote_name(self) -> str:
        return f"server:{self.server.model or self.server.url}"


class CacheTeacherConfig(TeacherConfig):
    """Scores of given text, computed earlier by minidist score."""

    payloads: ClassVar = tuple(Payload)
    live: ClassVar[bool] = False
    backend: Literal["cache"] = "cache"
    cache: Path
    """Directory that minidist score wrote."""


class PromptedTeacherConfig(LocalTeacherConfig):
    """A teacher in transformers whose soft prompt is trained beside the student. Evaluations measure the distance to the
    teacher without its prompt, in actors."""

    payloads: ClassVar = (Payload.HIDDEN,)
    splits_by: ClassVar = "shards"
    learns: ClassVar[bool] = True
    backend: Literal["hf"] = "hf"
    placement: Literal["learner"] = "learner"
    """As of a frozen teacher."""
    prompt: SoftPromptConfig
    """The soft prompt; {} is the published setting."""


def _kind(section: Any) -> str:
    """The setting that selects the class of a teacher section."""
    if isinstance(section, dict):
        return "placement=learner" if section.get("placement") == "learner" else f"backend={section.get('backend', 'hf')}"
    return next(name for name, kind in _KINDS.items() if type(section) is kind)


def _fields_of_kind(section: Any) -> Any:
    """Refuse missing fields, and fields of another backend unless they hold null or their default, as in old records."""
    if isinstance(section, TeacherConfig):
        return section
    if not isinstance(section, dict):
        raise ValueError(f"teacher is {section!r}; expected a section with model, and with backend unless it is hf")
    chosen = _kind(section)
    if (kind := _KINDS.get(chosen)) is None:
        backends = dict.fromkeys(each.model_fields["backend"].default for each in _KINDS.values())
        raise ValueError(f"teacher.backend is {section['backend']!r}; expected one of {', '.join(backends)}")
    for key, field in kind.model_fields.items():
        if field.is_required() and section.get(key) is None:
            raise ValueError(f"teacher.{key} is missing, and teacher.{chosen} needs it: {field.description}")
    kept = dict(section)
    for selecting, other in _KINDS.items():
        for key in sorted(kept.keys() & (other.model_fields.keys() - kind.model_fields.keys())):
            if kept.pop(key) not in (None, other.model_fields[key].default):
                foreign = f"teacher.{key} belongs to teacher.{selecting}, and this teacher is of {chosen}"
                raise ValueError(f"{foreign}; leave out teacher.{key}, or set teacher.{selecting}")
    return kept


_Kinds = (
    Annotated[HFTeacherConfig, Tag("backend=hf")]
    | Annotated[VLLMTeacherConfig, Tag("backend=vllm")]
    | Annotated[ServerTeacherConfig, Tag("backend=server")]
    | Annotated[CacheTeacherConfig, Tag("backend=cache")]
    | Annotated[PromptedTeacherConfig, Tag("placement=learner")]
)
_KINDS: dict[str, type[TeacherConfig]] = {tag.tag: kind for kind, tag in map(get_args, get_args(_Kinds))}
"""The class of a teacher section, by the setting that selects it."""

AnyTeacherConfig = Annotated[_Kinds, Discriminator(_kind), BeforeValidator(_fields_of_kind)]
"""The section `teacher` of a configuration; backend hf where none is given."""


def with_teacher(tree: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the first of several `teachers` as its `teacher`. Raises ValueError where it has another one."""
    teachers = tree.get("teachers")
    if not isinstance(teachers, dict) or not teachers:
        return tree
    first = next(iter(teachers.values()))
    if tree.get("teacher") not in (None, first):
        raise ValueError("teacher is one teacher, and teachers are several by name; set one of the two sections")
    return tree | {"teacher": first}
