"""Rules between sections: combinations that are refused, and combinations that are not."""

from pathlib import Path

import pytest

from tests.support.config import assert_refused, load_stage

REFUSED = [
    ("sft", ["data.train.path=a.jsonl"], ["data.train needs answer", "or text"]),
    ("sft", ["data.validation.path=a.jsonl"], ["data.validation needs answer"]),
    ("sft", ["evaluation.patience=3"], ["evaluation.patience needs evaluation.every"]),
    ("sft", ["evaluation.temperature=0"], ["evaluation.temperature belongs to distill"]),
    ("sft", ["evaluation.every=3", "data.validation=null"], ["evaluation.every", "need data.validation"]),
    (
        "distill",
        ["teacher.payload=top_k", "objective.temperature=2"],
        ["objective.temperature 2", "set teacher.payload=hidden"],
    ),
    (
        "distill",
        ["teacher.payload=sampled"],
        ["teacher.payload sampled", "objective.type reverse_kl", "set teacher.payload=top_k"],
    ),
    ("distill", ["student={architecture: {model_type: gpt2}, tokenizer: t}"], ["run minidist sft first", "set student.model"]),
    ("distill", ["evaluation.patience=2"], ["evaluation.patience belongs to sft"]),
    ("distill", ["evaluation.every=2"], ["evaluation.every needs data.validation"]),
    ("distill", ["rollout.temperature=0", "rollout.samples_per_prompt=2"], ["rollout.temperature 0", "samples_per_prompt=1"]),
    ("distill", ["rollout.top_p=0"], ["rollout.top_p is 0"]),
    ("evaluate", ["teacher.payload=top_k"], ["set teacher.payload=hidden"]),
    ("evaluate", ["teacher.backend=vllm"], ["answers of the teacher", "does not write", "set teacher.backend=hf"]),
    ("evaluate", ["rollout.temperature=0", "seeds=[1,2]"], ["rollout.temperature 0 gives the same answers", "give one"]),
    ("evaluate", ["seeds=[1, 2, 1]"], ["seeds are [1, 2, 1]", "give different ones"]),
    ("distill", ["rollout.no_repeat_ngram_size=6"], ["rollout.no_repeat_ngram_size belongs to evaluate", "leave it out"]),
    (
        "sft",
        ["learner.backend=single", "cluster.learner.ranks=2"],
        ["cluster.learner.ranks above 1", "learner.backend=deepspeed"],
    ),
    ("sft", ["learner.kernel=liger"], ["learner.kernel liger", "sft has none", "set learner.kernel=torch"]),
    ("distill", ["learner.kernel=liger"], ["learner.kernel liger", "cluster.gpus is 0", "set learner.kernel=torch"]),
    (
        "distill",
        ["learner.kernel=liger", "cluster.gpus=1", "objective.type=akl", "streams.s={writer: teacher}"],
        ["learner.kernel liger", "objective.type is akl", "set learner.kernel=torch"],
    ),
    ("distill", ["cluster.residency=true", "loop.max_staleness=1"], ["cluster.residency", "set loop.max_staleness=0"]),
    ("distill", ["cluster.residency=true", "rollout.teacher_mix=0.2"], ["cluster.residency", "set rollout.engine=hf"]),
    ("distill", ["cluster={residency: true, teacher: {shards: 2}}"], ["cluster.residency", "set cluster.teacher.shards=1"]),
    (
        "distill",
        ["cluster.residency=true", "learner={zero_stage: 3, offload_parameters: true}"],
        ["cluster.residency", "learner.offload_parameters", "set one of them to false"],
    ),
    ("distill", ["cluster={residency: true, roles: local, gpus: 1}"], ["cluster.residency", "set cluster.roles=ray"]),
    ("sft", ["learner.parameter_group=1"], ["learner.parameter_group", "zero_stage=3, not 2"]),
    (
        "sft",
        ["learner={zero_stage: 3, parameter_group: 2}", "cluster.learner.ranks=3"],
        ["learner.parameter_group 2 does not divide cluster.learner.ranks 3"],
    ),
    ("sft", ["learner.offload_parameters=true"], ["learner.offload_parameters", "learner.zero_stage=3, not 2"]),
    (
        "distill",
        ["learner.offload_optimizer=true", "learner.zero_stage=0"],
        ["learner.offload_optimizer", "learner.zero_stage 1, 2 or 3"],
    ),
    (
        "distill",
        ["learner.zero_stage=0", "student.dtype=bfloat16"],
        ["learner.zero_stage 0", "bfloat16 weights", "learner.zero_stage=2 or 3"],
    ),
    (
        "distill",
        ["learner.zero_stage=1", "student.dtype=bfloat16"],
        ["learner.zero_stage 1", "in bfloat16", "learner.zero_stage=2", "student.dtype=float32"],
    ),
    (
        "sft",
        ["learner.backend=single", "student.dtype=bfloat16"],
        ["learner.backend single keeps no float32 copy of bfloat16", "set learner.backend=deepspeed"],
    ),
    ("sft", ["student.dtype=float16"], ["student.dtype float16", "set student.dtype=bfloat16 or float32"]),
    (
        "distill",
        ["teacher={placement: learner, prompt: {}, dtype: float16, model: t}"],
        ["teacher.dtype float16", "set teacher.dtype=bfloat16 or float32"],
    ),
    (
        "distill",
        ["rollout.engine=hf", "cluster.rollout.tensor_parallel=2"],
        ["cluster.rollout.tensor_parallel", "set rollout.engine=vllm"],
    ),
    (
        "distill",
        ["rollout.engine=hf", "cluster.rollout.pipeline_parallel=2"],
        ["cluster.rollout.pipeline_parallel splits vLLM engines", "set rollout.engine=vllm"],
    ),
    (
        "distill",
        ["cluster.teacher.pipeline_parallel=2"],
        ["cluster.teacher.pipeline_parallel splits a teacher of backend vllm, not of hf", "set it to 1"],
    ),
    ("distill", ["objective.type=k2", "prefix={student: 0.5, dataset: 0.5}"], ["objective.type k2", "set prefix.student=1"]),
    ("distill", ["objective.type=supervised"], ["objective.type supervised", "its own samples", "set prefix.student=0"]),
    (
        "distill",
        ["objective.type=supervised", "prefix={student: 0.1, teacher: 0.9}"],
        ["objective.type supervised", "set prefix.student=0"],
    ),
    (
        "distill",
        ["prefix={student: 0, dataset: 1}", "data.prompts.path=a.jsonl"],
        ["prefix.dataset needs data.prompts.answer"],
    ),
    ("distill", ["loop.max_staleness=-1"], ["loop.max_staleness is -1", "greater than or equal to 0"]),
    ("distill", ["loop.ratio_max=0.5"], ["loop.ratio_max is 0.5", "greater than or equal to 1"]),
    ("distill", ["loop.max_stale=1"], ["unknown key loop.max_stale", "did you mean max_staleness?"]),
    (
        "distill",
        ["loop.max_staleness=1", "prefix={student: 0, dataset: 1}"],
        ["loop.max_staleness 1", "prefix.student is 0", "set loop.max_staleness=0"],
    ),
    (
        "distill",
        ["loop.max_staleness=1", "objective.type=ranking", "rollout.samples_per_prompt=4"],
        ["loop.max_staleness 1", "ranking compares whole answers", "set loop.max_staleness=0"],
    ),
    (
        "distill",
        ["loop.max_staleness=2", "rollout.top_p=0.9"],
        ["loop.max_staleness 2", "top_p is below 1", "set rollout.top_p=1"],
    ),
    (
        "distill",
        ["loop.max_staleness=1", "rollout.temperature=0.7"],
        ["rollout.temperature 0.7 and objective.temperature 1 differ", "loop.max_staleness 1", "set them equal"],
    ),
    ("distill", ["loop.stream=true", "prefix={student: 0, dataset: 1}"], ["loop.stream", "no teacher actor scores any"]),
    (
        "distill",
        ["loop.stream=true", "teacher={placement: learner, prompt: {}, model: t}"],
        ["loop.stream", "no teacher actor scores any", "leave it out"],
    ),
    (
        "distill",
        ["loop.stream=true", "rollout.teacher_mix=0.2"],
        ["loop.stream", "rollout.teacher_mix", "leave loop.stream out"],
    ),
    (
        "distill",
        ["teacher.backend=vllm", "prefix={student: 0.5, teacher: 0.5}"],
        ["prefix.teacher is text that the teacher writes", "backend vllm does not write", "set teacher.backend=hf"],
    ),
    (
        "distill",
        ["teacher.backend=vllm", "streams.seqkd={writer: teacher, objective: {type: supervised}}"],
        ["streams.seqkd.writer teacher", "does not write with teacher.payload hidden", "or teacher.payload=top_k"],
    ),
    ("distill", ["streams.main.data.path=task:sort"], ["streams.main", "main is the name", "another name"]),
    (
        "distill",
        ["streams.old={data: {path: task:sort}, objective: {type: k2}}"],
        ["streams.old.objective.type k2", "the student's own samples", "not on given text"],
    ),
    (
        "distill",
        [
            "objective.type=k2",
            "teacher.payload=sampled",
            "streams.old={data: {path: task:sort}, objective: {type: forward_kl}}",
        ],
        ["teacher.payload sampled", "streams.old.objective.type forward_kl", "set teacher.payload=top_k"],
    ),
    (
        "distill",
        ["teacher.payload=top_k", "streams.old={data: {path: task:sort}, objective: {type: forward_kl, temperature: 2}}"],
        ["streams.old.objective.temperature 2", "set teacher.payload=hidden"],
    ),
    *(
        ("distill", ["objective.type=minillm", *changes], parts)
        for changes, parts in [
            (["rollout.teacher_mix=1.2"], ["rollout.teacher_mix is 1.2", "less than or equal to 1"]),
            (["rollout.teacher_mix=-0.1"], ["rollout.teacher_mix is -0.1", "greater than or equal to 0"]),
            (["rollout.top_p=0.9"], ["rollout.top_p is below 1", "set rollout.top_p=1"]),
            (["rollout.temperature=0.7"], ["rollout.temperature 0.7", "objective.temperature 1", "set them equal"]),
            (["prefix={student: 0.5, dataset: 0.5}"], ["objective.type minillm", "set prefix.student=1"]),
            (["objective.inner_epochs=4", "objective.importance=none"], ["objective.inner_epochs 4", "set objective.clip=0.2"]),
            (["objective.minibatches=65"], ["objective.minibatches 65", "the 64 rollouts", "raise rollout.prompts_per_step"]),
            (["objective.single_step=false", "objective.long_term=false"], ["nothing to learn", "set one of them"]),
            (["objective.preset=lmop"], ["objective.preset is 'lmop'", "'paper' or 'lmops'"]),
            (["objective.gama=0.9"], ["unknown key objective.gama", "did you mean gamma?"]),
            (["objective.gamma=0"], ["objective.gamma is 0", "greater than 0"]),
            (["objective.clip=1"], ["objective.clip is 1", "less than 1"]),
            (["teacher.payload=sampled"], ["teacher.payload sampled", "objective.type minillm", "set teacher.payload=top_k"]),
            (
                ["teacher={model: t, backend: server, payload: top_k, server: {url: http://a}}"],
                ["set teacher.backend=hf or vllm"],
            ),
            (
                ["teacher.backend=vllm"],
                ["rollout.teacher_mix", "or vllm (with teacher.payload=top_k), or rollout.teacher_mix=0"],
            ),
            (["cluster.teacher.shards=2"], ["cluster.teacher.shards", "set teacher.backend=vllm"]),
            (["streams.lm.weight=0.5"], ["no data to train on", "leave the stream out"]),
            (["streams.lm={data: {path: task:sort}, objective: {type: minillm}}"], ["streams.lm.objective.type minillm"]),
        ]
    ),
    ("distill", ["rollout.teacher_mix=0.2", "rollout.temperature=0"], ["rollout.temperature 0", "rollout.teacher_mix=0"]),
    ("distill", ["rollout.teacher_mix=0.2", "objective.type=k2"], ["objective.type k2", "set rollout.teacher_mix=0"]),
    (
        "distill",
        ["rollout.teacher_mix=0.2", "prefix={student: 0, dataset: 1}", "data.prompts.answer=x"],
        ["rollout.teacher_mix mixes into the student's share", "prefix.student"],
    ),
    ("distill", ["objective.type=kd"], ["objective.type kd", "its own samples", "set prefix.student=0"]),
    ("sft", ["evaluation.patience=3", "data.validation=null"], ["evaluation.patience need data.validation"]),
]


