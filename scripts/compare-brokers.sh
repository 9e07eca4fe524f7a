#!/usr/bin/env bash
# The whole table: noctule on io_uring, noctule on epoll, and every peer of perf/brokers that is on
# the PATH or given, in every scenario, measured in turns on this machine.
#
#   scripts/compare-brokers.sh [--quick] [--rounds N] [--duration SECONDS] [--out DIR]
#                              [--scenario NAME]... [--peer NAME=PROGRAM]... [--broker NAME]...
#                              [--broker-cpu N] [--generator-cpu N]
#
# --quick asks few questions for a short time, and installs Debian's Mosquitto when there is no peer:
# on a fresh clone, nothing is needed but Rust. --broker restricts it to these brokers.
#
# Each run has a broker of its own, on loopback, pinned to one CPU, and the generator on another.
# Rounds are interleaved, A B C A B C, so that what else the machine does hits all of them alike. Raw
# runs, a README with the table and report.html go to perf/results/<date>-<machine>. perf/README.md
# says what the figures claim. NOCTULE=PROGRAM measures with, and is, one that is built already.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh
# shellcheck source=scripts/brokers.sh
source scripts/brokers.sh

quick=
rounds=
duration=
out=
broker_cpu=0
generator_cpu=1
scenarios=()
peers=()
brokers=()
command_line="scripts/compare-brokers.sh${*:+ $*}"
while [[ $# -gt 0 ]]; do
    if [[ "$1" == --quick ]]; then
        quick=yes
        shift
        continue
    fi
    [[ $# -ge 2 ]] || die "$1 needs a value"
    case "$1" in
    --rounds) rounds="$2" ;;
    --duration) duration="$2" ;;
    --out) out="$2" ;;
    --scenario) scenarios+=("$2") ;;
    --peer)
        [[ "$2" == ?*=?* ]] || die "--peer NAME=PROGRAM"
        peers+=("${2%%=*}")
        given_programs["${2%%=*}"]="${2#*=}"
        ;;
    --broker) brokers+=("$2") ;;
    --broker-cpu) broker_cpu="$2" ;;
    --generator-cpu) generator_cpu="$2" ;;
    *) die "unknown option $1" ;;
    esac
    shift 2
done

