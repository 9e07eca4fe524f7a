#!/usr/bin/env bash
# How cost grows: with connections, filters, fan-out, payload, retained topics, shards. Prints the
# tables of perf/SCALING.md. One shard on CPU 0, the generator on CPU 1.
#
#   scripts/scaling.sh [--io uring|epoll] [--quick] [TABLE...]
#
# TABLE is one of connections, filters, fan-out, payload, retained, offline, shards; without, all.
# --quick leaves out what takes long. NOCTULE=PROGRAM measures with, and is, one that is built already.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh
# shellcheck source=scripts/brokers.sh
source scripts/brokers.sh

io=uring
quick=
tables=()
while [[ $# -gt 0 ]]; do
    case "$1" in
    --io) io="$2" && shift ;;
    --quick) quick=yes ;;
    -*) die "unknown option $1" ;;
    *) tables+=("$1") ;;
    esac
    shift
done
[[ ${#tables[@]} -gt 0 ]] || tables=(connections filters fan-out payload retained offline shards)

need_packages jq:jq taskset:util-linux
[[ "$(nproc --all)" -ge 2 ]] || die "broker and generator need a CPU each"
noctule="$(build_noctule)"
work="$(mktemp -d)"
broker_cpu=0
# As many connections as the machine allows one process.
ulimit -n "$(ulimit -Hn)"
most=$(($(ulimit -n) - 500))
[[ $most -le 19000 ]] || most=19000
clean_up() {
    end_broker
    rm -rf "$work"
}
trap clean_up EXIT

# Runs a workload on a broker of its own; the summary is in $work/run.json, the broker's memory before
# it in $empty.
run() {
    start_broker "noctule-$io"
    empty=$(awk '/^VmRSS/ { print $2 * 1024 }' "/proc/$broker_pid/status")
    "$noctule" bench "$@" --port "$port" --broker-pid "$broker_pid" --cpus 1 --quiet --json \
        >"$work/run.json" || die "noctule bench $*: $(jq -c .faults "$work/run.json")"
    end_broker
}

# A value of the summary, by a jq expression, to three digits.
value() {
    jq -r "($1) as \$x | if \$x == null then \"–\" elif \$x >= 100 then (\$x | round)
        elif \$x >= 10 then (\$x * 10 | round / 10) elif \$x >= 1 then (\$x * 100 | round / 100)
        else (\$x * 1000 | round / 1000) end" "$work/run.json"
}

# One of its figures, by name.
figure() {
    value ".figures[] | select(.name == \"$1\") | .value"
}

cost=.broker.cpu_micros_per_delivered
sources_for() {
    echo $((($1 + 9999) / 10000 + 1))
}

table_connections() {
    heading "connections"
    echo "| connections | CPU µs to connect | memory of an idle one, B | of each beyond the row above, B | ping-pong over so many pairs of them: CPU µs a message |"
    echo "|--:|--:|--:|--:|--:|"
    local above=
    for count in 10 100 1000 5000 "$most"; do
        [[ -z $quick || $count -le 1000 ]] || continue
        run connect --clients "$count" --sources "$(sources_for "$count")"
        local connect memory further=– pairs=$((count / 2))
        connect=$(figure "broker CPU for each connection")
        memory=$(value "(.broker.rss_peak_bytes - $empty) / $count")
        # Without what a rush takes however many come: receive buffers, code.
        [[ -z $above ]] || further=$(value "(.broker.rss_peak_bytes - $empty - ${above#* }) / ($count - ${above% *})")
        above="$count $(($(jq .broker.rss_peak_bytes "$work/run.json") - empty))"
        run ping-pong --pairs "$pairs" --sources "$(sources_for "$count")" --duration 3
        echo "| $count | $connect | $memory | $further | $(value "$cost") |"
    done
}

table_filters() {
    heading "filters"
    echo "| wildcard filters | of subscribers | CPU µs a message, to a random one | memory of a filter, B |"
    echo "|--:|--:|--:|--:|"
    local base=
    for each in 1 10 100 1000; do
        [[ -z $quick || $each -le 100 ]] || continue
        run route --subscribers 1000 --filters "$each" --publishers 4 --window 64 --duration 3
        local memory
        # Beside what 1,000 connections take with a filter each.
        memory=$(value "(.broker.rss_peak_bytes - ${base:-0}) / (1000 * $each)")
        [[ -n $base ]] || memory=–
        base="${base:-$(jq .broker.rss_peak_bytes "$work/run.json")}"
        echo "| $((1000 * each)) | 1000 | $(value "$cost") | $memory |"
    done
}

table_fan-out() {
    heading "fan-out"
    echo "| subscribers | CPU µs a delivery |"
    echo "|--:|--:|"
    for count in 1 10 100 1000 10000 "$most"; do
        [[ -z $quick || $count -le 1000 ]] || continue
        local window=$((20000 / count))
        [[ $window -ge 2 ]] || window=2
        [[ $window -le 256 ]] || window=256
        run fan-out --subscribers "$count" --window "$window" --duration 3 \
            --sources "$(sources_for "$count")"
        echo "| $count | $(value "$cost") |"
    done
}

table_payload() {
    heading "payload"
    echo "| bytes | CPU µs a message | MB of payload a second | ns of CPU a byte |"
    echo "|--:|--:|--:|--:|"
    for bytes in 16 256 1024 4096 16384 65536 262144 1048576; do
        local window=$((1048576 / bytes))
        [[ $window -ge 4 ]] || window=4
        [[ $window -le 256 ]] || window=256
        run pairs --pairs 4 --payload "$bytes" --window "$window" --duration 3
        echo "| $bytes | $(value "$cost") | $(value ".delivered_per_second * $bytes / 1e6") |" \
            "$(value "$cost * 1000 / $bytes") |"
    done
}

table_retained() {
    heading "retained messages"
    echo "| topics | CPU µs to store | memory of one, B | CPU µs to replay | ms to replay all |"
    echo "|--:|--:|--:|--:|--:|"
    for count in 1000 10000 100000 1000000; do
        [[ -z $quick || $count -le 100000 ]] || continue
        run retained --messages "$count" --qos 0
        echo "| $count | $(figure "broker CPU for each stored") |" \
            "$(figure "broker memory for each stored") | $(value "$cost") | $(figure replay) |"
    done
}

table_offline() {
    heading "messages for absent sessions"
    echo "| messages | CPU µs to store | memory of one, B | CPU µs to drain |"
    echo "|--:|--:|--:|--:|"
    for count in 1000 10000 100000; do
        run offline --pairs 10 --messages "$count" --qos 1
        echo "| $count | $(figure "broker CPU for each stored") |" \
            "$(figure "broker memory for each stored") | $(value "$cost") |"
    done
}

# With two shards half of all pairs are on different ones; both share the CPU of one, so that what is
# added is the price of crossing and not that of waiting.
table_shards() {
    heading "shards"
    echo "| shards, on one CPU | pairs QoS 0: CPU µs a message | pairs QoS 1 | fan-out 1:100 |"
    echo "|--:|--:|--:|--:|"
    for shards in 1 2 4; do
        local plain acknowledged
        run pairs --pairs 16 --duration 3
        plain=$(value "$cost")
        run pairs --pairs 16 --qos 1 --duration 3
        acknowledged=$(value "$cost")
        run fan-out --subscribers 100 --duration 3
        echo "| $shards | $plain | $acknowledged | $(value "$cost") |"
    done
    shards=1
}

echo "noctule-$io, $(machine_name), $(uname -sr), $("$noctule" --version)"
for table in "${tables[@]}"; do
    declare -F "table_$table" >/dev/null || die "no table $table"
    "table_$table"
done
