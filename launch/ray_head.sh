#!/usr/bin/env bash
# The head of a Ray cluster with its job service, in the foreground; Ctrl-C ends it. Takes an address of this machine, by default
# loopback, for this machine alone; further words go to `ray start`:
#   launch/ray_head.sh
#   launch/ray_head.sh 10.0.0.5 --num-gpus 8
# Whoever holds Ray's token, and nobody else, runs code on the cluster. It is in ~/.ray/auth_token, which other nodes need too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
address=${1:-127.0.0.1}
export RAY_AUTH_MODE=token
(umask 077 && .venv/bin/ray get-auth-token --generate >/dev/null)
case $address in
127.*) export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 ;; # Ray takes the network's address for loopback otherwise, on Linux
esac
exec .venv/bin/ray start --head --block --disable-usage-stats --node-ip-address "$address" --dashboard-host "$address" "${@:2}"
