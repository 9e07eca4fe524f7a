#!/usr/bin/env bash
# The first figures: what a delivered message costs noctule on io_uring, noctule on epoll, and
# Debian's Mosquitto, in four workloads, measured in turns on this machine.
#
#   scripts/first-figures.sh [--rounds N] [--duration SECONDS] [--warm-up SECONDS] [--out DIR]
#                            [--only WORKLOAD] [--broker-cpu N] [--generator-cpu N]
#
# Each run has a broker of its own, on loopback, pinned to one CPU, and the generator (noctule
# bench) on another. Rounds are interleaved, so that what else the machine does hits all of them
# alike. Raw JSON and a README with the table go to perf/results/<date>-<machine>. perf/README.md
# says what the figures claim.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh

rounds=5
duration=3
warm_up=1
broker_cpu=0
generator_cpu=1
out=
only=
command_line="scripts/first-figures.sh${*:+ $*}"
while [[ $# -gt 0 ]]; do
    [[ $# -ge 2 ]] || die "$1 needs a value"
    case "$1" in
    --rounds) rounds="$2" ;;
    --duration) duration="$2" ;;
    --warm-up) warm_up="$2" ;;
    --out) out="$2" ;;
    --only) only="$2" ;;
    --broker-cpu) broker_cpu="$2" ;;
    --generator-cpu) generator_cpu="$2" ;;
    *) die "unknown option $1" ;;
    esac
    shift 2
done

brokers=(noctule-uring noctule-epoll mosquitto)
workloads=(pairs-qos0 fan-out-100 pairs-qos1 ping-pong)
[[ -z "$only" ]] || workloads=("$only")

# The flags of noctule bench for a workload.
bench_flags() {
    case "$1" in
    pairs-qos0) echo pairs --pairs 10 --payload 64 --window 256 ;;
    fan-out-100) echo fan-out --subscribers 100 --payload 64 --window 64 ;;
    pairs-qos1) echo pairs --pairs 10 --payload 64 --qos 1 --window 256 --inflight 20 ;;
    ping-pong) echo ping-pong --pairs 10 --payload 64 ;;
    *) die "unknown workload $1" ;;
    esac
}

need_packages jq:jq mosquitto:mosquitto taskset:util-linux
[[ "$(nproc --all)" -ge 2 ]] || die "broker and generator need a CPU each"
cargo build --release --quiet
noctule="$(target_dir)/release/noctule"

model="$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)"
machine="$(nproc --all)-cpu-$(tr -cs '[:alnum:]' '-' <<<"${model,,}")"
machine="${machine%-}"
out="${out:-perf/results/$(date -u +%F)-$machine}"
mkdir -p "$out"
[[ -z "$(ls -A "$out")" ]] || die "$out is not empty"
mkdir "$out/raw"
# What one run may take: noctule bench bounds itself, this is the second line of defence.
limit="$(awk -v measured="$duration" -v before="$warm_up" 'BEGIN { print measured + before + 120 }')"
work="$(mktemp -d)"
broker_pid=
port=

# Ends our broker, by its id.
end_broker() {
    [[ -n "$broker_pid" ]] || return 0
    kill "$broker_pid" 2>/dev/null || true
    wait "$broker_pid" 2>/dev/null || true
    broker_pid=
}
clean_up() {
    end_broker
    rm -rf "$work"
}
trap clean_up EXIT

# Starts a broker, and waits until it listens: sets broker_pid and port.
start_broker() {
    local tries
    case "$1" in
    noctule-*)
        rm -rf "$work/ready" "$work/data"
        taskset -c "$broker_cpu" "$noctule" serve --listen 127.0.0.1:0 --io "${1#noctule-}" \
            --shards 1 --data "$work/data" --ready-file "$work/ready" >"$work/log" 2>&1 &
        broker_pid=$!
        for tries in {1..500}; do
            if port="$(jq -er '.listeners[0] | split(":")[-1]' "$work/ready" 2>/dev/null)"; then
                return 0
            fi
            kill -0 "$broker_pid" 2>/dev/null || break
            sleep 0.02
        done
        ;;
    mosquitto)
        port=$((20000 + RANDOM % 10000))
        sed "s/@PORT@/$port/" perf/brokers/mosquitto.conf >"$work/mosquitto.conf"
        taskset -c "$broker_cpu" mosquitto -c "$work/mosquitto.conf" >"$work/log" 2>&1 &
        broker_pid=$!
        for tries in {1..500}; do
            if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
                kill -0 "$broker_pid" 2>/dev/null && return 0
            fi
            kill -0 "$broker_pid" 2>/dev/null || break
            sleep 0.02
        done
        ;;
    esac
    die "$1 did not start (after $tries tries): $(tail -n 5 "$work/log")"
}

