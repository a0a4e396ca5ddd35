"""The stages a user calls: `sft`, `distill`, `evaluate`. Each plans, hosts its roles, runs, and leaves a summary."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from minidist.build import Plan, as_model, make_engine, make_learner, make_plan, make_teacher, same_architecture
from minidist.canaries import Alarms, check_engine, check_teacher, tolerance
from minidist.cluster import Cluster
from minidist.config import Config, DistillConfig, EvaluateConfig, SftConfig
from minidist.config.models import StudentConfig
from minidist.data.batching import collate_examples
from minidist.evaluation.student import Examiner
from minidist.experience import Examples, OnPolicy
from minidist.loop import Run, train
from minidist.modeling import resolve
from minidist.protocols import Learner, RolloutEngine
from minidist.rundir import RunDirectory
from minidist.tracking import Clock, Recorder, console, log, start_log
from minidist.transfer.object_store import ObjectStoreTransfer
from minidist.types import Batch, Update


async def run_stage(config: Config) -> dict[str, Any]:
    """Run a stage to its end and return its summary; a run that is finished already is left as it is."""
    directory = RunDirectory(config)
    if directory.finished():
        directory.check()
        log.info("%s is finished already; run.overwrite=true runs it again", directory.path)
        return directory.summary or {}
    plan = make_plan(config)
    directory.start()
    start_log(directory.path)
    for line in plan.lines:
        log.info("%s", line)
    started = time.time()
    async with Cluster(config.cluster, directory.path / "logs") as cluster:
        if isinstance(config, SftConfig):
            summary = await _sft(config, plan, directory, cluster)
        elif isinstance(config, DistillConfig):
            summary = await _distill(config, plan, directory, cluster)
        else:
            summary = await _evaluate(config, plan, directory, cluster)
    summary = {"stage": config.stage, "seconds": round(time.time() - started, 1), **summary}
    directory.finish(summary)
    log.info("%s finished in %.0f s: %s", config.stage, summary["seconds"], directory.path)
    return summary


async def _sft(config: SftConfig, plan: Plan, directory: RunDirectory, cluster: Cluster) -> dict[str, Any]:
    learner = await cluster.host(
        "learner",
        make_learner,
        config.student,
        None,
        plan.renderer,
        config.learner,
        {"supervised": {"type": "supervised"}},
        config.run.steps,
        config.run.seed,
        None,
        config.cluster.gpus,
    )
    shown = [("loss/nats_per_token", "loss"), ("validation/loss_nats_per_token", "validation"), ("time/update_s", "update s")]
    recorder = Recorder(directory.path, config.run.steps, tensorboard=config.run.tensorboard, shown=shown)
    watch = _SftWatch(config, plan, directory, learner, recorder)
    try:
        run = Run(
            config.run.steps,
            Examples(plan.examples, rows=config.batch_rows, seed=config.run.seed),
            learner,
            [],
            ObjectStoreTransfer(0.0),
            Clock(),
            watch.before_update,
            watch.after_step,
        )
        steps = await train(run)
        await watch.leave_final()
    finally:
        recorder.close()
    return {"steps": steps, "model": str(directory.final), "learner": await learner.describe(), **watch.summary()}


class _SftWatch:
    """Validation loss while training: when it has not fallen for `patience` evaluations, the best weights are final."""

    def __init__(self, config: SftConfig, plan: Plan, directory: RunDirectory, learner: Learner, recorder: Recorder) -> None:
        self._config, self._directory, self._learner, self._recorder = config, directory, learner, recorder
        self._held_out = collate_examples("validation", plan.validation_examples, objective="")
        self._losses: list[tuple[int, float]] = []

    async def before_update(self, batch: Batch) -> None: ...

    async def after_step(self, step: int, batch: Batch, update: Update, metrics: dict[str, float]) -> bool:
        every = self._config.evaluation.every
        stop = False
        if every is not None and (step + 1) % every == 0:
            metrics["validation/loss_nats_per_token"] = loss = await self._validate()
            self._losses.append((step + 1, loss))
            stop = await self._judge()
        self._recorder.step(step, metrics)
        if (often := self._config.run.checkpoint_every) and (step + 1) % often == 0:
            await self._learner.save(self._directory.path / "checkpoints" / f"step_{step + 1:06d}")
        return stop

    async def leave_final(self) -> None:
        best = self._directory.path / "best"
        if best.exists():
            best.rename(self._directory.final)
        else:
            await self._learner.save(self._directory.final)

    def summary(self) -> dict[str, Any]:
        if not self._losses:
            return {}
        step, loss = min(self._losses, key=lambda entry: entry[1])
        final = step if self._config.evaluation.patience else self._losses[-1][0]
        return {
            "validation": [{"step": at, "loss_nats_per_token": value} for at, value in self._losses],
            "best": {"step": step, "loss_nats_per_token": loss},
            "final_step": final,
            "stopped_improving": self._since_best() >= (self._config.evaluation.patience or 1 << 30),
        }

    async def _validate(self) -> float:
        return -float((await self._learner.measure(self._held_out)).student_logprob.mean())

    async def _judge(self) -> bool:
        """Keep the weights of a new best; stop after `patience` evaluations without one."""
        if self._config.evaluation.patience is None:
            return False
        if self._since_best() == 0:
            await self._learner.save(self._directory.path / "best")
        return self._since_best() >= self._config.evaluation.patience

    def _since_best(self) -> int:
        values = [loss for _, loss in self._losses]
        return len(values) - 1 - values.index(min(values))


async def _distill(config: DistillConfig, plan: Plan, directory: RunDirectory, cluster: Cluster) -> dict[str, Any]:
    gpus, seed = config.cluster.gpus, config.run.seed
    teacher, learner, engine = await asyncio.gather(
        cluster.host("teacher", make_teacher, config.teacher, plan.renderer, plan.vocabulary, gpus),
        cluster.host(
            "learner",
            make_learner,
            config.student,
            config.teacher,
            plan.renderer,
            config.learner,
            {"on_policy": config.objective.model_dump()},
            config.run.steps,
            seed,
            plan.vocabulary,
            gpus,
        ),
        cluster.host("rollout engine", make_engine, config.student, config.rollout, plan.renderer, plan.max_tokens, seed, gpus),
    )
    clock = Clock()
    dtypes = (config.student.dtype, config.teacher.dtype)
    transfer = ObjectStoreTransfer(tolerance(config.canaries.sync_tolerance_nats, dtypes, exact=5e-3, rounded=0.5))
    shown = [
        ("loss/nats_per_token", config.objective.type),
        ("rollout/length_mean_tokens", "length"),
        ("time/generate_s", "generate s"),
        ("time/update_s", "update s"),
    ]
    recorder = Recorder(directory.path, config.run.steps, tensorboard=config.run.tensorboard, shown=shown)
    examiner = Examiner(
        plan.validation_prompts,
        teacher,
        max_new_tokens=config.rollout.max_new_tokens,
        seed=seed,
        graded=config.data.validation is not None and config.data.validation.task is not None,
    )
    watch = _DistillWatch(config, plan, directory, learner, engine, examiner, recorder)
    try:
        # The engine is proved before it writes a word, as after every update.
        await transfer.publish(learner, [engine])
        await watch.examine(-1)
        source = OnPolicy(plan.prompts, engine, teacher, config.rollout, seed=seed, clock=clock)
        steps = await train(
            Run(config.run.steps, source, learner, [engine], transfer, clock, watch.before_update, watch.after_step)
        )
        await learner.save(directory.final)
    finally:
        recorder.close()
    return {
        "steps": steps,
        "model": str(directory.final),
        "engine": await engine.describe(),
        "learner": await learner.describe(),
        "teacher": type(teacher).__name__ if config.cluster.roles == "local" else "HFTeacher",
        "syncs_proved": transfer.proved,
        **watch.summary(),
    }


class _DistillWatch:
    """Canaries and alarms, evaluations, checkpoints and rollouts of a distillation."""

    def __init__(
        self,
        config: DistillConfig,
        plan: Plan,
        directory: RunDirectory,
        learner: Learner,
        engine: RolloutEngine,
        examiner: Examiner,
        recorder: Recorder,
    ) -> None:
        self._config, self._plan, self._directory = config, plan, directory
        self._learner, self._engine, self._examiner, self._recorder = learner, engine, examiner, recorder
        self._alarms = Alarms(config.canaries)
        dtypes = (config.student.dtype, config.teacher.dtype)
        self._tolerance = tolerance(config.canaries.logprob_tolerance_nats, dtypes, exact=1e-3, rounded=0.05)
        self._evaluations: list[tuple[int, dict[str, float]]] = []
        self._worst = 0.0

    async def before_update(self, batch: Batch) -> None:
        """Compare engine, learner and teacher on the first batch and every so often."""
        if batch.step % self._config.canaries.every:
            return
        measures = await self._learner.measure(batch.streams[0])
        if self._config.rollout.temperature == 1 and self._config.rollout.top_p == 1:
            difference = check_engine(measures, batch.rollouts, self._tolerance)
            batch.metrics["canary/engine_learner_nats_mean"] = difference
            self._worst = max(self._worst, difference)
        if (mean := check_teacher(measures, self._plan.vocabulary or 1, self._config.canaries.uniform_margin)) is not None:
            batch.metrics["canary/teacher_logprob_nats"] = mean

    async def after_step(self, step: int, batch: Batch, update: Update, metrics: dict[str, float]) -> bool:
        seconds = sum(value for name, value in metrics.items() if name.startswith("time/"))
        metrics["speed/loss_tokens_per_s"] = metrics["learner/loss_tokens"] / seconds
        self._alarms.look(step, metrics)
        self._recorder.step(step, metrics)
        last = step + 1 == self._config.run.steps
        if (step + 1) % self._config.run.rollouts_every == 0 or last or step == 0:
            self._recorder.rollouts(step + 1, batch.rollouts)
        every = self._config.evaluation.every
        if every is not None and ((step + 1) % every == 0 or last):
            await self.examine(step)
        if (often := self._config.run.checkpoint_every) and (step + 1) % often == 0:
            await self._learner.save(self._directory.path / "checkpoints" / f"step_{step + 1:06d}")
        return False

    async def examine(self, step: int) -> None:
        """All figures on the held-out prompts; `step` -1 is before training."""
        if self._config.evaluation.every is None:
            return
        figures = await self._examiner.examine(self._engine, self._learner)
        self._evaluations.append((step + 1, figures))
        self._recorder.write(step, {f"evaluation/{name}": value for name, value in figures.items()})
        shown = {"accuracy": "accuracy", "rouge_l": "ROUGE-L", "reverse_kl": "reverse KL", "forward_kl": "forward KL"}
        text = ", ".join(f"{label} {figures[name]:.4g}" for name, label in shown.items() if name in figures)
        log.info("evaluation after %d steps: %s", step + 1, text)

    def summary(self) -> dict[str, Any]:
        return {
            "canaries": {"engine_learner_nats_mean_worst": self._worst, "alarms": self._alarms.raised},
            "evaluations": [{"step": step, **figures} for step, figures in self._evaluations],
        }


async def _evaluate(config: EvaluateConfig, plan: Plan, directory: RunDirectory, cluster: Cluster) -> dict[str, Any]:
    teacher_path = resolve(config.teacher.model or "", "teacher.model")
    teacher = await cluster.host("teacher", make_teacher, config.teacher, plan.renderer, plan.vocabulary, config.cluster.gpus)
    examiner = Examiner(
        plan.prompts,
        teacher,
        max_new_tokens=config.rollout.max_new_tokens,
        seed=config.run.seed,
        graded=config.data.test.task is not None,
    )
    bench = _Bench(config, plan, cluster)
    result: dict[str, Any] = {}
    for name, model in config.models.items():
        path = resolve(model, f"models.{name}")
        if path.resolve() == teacher_path.resolve():
            figures = await examiner.examine_teacher()
        else:
            figures = await examiner.examine(*await bench.seat(path))
        result[name] = figures | _training_facts(path)
        log.info("%s: %s", name, ", ".join(f"{key} {value:.4g}" for key, value in figures.items() if "_se" not in key))
    (directory.path / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    console.print(_table(result))
    print(f"result: {directory.path / 'result.json'}")
    return {"result": result}


class _Bench:
    """One engine and one learner; the next student of the same architecture takes their place by its weights alone."""

    def __init__(self, config: EvaluateConfig, plan: Plan, cluster: Cluster) -> None:
        self._config, self._plan, self._cluster = config, plan, cluster
        self._seated: tuple[Path, RolloutEngine, Learner] | None = None

    async def seat(self, path: Path) -> tuple[RolloutEngine, Learner]:
        """Engine and learner with the weights at `path`."""
        if self._seated is not None and same_architecture(self._seated[0], path):
            _, engine, learner = self._seated
            await engine.load(path)
            await learner.load(path)
        else:
            if self._seated is not None:
                await self._cluster.dismiss(self._seated[1])
                await self._cluster.dismiss(self._seated[2])
            engine, learner = await self._host(path)
        self._seated = path, engine, learner
        return engine, learner

    async def _host(self, path: Path) -> tuple[RolloutEngine, Learner]:
        config, plan, model = self._config, self._plan, as_model(self._config, str(path))
        gpus, seed = config.cluster.gpus, config.run.seed
        host, student = self._cluster.host, StudentConfig(**model.model_dump())
        return await asyncio.gather(
            host("rollout engine", make_engine, model, config.rollout, plan.renderer, plan.max_tokens, seed, gpus),
            host(
                "learner",
                make_learner,
                student,
                config.teacher,
                plan.renderer,
                config.learner,
                {},
                1,
                seed,
                plan.vocabulary,
                gpus,
            ),
        )


def _training_facts(path: Path) -> dict[str, Any]:
    """From the run that trained a model: which engines, tokens written, syncs proved."""
    file = path.parent / "summary.json"
    if not file.is_file():
        return {}
    summary = json.loads(file.read_text())
    kept = ("stage", "steps", "seconds", "engine", "learner", "teacher", "syncs_proved", "best", "stopped_improving")
    return {"run": str(path.parent), "training": {key: summary[key] for key in kept if key in summary}}


def _table(result: dict[str, Any]) -> Table:
    """The models line by line, each figure with its standard error."""
    columns = {
        "accuracy": "accuracy",
        "rouge_l": "ROUGE-L",
        "reverse_kl": "reverse KL\nnats/token",
        "forward_kl": "forward KL\nnats/token",
        "length_mean_tokens": "length\ntokens",
        "truncated_frac": "truncated",
        "repetition_frac": "repeated",
    }
    shown = [name for name in columns if any(name in figures for figures in result.values())]
    table = Table("", *(columns[name] for name in shown))
    for model, figures in result.items():
        cells = [
            f"{figures[name]:.3f}" + (f" ± {figures[name + '_se']:.3f}" if name + "_se" in figures else "")
            if name in figures
            else "–"
            for name in shown
        ]
        table.add_row(model, *cells)
    return table

