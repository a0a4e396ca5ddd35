"""The command line: `minidist VERB CONFIG.yaml [section.key=value ...]`. It is parsed before anything heavy is imported."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from minidist import __version__
from minidist.errors import ConfigError, DataError, MinidistError
from minidist.stages import STAGES, code, roles_of, run_stage, verbs
from minidist.text import readable, shown

app = typer.Typer(
    help="On-policy distillation of language models: the student writes, the teacher scores, the learner updates.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

jobs = typer.Typer(help="List, watch and stop the jobs that `minidist submit` has sent to a Ray cluster.", no_args_is_help=True)
app.add_typer(jobs, name="jobs")


def _files(incomplete: str) -> list[tuple[str, str]]:
    """Configuration files, for a shell that completes a word."""
    from minidist.stages import completion

    return completion.files(incomplete)


def _assignments(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Overrides of the verb's configurations, for a shell that completes a word."""
    from minidist.stages import completion

    config: Path | None = context.params.get("config")
    before: list[str] = list(context.params.get("overrides") or [])
    return completion.overrides(context.info_name or "", Path(config) if config else None, before, incomplete)


_FILES: dict[str, Any] = {"autocompletion": _files}
ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Configuration file; see configs/.", **_FILES)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[section.key=value ...]", help="Replace single values.", autocompletion=_assignments),
]

Address = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Job service of the cluster. Default: $RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265."),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job, as `minidist jobs list` shows it.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Print its output until it ends, and exit with its code.")]


def _add(verb: str, help: str) -> None:
    @app.command(verb, help=help)
    def command(config: ConfigPath, overrides: Overrides = None) -> None:
        _run(verb, config, overrides)


for _verb, _help in verbs().items():
    _add(_verb, _help)


@app.command()
def check(
    config: ConfigPath,
    overrides: Overrides = None,
    show: Annotated[int, typer.Option(min=0, help="Also print this many rows of each source as the models read them.")] = 0,
    ids: Annotated[bool, typer.Option("--ids", help="With --show, print the id of each token.")] = False,
) -> None:
    """Validate a configuration, its data and its models' shapes, and print the plan; load no weights."""
    from minidist.config import load
    from minidist.run.garbage import no_collection

    loaded = load(config, overrides or ())
    stage = STAGES[loaded.stage]
    _set_environment(loaded)
    with no_collection():
        plan = code(stage.plan)(loaded)
    for line in plan.lines:
        print(readable(line))
    if show:
        from minidist.preflight.rows import show_any

        show_any(plan, show, ids=ids)
    print(readable(f"{config}: ready for minidist {stage.verb}"))