if [[ -n "$quick" ]]; then
    rounds="${rounds:-3}"
    duration="${duration:-3}"
    [[ ${#scenarios[@]} -gt 0 ]] || scenarios=(forwarding forwarding-qos1 fan-out latency-5k)
fi
rounds="${rounds:-5}"
if [[ ${#scenarios[@]} -eq 0 ]]; then
    for file in perf/scenarios/*.toml; do
        scenarios+=("$(basename "$file" .toml)")
    done
fi
for scenario in "${scenarios[@]}"; do
    [[ -f "perf/scenarios/$scenario.toml" ]] || die "no perf/scenarios/$scenario.toml"
done

need_packages jq:jq taskset:util-linux
[[ "$(nproc --all)" -ge 2 ]] || die "broker and generator need a CPU each"
if [[ ${#brokers[@]} -eq 0 ]]; then
    [[ -z "$quick" || ${#peers[@]} -gt 0 ]] || need_packages mosquitto:mosquitto
    brokers=(noctule-uring noctule-epoll)
    for file in perf/brokers/*.sh; do
        name="$(basename "$file" .sh)"
        if has_broker "$name"; then brokers+=("$name"); fi
    done
    for name in "${peers[@]}"; do
        [[ " ${brokers[*]} " == *" $name "* ]] || brokers+=("$name")
    done
fi
for name in "${brokers[@]}"; do
    has_broker "$name" || die "$name: there is no $broker_program; give it by --peer $name=PROGRAM"
done

noctule="$(build_noctule)"
machine="$(machine_name)"
if [[ -z "$out" ]]; then
    # The second of a day is -2.
    out="perf/results/$(date -u +%F)-$machine"
    for ((number = 2; number < 100; number++)); do
        [[ -e "$out" ]] || break
        out="perf/results/$(date -u +%F)-$machine-$number"
    done
fi
mkdir -p "$out"
[[ -z "$(ls -A "$out")" ]] || die "$out is not empty"
work="$(mktemp -d)"
clean_up() {
    end_broker
    rm -rf "$work"
}
trap clean_up EXIT

failed=()
# One run in a folder of its own.
measure() {
    local scenario="$1" broker="$2" round="$3" flags=()
    local folder="$out/runs/$broker/$scenario/$round"
    [[ -z "$duration" ]] || flags=(--duration "$duration")
    start_broker "$broker"
    # noctule bench bounds itself, this is the second line of defence. A run that found faults has
    # exit code 1, and is a result.
    timeout 900 "$noctule" bench "perf/scenarios/$scenario.toml" --port "$port" \
        --broker-pid "$broker_pid" --cpus "$generator_cpu" --out "$folder" --quiet \
        "${flags[@]}" >"$work/report" 2>&1 || true
    end_broker
    if [[ -f "$folder/summary.json" ]]; then
        jq -r --arg broker "$broker" '"  \($broker): " +
            "\(.broker.cpu_micros_per_delivered // 0 | . * 1000 | round / 1000) µs, " +
            "\(.delivered_per_second | round) a second, \(.faults.lost // 0) lost"' \
            "$folder/summary.json"
    else
        failed+=("$scenario, $broker, round $round: $(tail -n 1 "$work/report")")
        echo "  ${failed[-1]}" >&2
        rm -rf "$folder"
    fi
}

load_before="$(cut -d ' ' -f 1-3 /proc/loadavg)"
for ((round = 1; round <= rounds; round++)); do
    for scenario in "${scenarios[@]}"; do
        heading "round $round of $rounds, $scenario"
        for broker in "${brokers[@]}"; do
            measure "$scenario" "$broker" "$round"
        done
    done
done
load_after="$(cut -d ' ' -f 1-3 /proc/loadavg)"

sets=()
for broker in "${brokers[@]}"; do
    [[ ! -d "$out/runs/$broker" ]] || sets+=("$broker=$out/runs/$broker")
done
"$noctule" compare "${sets[@]}" --html "$out/report.html" --json >"$work/comparison.json"

# The rows of the table of scenario number $1.
table_rows() {
    jq -r --argjson scenario "$1" '
        def digits(n): if . == null then "–" else . * pow(10; n) | round / pow(10; n) end;
        def figure($s; $set; $key): $s.rows[] | select(.key == $key) | .cells[$set];
        def median($s; $set; $key; $by; n): (figure($s; $set; $key) // null) as $c |
            if $c == null then "–" else "\($c.value / $by | digits(n)) " +
            "(\($c.spread.low / $by | digits(n)) to \($c.spread.high / $by | digits(n)))" end;
        def plain($s; $set; $key; $by; n): [figure($s; $set; $key)?][0] |
            if . == null then "–" else .value / $by | digits(n) end;
        def against($s; $set): [figure($s; $set; "cpu")?][0].versus |
            if . == null then "" else if .verdict == "no-difference" then "no difference"
            else "\(.ratio | digits(2))×" end end;
        . as $all | .scenarios[$scenario] as $s | range(.sets | length) as $set |
        select($s.runs[$set] > 0) |
        "| \($all.sets[$set]) | \(median($s; $set; "cpu"; 1; 3)) | \(against($s; $set)) " +
        "| \(median($s; $set; "throughput"; 1000; 1)) | \(plain($s; $set; "p50"; 1000; 1)) " +
        "| \(plain($s; $set; "p99"; 1000; 1)) | \(plain($s; $set; "p99.9"; 1000; 1)) " +
        "| \(plain($s; $set; "lost"; 1; 0)) / \(plain($s; $set; "duplicated"; 1; 0)) / " +
        "\(plain($s; $set; "reordered"; 1; 0)) |"' "$work/comparison.json"
}

{
    cat <<END
# Brokers compared, $(date -u +%F), $machine

\`report.html\` shows all of this, with the distributions; \`runs/\` has every run. Broker on CPU
$broker_cpu, generator on CPU $generator_cpu, loopback, $rounds rounds in turns; median (lowest to highest of the
rounds). **CPU µs is what the broker's process spent on a CPU for each delivered message**, beside it
how many times that of the first; a difference that the spread does not allow to call one is none.
Latency is in µs; in a closed loop it is that of a full queue. \`perf/README.md\` says what the figures
claim, \`perf/brokers\` how each broker is set up.
END
    for ((number = 0; number < $(jq '.scenarios | length' "$work/comparison.json"); number++)); do
        jq -r --argjson n "$number" '.scenarios[$n] | "\n## \(.name)\n\n\(.description)\n"' \
            "$work/comparison.json"
        echo '| broker | CPU µs a message | | 1,000 messages a second | p50 | p99 | p99.9 | lost / dup / order |'
        echo '|---|--:|--:|--:|--:|--:|--:|--:|'
        table_rows "$number"
        jq -r --argjson n "$number" '.scenarios[$n].notes | if length > 0 then
            "\n" + (map("- " + .) | join("\n")) else empty end' "$work/comparison.json"
    done
    cat <<END

## How

    $command_line

- $("$noctule" --version), $(git rev-parse --short HEAD 2>/dev/null || echo 'commit unknown')
- load average before $load_before, after $load_after
END
    jq -r '.environment[] | select(.part == "Machine" and .label != "Load before") |
        "- \(.label): \(.values[0] | join(" or "))"' "$work/comparison.json"
    jq -r '.sets as $sets | .environment[] | select(.part == "Broker" and .label == "Program") |
        range($sets | length) as $i | select(.values[$i] | length > 0) |
        "- \($sets[$i]): \(.values[$i] | join(" or "))"' "$work/comparison.json"
    absent=()
    for file in perf/brokers/*.sh; do
        name="$(basename "$file" .sh)"
        [[ " ${brokers[*]}" == *" $name"* ]] || absent+=("$name")
    done
    [[ ${#absent[@]} -eq 0 ]] || echo "- not run here: ${absent[*]}"
    jq -r '.differences[] | "- not the same for all: \(.)"' "$work/comparison.json"
    for failure in "${failed[@]}"; do
        echo "- did not run: $failure"
    done
} >"$out/README.md"
heading "$out/README.md"
cat "$out/README.md"
heading "open $out/report.html"
