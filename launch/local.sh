#!/usr/bin/env bash
# Any minidist command on this machine, in the project's own environment:
#   launch/local.sh distill configs/quickstart/distill.yaml run.steps=20
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec .venv/bin/minidist "$@"
