#!/usr/bin/env bash
# The whole quickstart: teacher, student, control, distillation, table. Takes a seed (default 0).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seed=${1:-0}
runs=runs/quickstart
[ "$seed" = 0 ] || runs=runs/quickstart-seed$seed
configs=configs/quickstart

stage() { # stage VERB NAME [override ...]
    launch/local.sh "$1" "$configs/$2.yaml" run.directory="$runs/$2" run.seed="$seed" "${@:3}"
}
teacher=teacher.model=$runs/teacher/final
student=student.model=$runs/student/final

students() {
    stage sft student data.train.seed="1${seed}1"
    stage sft continued "$student" data.train.seed="1${seed}1"
}
# Each of these stages computes on one core: the student and its control are trained while the teacher is.
mkdir -p "$runs"
set -m # the background job gets a process group, which is ended as a whole
students >"$runs/students.log" 2>&1 &
set +m
trap 'kill -- "-$!" 2>/dev/null || true' EXIT
echo "student and control are trained at the same time; their output: $runs/students.log"
stage sft teacher data.train.seed="1${seed}0"
wait $! || { cat "$runs/students.log" >&2 && exit 1; }
trap - EXIT
cat "$runs/students.log"

stage distill distill "$student" "$teacher" data.prompts.seed="1${seed}2"
stage evaluate evaluate "$teacher" \
    models="{teacher: $runs/teacher/final, sft: $runs/student/final, sft_continued: $runs/continued/final, distilled: $runs/distill/final}"
cp "$runs/evaluate/result.json" "$runs/result.json"
echo "run: $runs    table as JSON: $runs/result.json"
