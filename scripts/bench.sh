#!/usr/bin/env bash
# One scenario against one broker, started for it and ended after it.
#
#   scripts/bench.sh SCENARIO [BROKER] [--rounds N] [--out DIR] [--broker-cpu N]
#                    [--generator-cpu N] [--peer NAME=PROGRAM] [-- FLAGS OF noctule bench]
#
# SCENARIO is a file, or a name in perf/scenarios. BROKER is noctule-uring (the default),
# noctule-epoll, or a peer of perf/brokers that is on the PATH or given by --peer. Each round is a
# run folder DIR/1, DIR/2 ...; DIR is for noctule compare. NOCTULE=PROGRAM measures with, and is, one
# that is built already.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh
# shellcheck source=scripts/brokers.sh
source scripts/brokers.sh

[[ $# -ge 1 && "$1" != -* ]] || die "which scenario? $(basename -s .toml -a perf/scenarios/* | tr '\n' ' ')"
scenario="$1"
shift
broker="noctule-uring"
if [[ $# -gt 0 && "$1" != -* ]]; then
    broker="$1"
    shift
fi
rounds=1
out=
broker_cpu=0
generator_cpu=1
flags=()
while [[ $# -gt 0 ]]; do
    if [[ "$1" == -- ]]; then
        flags=("${@:2}")
        break
    fi
    [[ $# -ge 2 ]] || die "$1 needs a value"
    case "$1" in
    --rounds) rounds="$2" ;;
    --out) out="$2" ;;
    --broker-cpu) broker_cpu="$2" ;;
    --generator-cpu) generator_cpu="$2" ;;
    --peer) given_programs["${2%%=*}"]="${2#*=}" ;;
    *) die "unknown option $1" ;;
    esac
    shift 2
done
[[ -f "$scenario" ]] || scenario="perf/scenarios/${scenario%.toml}.toml"
[[ -f "$scenario" ]] || die "no scenario $scenario; without arguments this says which there are"

need_packages jq:jq taskset:util-linux
[[ "$(nproc --all)" -ge 2 ]] || die "broker and generator need a CPU each"
has_broker "$broker" || die "$broker: no $broker_program on the PATH; give it by --peer $broker=/path/to/it"
noctule="$(build_noctule)"
work="$(mktemp -d)"
clean_up() {
    end_broker
    rm -rf "$work"
}
trap clean_up EXIT

for ((round = 1; round <= rounds; round++)); do
    [[ "$rounds" -eq 1 ]] || heading "round $round of $rounds"
    start_broker "$broker"
    keep=()
    [[ -z "$out" ]] || keep=(--out "$out/$round")
    "$noctule" bench "$scenario" --port "$port" --broker-pid "$broker_pid" \
        --cpus "$generator_cpu" "${keep[@]}" "${flags[@]}"
    end_broker
done
if [[ -n "$out" && "$rounds" -gt 1 ]]; then
    heading "$out"
    "$noctule" compare "$broker=$out"
fi
