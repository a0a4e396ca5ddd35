"""The command line: `minidist VERB CONFIG.yaml [section.key=value ...]`. Parses before anything heavy is imported."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from minidist import __version__
from minidist.config import VERBS, CompareConfig, ToyConfig, load
from minidist.errors import MinidistError
from minidist.stages import STAGES, code, run_stage, verbs

app = typer.Typer(
    help="On-policy distillation of language models: the student writes, the teacher scores, the learner updates.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Configuration file; see configs/.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[section.key=value ...]", help="Replace single values.")]


def _command(verb: str) -> Callable[..., None]:
    def command(config: ConfigPath, overrides: Overrides = None) -> None:
        _run(verb, config, overrides)

    return command


for _verb, _help in verbs().items():
    app.command(_verb, help=_help)(_command(_verb))


@app.command()
def check(config: ConfigPath, overrides: Overrides = None) -> None:
    """Validate a configuration, its data and its models' shapes, and show the plan; load no weights."""
    _run(None, config, overrides)


@app.command()
def doctor(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG.yaml]", help="What it would use is shown too.")] = None,
    overrides: Overrides = None,
) -> None:
    """Look at what is installed and at the machine; name each fault with its cure. Code 1 when there is one."""
    from minidist.preflight.doctor import examine

    given = None if config is None else load(config, overrides or ())
    given = given.first if isinstance(given, CompareConfig) else given
    faults = examine(None if isinstance(given, ToyConfig) else given)
    raise typer.Exit(1 if faults else 0)


@app.command()
def sample(
    directory: Annotated[Path, typer.Argument(metavar="RUN_DIRECTORY", help="A run's directory.")],
    step: Annotated[int | None, typer.Option(help="Step of the answers; the last one recorded when left out.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="How many answers.")] = 8,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Leave the same as a page there.")] = None,
) -> None:
    """Show a run's prompts and answers, each token coloured by how student and teacher differ about it."""
    from minidist.run.show import show

    show(directory, step=step, rows=rows, html=html)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"minidist {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point: one sentence and code 2 for what the user can mend, code 1 for a run that failed."""
    try:
        app()
    except MinidistError as error:
        print(f"minidist: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _run(verb: str | None, path: Path, overrides: list[str] | None) -> None:
    config = load(path, overrides or (), verb)
    _set_environment(config)
    if verb is not None:
        _until_done(config)
        return
    for line in code(STAGES[config.stage].plan)(config).lines:
        print(line)
    print(f"{path}: ready for minidist {VERBS.get(config.stage, config.stage)}")


def _set_environment(config: Any) -> None:
    """Threads, before torch is imported: this process computes only when the roles live in it."""
    from minidist.cluster.machine import thread_environment

    threads = config.cluster.threads if config.cluster.roles == "local" else 1
    os.environ.update(thread_environment(threads))
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if config.cluster.gpus else "cpu")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _until_done(config: Any) -> None:
    """Run a stage; Ctrl-C and SIGTERM unwind it, so that its actors and files go with it."""
    import asyncio
    import signal

    from minidist.run.directory import RunDirectory
    from minidist.run.tracking import log, start_log

    start_log(None)
    directory = RunDirectory(config)
    stage = STAGES[config.stage]
    if not stage.reruns and directory.finished():
        log.info("%s is finished already; run.overwrite=true runs it again", directory.path)
        if stage.show is not None and directory.summary:
            code(stage.show)(directory.summary["result"])
        return
    received: list[int] = []

    async def supervised() -> None:
        task = asyncio.ensure_future(run_stage(config))

        def stop(number: int) -> None:
            if not received:
                log.info("stopping after this step; a second %s stops at once", signal.Signals(number).name)
            received.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop, number)
        await task

    try:
        asyncio.run(supervised())
    except asyncio.CancelledError:
        print(f"minidist: stopped by {signal.Signals(received[0]).name}", file=sys.stderr)
        sys.exit(128 + received[0])


if __name__ == "__main__":
    main()