@pytest.mark.parametrize(("stage", "overrides", "parts"), REFUSED, ids=[" ".join(case[1]) for case in REFUSED])
def test_a_contradiction_is_refused_in_one_sentence(tmp_path: Path, stage: str, overrides: list[str], parts: list[str]) -> None:
    assert_refused(tmp_path, stage, overrides, parts)


ALLOWED = [
    ["objective.type=k2", "teacher.payload=sampled"],
    ["objective.type=supervised", "prefix={student: 0, dataset: 1}", "data.prompts={path: a.jsonl, answer: '{{ a }}'}"],
    ["objective.type=forward_kl", "prefix={student: 0.5, dataset: 0.5, per: step}"],
    ["prefix={student: 0.3333333, teacher: 0.3333333, dataset: 0.3333334}"],
    ["teacher.payload=sampled", "objective.type=k2", "streams.sft.data.path=task:sort"],
    ["objective.temperature=2", "streams.old={data: {path: a.txt, text: '{{ text }}'}, objective: {type: reverse_kl}}"],
    ["learner={zero_stage: 3, offload_optimizer: true, offload_parameters: true}", "student.dtype=bfloat16"],
    ["learner={zero_stage: 2}", "student.dtype=bfloat16"],
    ["learner={backend: single, zero_stage: 0}", "student={dtype: bfloat16, model: s, lora: {rank: 2}}"],
    ["learner.zero_stage=2", "student.dtype=bfloat16", "teacher.dtype=float16"],
    ["cluster.rollout.tensor_parallel=2", "cluster.gpus=4"],
    ["cluster.rollout={tensor_parallel: 2, gpus: 2}", "cluster.gpus=3"],
    ["rollout.temperature=0"],
    ["learner.kernel=liger", "cluster.gpus=1"],
    [
        "learner.kernel=liger",
        "cluster.gpus=1",
        "objective.type=akl",
        "streams.s={writer: teacher, objective: {type: forward_kl}}",
    ],
]


@pytest.mark.parametrize("overrides", ALLOWED, ids=" ".join)
def test_sections_that_agree_are_not_refused(tmp_path: Path, overrides: list[str]) -> None:
    load_stage(tmp_path, "distill", *overrides)
