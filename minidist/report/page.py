"""The page: one HTML file with its style, its script, Plotly and all data, which asks no network for anything."""

import base64
import hashlib
import time
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from minidist import __version__
from minidist.errors import ConfigError, DataError, MinidistError
from minidist.report import sections
from minidist.report.comparisons import cells
from minidist.report.groups import group
from minidist.report.runs import Reader, RunFiles
from minidist.report.text import shown

_MISSHAPED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What values of another shape than a stage writes raise where a section is made of them."""


class Report:
    """The page of some runs, made anew as often as it is asked for.

    Args:
        paths: directories of runs. The cells of a comparison count as runs of their own.

    Raises DataError where a path is no directory or holds no run, ConfigError where Plotly is not installed.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        for path in paths:
            _check(path)
        _plotly()
        self._paths = paths
        self._known: dict[Path, Reader] = {}

    @property
    def title(self) -> str:
        """Names of the runs."""
        names = [reader.name for reader in self._readers()]
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    def signature(self) -> str:
        """Changes when a run has written anything that the page shows."""
        state = repr([reader.signature() for reader in self._readers()])
        return hashlib.sha256(state.encode()).hexdigest()[:16]

    def _readers(self) -> list[Reader]:
        """Of the runs that there are now: a comparison adds cells as it goes."""
        paths = list(dict.fromkeys(each for path in self._paths for each in (path, *cells(path))))
        for path, name in zip(paths, _names(paths), strict=True):
            self._known.setdefault(path, Reader(path, name)).name = name
        return [self._known[path] for path in paths]

    def body(self) -> str:
        """What the page shows, as HTML."""
        runs = [reader.read() for reader in self._readers()]
        made, failed = _sections(runs)
        links = "".join(f'<a href="#{anchor}">{shown(heading)}</a>' for anchor, heading, _ in made)
        parts = "".join(f'<section id="{anchor}"><h2>{shown(heading)}</h2>{html}</section>' for anchor, heading, html in made)
        legend = sections.legend(group(runs))
        date = time.strftime("%Y-%m-%d %H:%M:%S")
        return (
            f'<div id="links">{links}</div><div id="chips">{legend}</div>{sections.problems(runs, failed)}{parts}'
            f"<footer>minidist {shown(__version__)}, read {date}</footer>"
        )

    def page(self, *, live: bool = False) -> str:
        """The whole page. `live`: it asks the server that sent it for what is new."""
        title, body = shown(self.title), self.body()
        scripts = (_plotly(), _file("page.js"))
        allowed = " ".join(f"'sha256-{_sum(script)}'" for script in scripts)
        policy = f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"
        policy += "; connect-src 'self'" if live else ""
        blocks = "".join(f"<script>{script}</script>" for script in scripts)
        return (
            f'<!doctype html>\n<html lang="en" data-live="{self.signature() if live else ""}"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}"><meta name="color-scheme" content="light dark">'
            '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
            f"<title>{title} · minidist</title><style>{_file('page.css')}</style></head>"
            f"<body><header><h1>{title}</h1>{_file('controls.html')}</header><main>{body}</main>{blocks}</body></html>\n"
        )


def _sections(runs: Sequence[RunFiles]) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Anchor, heading and HTML of each section that has anything to show; and sentences about those that cannot be made."""
    made, failed, groups = [], [], group(runs)
    for anchor, heading, make in sections.sections():
        try:
            html = make(groups)
        except (MinidistError, *_MISSHAPED) as error:
            found = f"{type(error).__name__}: {error}"
            cause = "another version wrote its files, or they are broken"
            failed.append(f"The section “{heading}” could not be made: {cause} ({found})")
            continue
        if html:
            made.append((anchor, heading, html))
    return made, failed


def _check(path: Path) -> None:
    if not path.is_dir():
        raise DataError(f"no run directory at {path}; give the run.directory of a run")
    known = ("config.json", "metrics.jsonl", "summary.json", "compare.json")
    if not any((path / name).exists() for name in known):
        raise DataError(f"{path} holds no run: none of {', '.join(known)}; give the run.directory of a run")


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    whole = [path.absolute().parts for path in paths]
    for length in range(1, 6):
        names = ["/".join(parts[-length:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


@cache
def _plotly() -> str:
    """Plotly's script, without the package: importing it takes a second."""
    found = find_spec("plotly")
    script = Path(found.origin or "").parent / "package_data" / "plotly.min.js" if found else None
    if script is None or not script.is_file():
        raise ConfigError("minidist report needs the package plotly, which is not installed; pip install 'plotly>=7.1'")
    return script.read_text(encoding="utf-8")


@cache
def _file(name: str) -> str:
    return (files("minidist.report") / name).read_text(encoding="utf-8")


def _sum(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
