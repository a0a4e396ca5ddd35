"""A run, started from Python: in a process of its own, so that neither its memory nor its event loop is the caller's."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from minidist.config import Command, load
from minidist.config.base import Section
from minidist.errors import ConfigError, MinidistError, UserError
from minidist.notebook.opened import OpenedRun, open_run
from minidist.stages import STAGES

_ROOT = Path(__file__).parents[2]
_SHOWN = "minidist: "
"""How the command line begins the sentence of an error."""


def run(config: str | Path | Mapping[str, Any] | Command, /, **overrides: Any) -> OpenedRun:
    """Run a configuration to its end, as `minidist VERB CONFIG` does, and open the run.

    The key `stage` of the configuration decides what is run. Progress is printed. A run that has finished already is opened as
    it is, one that was stopped goes on from its last checkpoint. Ctrl-C, or a notebook's stop button, stops the run after its
    step, with a checkpoint; a second one stops it at once.

    >>> run("distill.yaml", run={"steps": 20}, **{"learner.optimizer.lr": 1e-4})  # doctest: +SKIP

    Args:
        config: a YAML file, the same as a mapping, or a typed configuration of `minidist.config`.
        overrides: sections, which replace the keys that they name (one with a `type` replaces the whole section), or single
            values by dotted names.

    Raises:
        ConfigError: the configuration is refused, before anything is started.
        UserError: data, a model or a directory is refused, before a model is loaded.
        MinidistError: the run failed.
        KeyboardInterrupt: the run was stopped, and has ended.
    """
    assignments = list(_assignments(overrides))
    if not isinstance(config, Mapping | Section):
        return _run(Path(config), assignments)
    tree = config.model_dump(mode="json", exclude_unset=True) if isinstance(config, Section) else config
    with _written(tree) as file:
        return _run(file, assignments, called="the configuration")


def _assignments(overrides: Mapping[str, Any], section: str = "") -> Iterator[str]:
    """The overrides as the command line takes them: `section.key=value`, values in YAML."""
    for name, value in overrides.items():
        if isinstance(value, Mapping) and value and "type" not in value:
            yield from _assignments(value, f"{section}{name}.")
        else:
            text = yaml.safe_dump(_plain(value), default_flow_style=True, width=float("inf"))
            yield f"{section}{name}={text.removesuffix('...' + chr(10)).rstrip()}"


def _plain(value: Any) -> Any:
    """A value as JSON has it; paths and the like as text."""
    return json.loads(json.dumps(value, default=str))


def _run(file: Path, assignments: Sequence[str], *, called: str | None = None) -> OpenedRun:
    """`called`: what messages call a file that the caller does not know."""
    called = called or str(file)
    try:
        config = load(file, assignments)
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(file), called)) from None
    _follow([STAGES[config.stage].verb, str(file), *assignments], {str(file): called})
    return open_run(config.run.directory)


@contextmanager
def _written(tree: Mapping[str, Any]) -> Iterator[Path]:
    """The sections of a configuration as a file that nobody else can read, until the context ends."""
    with tempfile.NamedTemporaryFile("w", prefix="minidist-", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump(_plain(tree), file, sort_keys=False)
        file.flush()
        yield Path(file.name)


def _follow(arguments: Sequence[str], names: Mapping[str, str]) -> None:
    """Run `minidist ARGUMENTS` in a process of its own and print what it prints, with `names` replaced. Raises its error.

    The process reads its standard input, whose end tells it that this process is gone.
    """
    environment = dict(os.environ)
    if _ROOT.name not in ("site-packages", "dist-packages"):  # a checkout, which the process may not find by itself
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), environment.get("PYTHONPATH")]))
    command = [sys.executable, "-P", "-u", "-m", "minidist.notebook.child", *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    lines: deque[str] = deque(maxlen=40)
    # A session of its own: a terminal's Ctrl-C reaches this process alone, which hands it on once.
    with subprocess.Popen(command, env=environment, start_new_session=True, **pipes) as child:  # type: ignore[call-overload]
        relay = threading.Thread(target=_relay, args=(child, lines, names), daemon=True)
        relay.start()
        interrupts = _wait(child)
        relay.join(5)  # what the process started may hold its output open
        if interrupts:
            raise KeyboardInterrupt
    if child.returncode:
        raise _error(child.returncode, lines)


def _relay(child: "subprocess.Popen[bytes]", lines: deque[str], names: Mapping[str, str]) -> None:
    assert child.stdout is not None
    for raw in child.stdout:
        line = raw.decode(errors="replace").rstrip("\n")
        for name, shown in names.items():
            line = line.replace(name, shown)
        lines.append(line)
        if not line.startswith(_SHOWN):
            print(line, flush=True)


def _wait(child: "subprocess.Popen[bytes]") -> int:
    """Wait for the process, and hand Ctrl-C on to it: twice as it is, then as a SIGKILL; returns how many there were."""
    interrupts = 0
    with _interruptible():
        while True:
            try:
                child.wait()
                return interrupts
            except KeyboardInterrupt:
                interrupts += 1
                child.send_signal(signal.SIGINT if interrupts < 3 else signal.SIGKILL)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt in the main thread, also below asyncio.run, which cancels a task in its place."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)


def _error(code: int, lines: deque[str]) -> MinidistError:
    """The error of a process that ended with this code."""
    found = [line.removeprefix(_SHOWN) for line in lines if line.startswith(_SHOWN)]
    if found:
        return (UserError if code == UserError.exit_code else MinidistError)(found[-1])
    ending = f"signal {-code}" if code < 0 else f"exit code {code}"
    return MinidistError(f"the run's process ended with {ending}; its last lines: " + "\n".join(list(lines)[-8:]))
