#!/usr/bin/env bash
# Is noctule bench to be believed? Two checks, on this machine:
#
#   1. its own ceiling: pairs against a peer that only counts (noctule bench --sink), one core each;
#   2. its latency at a low rate, beside that of a small closed loop on another library (rumqttc,
#      perf/independent.rs), in turns against the same broker.
#
#   scripts/check-generator.sh [--rounds N] [--sink-cpu N] [--generator-cpu N]
#
# NOCTULE=PROGRAM and INDEPENDENT=PROGRAM are ones that are built already.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh

rounds=5
sink_cpu=0
generator_cpu=1
while [[ $# -gt 0 ]]; do
    [[ $# -ge 2 ]] || die "$1 needs a value"
    case "$1" in
    --rounds) rounds="$2" ;;
    --sink-cpu) sink_cpu="$2" ;;
    --generator-cpu) generator_cpu="$2" ;;
    *) die "unknown option $1" ;;
    esac
    shift 2
done

need_packages jq:jq taskset:util-linux
[[ -n "${NOCTULE:-}" && -n "${INDEPENDENT:-}" ]] ||
    cargo build --release --quiet --bin noctule --example independent
noctule="${NOCTULE:-$(target_dir)/release/noctule}"
independent="${INDEPENDENT:-$(target_dir)/release/examples/independent}"
echo "load average $(cut -d ' ' -f 1-3 /proc/loadavg)"
work="$(mktemp -d)"
peer=
clean_up() {
    [[ -z "$peer" ]] || kill "$peer" 2>/dev/null || true
    rm -rf "$work"
}
trap clean_up EXIT

heading "the ceiling: 10 pairs, 64 B, QoS 0, against the sink"
for io in uring epoll; do
    for ((round = 1; round <= rounds; round++)); do
        "$noctule" bench --sink 127.0.0.1:0 --cpus "$sink_cpu" --quiet --io "$io" \
            >"$work/counts" 2>"$work/sink" &
        peer=$!
        for _ in {1..200}; do
            port="$(sed -n 's/.*counting on .*://p' "$work/sink")"
            [[ -z "$port" ]] || break
            sleep 0.02
        done
        "$noctule" bench pairs --port "$port" --cpus "$generator_cpu" --io "$io" --duration 3 \
            --json >"$work/run.json" || true
        kill -INT "$peer"
        wait "$peer" || true
        peer=
        jq -r '"\(.delivered_per_second | round) a second, \(.faults.lost) lost, generator at " +
            "\(.generator.cpu_share * 100 | round) % of a core, " +
            "\(.generator.cpu_micros_per_delivered * 1000 | round / 1000) µs a message"' \
            "$work/run.json" | sed "s/^/  $io: /"
    done
done

heading "latency at 500 a second, one client each: noctule bench beside rumqttc"
taskset -c "$sink_cpu" "$noctule" serve --listen 127.0.0.1:0 --shards 1 --data "$work/data" \
    --ready-file "$work/ready" >"$work/log" 2>&1 &
peer=$!
for _ in {1..500}; do
    port="$(jq -er '.listeners[0] | split(":")[-1]' "$work/ready" 2>/dev/null)" && break
    sleep 0.02
done
show='"p50 \(.p50 / 1000 | round) µs, p90 \(.p90 / 1000 | round) µs, p99 \(.p99 / 1000 | round) µs"'
for ((round = 1; round <= rounds; round++)); do
    "$noctule" bench pairs --pairs 1 --rate 500 --port "$port" --cpus "$generator_cpu" \
        --duration 3 --json >"$work/run.json" || true
    taskset -c "$generator_cpu" "$independent" 127.0.0.1 "$port" 500 3 >"$work/other.json"
    jq -r ".latency_nanos | $show" "$work/run.json" | sed 's/^/  noctule bench, intended send to delivery: /'
    jq -r ".since_intended | $show" "$work/other.json" | sed 's/^/  rumqttc, intended send to delivery:       /'
    jq -r ".since_sent | $show" "$work/other.json" | sed 's/^/  rumqttc, actual send to delivery:         /'
    jq -r ".lateness_nanos | $show" "$work/run.json" | sed 's/^/  noctule bench was late itself by:         /'
done