# One run; its report goes to a file.
measure() {
    local workload="$1" broker="$2" file="$3" flags
    read -ra flags <<<"$(bench_flags "$workload")"
    start_broker "$broker"
    timeout "$limit" "$noctule" bench "${flags[@]}" --port "$port" \
        --broker-pid "$broker_pid" --cpus "$generator_cpu" --duration "$duration" \
        --warm-up "$warm_up" --json >"$file" || echo "  $broker, $workload: see $file" >&2
    end_broker
    jq -r '"\(.broker.cpu_micros_per_delivered * 1000 | round / 1000) µs, " +
        "\(.delivered_per_second | round) a second, \(.faults.lost) lost"' "$file" |
        sed "s/^/  $broker: /"
}

load_before="$(cut -d ' ' -f 1-3 /proc/loadavg)"
for ((round = 1; round <= rounds; round++)); do
    for workload in "${workloads[@]}"; do
        heading "round $round of $rounds, $workload"
        for broker in "${brokers[@]}"; do
            measure "$workload" "$broker" "$out/raw/$workload.$broker.$round.json"
        done
    done
done
load_after="$(cut -d ' ' -f 1-3 /proc/loadavg)"

# Rows of the table of one workload.
table_rows() {
    local workload="$1" broker
    for broker in "${brokers[@]}"; do
        jq -rs --arg broker "$broker" '
            def median: sort | (.[(length - 1) / 2 | floor] + .[length / 2 | floor]) / 2;
            def digits(n): . * pow(10; n) | round / pow(10; n);
            def spread(f; n): map(f) | "\(median | digits(n)) (\(min | digits(n)) to \(max | digits(n)))";
            "| \($broker) | \(spread(.broker.cpu_micros_per_delivered; 3)) " +
            "| \(spread(.delivered_per_second / 1000; 1)) " +
            "| \(map(.broker.cpu_share * 100) | median | round) % " +
            "| \(map(.generator.cpu_share * 100) | median | round) % " +
            "| \(map(.latency_nanos.p50 / 1000) | median | digits(1)) " +
            "| \(map(.faults.lost) | add) / \(map(.faults.duplicated) | add) / " +
            "\(map(.faults.out_of_order) | add) |"' "$out/raw/$workload.$broker".*.json
    done
}

{
    cat <<END
# First figures, $(date -u +%F), $machine

Broker on CPU $broker_cpu, generator on CPU $generator_cpu, loopback, $rounds rounds in turns, ${duration} s each after
${warm_up} s; median (lowest to highest). **CPU µs is what the broker's process spent on a CPU per
delivered message**, the figure to trust where the machine has other work to do. A broker well below
100 % of its core in a closed loop had to share it, or waited for the generator: then its rate is a
floor. Latency here is that of a full queue; it says nothing about a broker that is not saturated.
END
    for workload in "${workloads[@]}"; do
        # shellcheck disable=SC2016
        printf '\n## %s\n\n`noctule bench %s`\n\n' "$workload" "$(bench_flags "$workload")"
        echo '| broker | CPU µs a message | 1,000 messages a second | of its core | generator | p50 µs | lost / dup / order |'
        echo '|---|--:|--:|--:|--:|--:|--:|'
        table_rows "$workload"
    done
    cat <<END

## How

    $command_line

- noctule $(git rev-parse --short HEAD)$([[ -z "$(git status --porcelain --untracked-files=no)" ]] || echo ' with local changes'), $(rustc --version), release profile; \`serve --shards 1 --io uring|epoll\`
- $(mosquitto -h | head -n 1) (Debian $(dpkg-query -W -f '${Version}' mosquitto 2>/dev/null || echo '?')), \`perf/brokers/mosquitto.conf\`
- $(uname -srm), $model, $(nproc --all) CPUs, $(awk '/MemTotal/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo), $(systemd-detect-virt 2>/dev/null || echo 'virtualisation unknown')
- governor $(cat "/sys/devices/system/cpu/cpu$broker_cpu/cpufreq/scaling_governor" 2>/dev/null || echo 'not visible'), TCP congestion control $(cat /proc/sys/net/ipv4/tcp_congestion_control)
- load average before $load_before, after $load_after
- the generator chose its kernel interface by itself (\`--io auto\`), for all brokers alike
END
    warnings="$(jq -r '.warnings[]' "$out"/raw/*.json | sed -E 's/[0-9.]+ %/… %/; s/, [0-9]+ times/, … times/' | sort | uniq -c)"
    if [[ -n "$warnings" ]]; then
        # shellcheck disable=SC2016
        printf '\nThe generator warned, in so many runs (see raw):\n\n```\n%s\n```\n' "$warnings"
    fi
} >"$out/README.md"
heading "$out/README.md"
cat "$out/README.md"