@app.command("plan")
def plan_run(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG.yaml]", help="A configuration of `distill`.", **_FILES)
    ] = None,
    overrides: Overrides = None,
    rates: Annotated[str | None, typer.Option(help="h100, a100, or a file of rates. Default: h100, or this machine's.")] = None,
    answer_tokens: Annotated[float | None, typer.Option(help="Mean length of an answer. Default: the longest.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="First measure the rates of this machine, into a file.")] = False,
) -> None:
    """Forecast memory, bytes and seconds of a distillation from rates, and advise on its layout; load no weights."""
    from minidist.config import DistillConfig, load

    if config is None and not measure:
        raise ConfigError("`minidist plan` needs a configuration of `minidist distill`, or --measure")
    loaded = None if config is None else load(config, overrides or ())
    if loaded is not None and not isinstance(loaded, DistillConfig):
        raise ConfigError(f"{config} is a configuration for `minidist {STAGES[loaded.stage].verb}`; plan needs one of distill")
    if measure:
        print(f"rates: {_measure_rates(loaded, rates)}")
    if loaded is not None:
        _set_environment(loaded)
        from minidist.preflight.forecast.report import forecast
        from minidist.run.garbage import no_collection

        with no_collection():
            found = forecast(loaded, rates, answer_tokens)
        for line in found.lines:
            print(readable(line))


@app.command()
def doctor(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG.yaml]", help="Also show what its run would use.", **_FILES)
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Check the installation and the machine; print each fault with its remedy. Exit code 1 when something is missing."""
    from minidist.config import CompareConfig, CompareLessonsConfig, ToyConfig, load
    from minidist.preflight.doctor import examine

    loaded = None if config is None else load(config, overrides or ())
    loaded = loaded.first if isinstance(loaded, CompareConfig | CompareLessonsConfig) else loaded
    faults = examine(None if isinstance(loaded, ToyConfig) else loaded, roles_of)
    raise typer.Exit(1 if faults else 0)


@app.command()
def sample(
    directory: Annotated[Path, typer.Argument(metavar="RUN_DIRECTORY", help="A run's directory.")],
    step: Annotated[int | None, typer.Option(help="Step of the answers; default: the last recorded step.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="How many answers.")] = 8,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the answers to this file, as a page.")] = None,
) -> None:
    """Show a run's prompts and answers, each token coloured by log p(student) - log p(teacher)."""
    from minidist.run.show import show

    show(directory, step=step, rows=rows, html=html)


@app.command()
def push(
    directory: Annotated[Path, typer.Argument(metavar="RUN_DIRECTORY", help="Directory of a finished run.")],
    repository: Annotated[
        str | None, typer.Argument(metavar="[OWNER/NAME]", help="Default: run.push_to_hub of the run.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="A repository that is created is public.")] = False,
) -> None:
    """Upload final/ of a finished run to the Hugging Face hub, with the token in HF_TOKEN."""
    from minidist.config.run import repository as checked
    from minidist.publishing.ending import push_run

    try:
        named = None if repository is None else checked(repository)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    print(push_run(directory, named, private=not public))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_DIRECTORY…", help="Directories of runs or of comparisons.")],
    output: Annotated[Path, typer.Option(metavar="FILE", help="Where the page is written.")] = Path("report.html"),
    serve: Annotated[bool, typer.Option("--serve", help="Follow runs in a browser; write no file.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="With --serve; 0: any that is free.")] = 8700,
    host: Annotated[str, typer.Option(help="With --serve; beyond loopback readers need a token.")] = "127.0.0.1",
) -> None:
    """Write runs as one HTML page: curves over seeds, evaluation, time, health, samples, differences of configuration."""
    from minidist.report.page import Report

    page = Report(runs)
    if serve:
        _serve(page, host, port)
        return
    from minidist.run.files import write_text

    if not output.absolute().parent.is_dir():
        raise DataError(f"no directory {output.absolute().parent} for the page {output.name}")
    write_text(output, page.page())
    print(f"report: {output}")


@app.command()
def submit(
    config: ConfigPath,
    overrides: Overrides = None,
    address: Address = None,
    follow: Follow = False,
    python: Annotated[str, typer.Option(help="The Python with minidist on the cluster's head node.")] = sys.executable,
) -> None:
    """Check a configuration, and run its verb as a job of a Ray cluster, from a directory that all nodes share."""
    from minidist.stages import jobs as stage

    if (job := stage.submit(config, overrides or (), address, python=python)) is None:
        print(f"{config}: its run is finished already; run.overwrite=true runs it again")
        return
    print(f"job: {job.id}")
    if follow:
        _follow(job.id, address)
    print(f"watch it with `minidist jobs logs {job.id} --follow`, stop it with `minidist jobs stop {job.id}`")


@jobs.command("list")
def list_jobs(address: Address = None) -> None:
    """The jobs of the cluster that run minidist, oldest first."""
    from minidist.cluster.jobs import JobService
    from minidist.stages.jobs import listed

    for line in listed(JobService(address).jobs()):
        print(readable(line))


@jobs.command()
def status(job: JobId, address: Address = None) -> None:
    """State of a job, its exit code, and the steps that its run has taken."""
    from minidist.cluster.jobs import JobService
    from minidist.stages.jobs import described

    for line in described(JobService(address).job(job)):
        print(readable(line))


@jobs.command()
def logs(job: JobId, address: Address = None, follow: Follow = False) -> None:
    """What a job has printed."""
    from minidist.cluster.jobs import JobService

    if follow:
        _follow(job, address)
    print(readable(JobService(address).logs(job)), end="")


@jobs.command()
def stop(
    job: JobId,
    address: Address = None,
    wait: Annotated[bool, typer.Option(help="Wait until it has stopped.")] = True,
) -> None:
    """Stop a job after the step that it is in; its run keeps a checkpoint, and goes on when it is submitted again."""
    from minidist.cluster.jobs import JobService

    service = JobService(address)
    if not service.stop(job):
        print(f"{job} is not running: {service.job(job).status}")
    elif wait:
        print(f"{job}: {service.wait(job).status}")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"minidist {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point. A user's error prints one sentence and exits with code 2, a run that fails with code 1."""
    try:
        app()
    except MinidistError as error:
        print(f"minidist: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.filename is None:
            raise
        print(f"minidist: {shown(str(error.filename))} cannot be used: {error.strerror}; correct it", file=sys.stderr)
        sys.exit(1)


def _serve(page: Any, host: str, port: int) -> None:
    """Serve a report until Ctrl-C."""
    from minidist.report.serve import ReportServer

    with ReportServer(page, host, port) as server:
        print(f"report: {server.address} (Ctrl-C ends it)", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


def _follow(job: str, address: str | None) -> NoReturn:
    """Print what a job prints, and exit with its code. Ctrl-C leaves the job running."""
    from minidist.cluster.jobs import JobService

    try:
        ended = JobService(address).follow(job, lambda text: print(readable(text), end="", flush=True))
    except KeyboardInterrupt:
        print(f"\nminidist: {job} goes on; `minidist jobs stop {job}` stops it", file=sys.stderr)
        sys.exit(130)
    print(f"{job}: {ended.status}", file=sys.stderr)
    sys.exit(ended.ends_with)


def _measure_rates(config: Any, file: str | None) -> Path:
    """Measure this machine's cores as a run of the configuration would use them; returns the file of rates."""
    import asyncio

    from minidist.cluster.machine import thread_environment

    if config is not None and config.cluster.gpus:
        raise ConfigError("--measure measures the cores of this machine; for cluster.gpus use --rates h100 or a100")
    threads, dtype = (None, "float32") if config is None else (config.cluster.threads, config.student.dtype)
    os.environ.update(thread_environment(threads))
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from minidist.preflight.forecast.report import write_measured
    from minidist.stages.rates import measure_rates

    return write_measured(asyncio.run(measure_rates(threads, dtype)), Path(file) if file else None)


def _run(verb: str, path: Path, overrides: list[str] | None) -> None:
    from minidist.config import load

    config = load(path, overrides or ())
    stage = STAGES[config.stage]
    if verb != stage.verb:
        raise ConfigError(f"{path} is a configuration for `minidist {stage.verb}`, not for `minidist {verb}`")
    _set_environment(config)
    _until_done(config)
    if getattr(config.run, "push_to_hub", None) is not None:
        from minidist.publishing.ending import deliver

        deliver(config)


def _set_environment(config: Any) -> None:
    """Threads, before torch is imported: this process computes only when the roles live in it."""
    from minidist.cluster.access import ray_environment
    from minidist.cluster.machine import thread_environment

    threads = config.cluster.threads if config.cluster.roles == "local" else 1
    os.environ.update(thread_environment(threads) | ray_environment(config.cluster.address))
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if config.cluster.gpus else "cpu")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _until_done(config: Any) -> None:
    """Run a stage; Ctrl-C and SIGTERM cancel it, so that its actors end and its files are removed."""
    import asyncio
    import signal

    from minidist.run.directory import RunDirectory
    from minidist.run.mirror import mirror_of
    from minidist.run.tracking import log, start_log

    start_log(None)
    directory, mirror = RunDirectory(config), mirror_of(config)
    mirror.pull(overwrite=config.run.overwrite)
    stage = STAGES[config.stage]
    if not stage.reruns and directory.finished():
        log.info("%s is finished already; run.overwrite=true runs it again", directory.path)
        mirror.push(last=True)
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
