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

stage sft teacher data.train.seed="1${seed}0"
stage sft student data.train.seed="1${seed}1"
stage sft continued "$student" data.train.seed="1${seed}1"
stage distill distill "$student" "$teacher" data.prompts.seed="1${seed}2"
stage evaluate evaluate "$teacher" \
    models="{teacher: $runs/teacher/final, sft: $runs/student/final, sft_continued: $runs/continued/final, distilled: $runs/distill/final}"
cp "$runs/evaluate/result.json" "$runs/result.json"
echo "run: $runs    table as JSON: $runs/result.json"
