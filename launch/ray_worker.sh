#!/usr/bin/env bash
# One more node for the cluster of launch/ray_head.sh, in the foreground. Takes the head's address with its port; further words go
# to `ray start`:
#   launch/ray_worker.sh 10.0.0.5:6379 --num-gpus 8
# Needs the head's token, in ~/.ray/auth_token, RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export RAY_AUTH_MODE=token
exec .venv/bin/ray start --block --disable-usage-stats --address "${1:?the address of the head, such as 10.0.0.5:6379}" "${@:2}"
