"""Where the losses and methods of a run come from.

A source is cited once, where its loss, lesson or method is declared: as `Authors, arXiv:NUMBER` (or a web address) in the
docstring of the configuration's class, or in the comment at the head of a method's file. What is cited is read from there.
"""

import inspect
import re
from dataclasses import dataclass
from pathlib import Path

from minidist.config import methods
from minidist.config.base import Section
from minidist.config.distill import DistillConfig
from minidist.config.stages import Command
from minidist.config.teach import TeachConfig

_CITED = re.compile(r"(?P<before>[^()\[\];:]*)(?:arXiv:(?P<arxiv>\d{4}\.\d{4,5})|(?P<url>https://[\w./-]*\w))")


@dataclass(frozen=True)
class Citation:
    """A source: its authors, empty where the text names none, and its address."""

    authors: str
    url: str

    @property
    def name(self) -> str:
        """The number in the arXiv, or the address."""
        return self.url.replace("https://arxiv.org/abs/", "arXiv:")


def cited(text: str) -> list[Citation]:
    """The sources that a text cites, in order.

    >>> cited("MiniLLM (Gu et al., arXiv:2306.08543): reverse KL")
    [Citation(authors='Gu et al.', url='https://arxiv.org/abs/2306.08543')]
    """
    found = []
    for match in _CITED.finditer(" ".join(text.split())):
        before = match["before"].strip()
        authors = before.removesuffix(",") if before.endswith(",") and len(before) > 1 else ""
        found.append(Citation(authors, match["url"] or f"https://arxiv.org/abs/{match['arxiv']}"))
    return found


def of_class(section: type[Section]) -> list[Citation]:
    """The sources that the docstring of a section's class cites."""
    return cited(inspect.cleandoc(section.__doc__ or ""))


def of_method(name: str, folder: Path = methods.DISTILL) -> list[Citation]:
    """The sources that the head of a method's file cites."""
    lines = (folder / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return cited(" ".join(line.removeprefix("#") for line in lines if line.startswith("#")))


def citations(config: Command) -> list[Citation]:
    """The sources of a run's method, its losses, its lesson and what else of it is published, each once."""
    folder, name = methods.TEACH if isinstance(config, TeachConfig) else methods.DISTILL, getattr(config, "method", None)
    found = [] if name is None else of_method(name, folder)
    for section in _published(config):
        found += of_class(type(section))
    named: dict[str, Citation] = {}
    for each in found:
        if each.url not in named or not named[each.url].authors:
            named[each.url] = each
    return list(named.values())


def _published(config: Command) -> list[Section]:
    """The sections that a source describes: losses, lessons, adapters, soft prompts, replay."""
    found: list[object] = []
    if isinstance(config, TeachConfig):
        found += [*config.loss.values(), config.lesson, *config.lesson.teacher_terms.values()]
    elif isinstance(config, DistillConfig):
        found += [*config.objectives.values(), getattr(config.teacher, "prompt", None), config.prefix.replay]
    student = getattr(config, "student", None)
    found.append(getattr(student, "lora", None))
    return [each for each in found if isinstance(each, Section)]
