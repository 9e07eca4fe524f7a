#!/usr/bin/env bash
# The whole table: noctule on io_uring, noctule on epoll, and every peer of perf/brokers that is on
# the PATH or given, in every scenario, measured in turns on this machine.
#
#   scripts/compare-brokers.sh [--quick|--table] [--rounds N] [--duration SECONDS] [--warm-up SECONDS]
#                              [--scenario NAME]... [--peer NAME=PROGRAM]... [--broker NAME]...
#                              [--broker-cpu N] [--generator-cpu N] [--out DIR]
#
# --quick asks few questions for a short time, and installs Debian's Mosquitto when there is no peer:
# on a fresh clone, nothing is needed but Rust. --table asks those of the published table: 15 minutes
# with five brokers. --broker restricts it to these brokers.
#
# A peer is NAME.sh in perf/brokers, without what follows a hyphen: two versions of one are
#   --peer flashmq-1.25=$HOME/FlashMQ-1.25/flashmq --peer flashmq-1.26=$HOME/FlashMQ-1.26/flashmq
# and PATH=$HOME/FlashMQ/build:$PATH does as well for one.
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

# The rows of the published table: what users compare, see perf/README.md.
table=(forwarding-16b forwarding forwarding-256b forwarding-256b-mqtt5 forwarding-qos1 forwarding-qos2
    fan-out fan-out-1000 fan-in shared-group alone-on-the-wire alone-on-the-wire-1000
    routing-100k-filters latency-5k latency-20k retained-100k offline-drain connect-rate
    idle-connections)

rounds=
duration=
warm_up=
out=
preset=
broker_cpu=0
generator_cpu=1
scenarios=()
peers=()
brokers=()
command_line="scripts/compare-brokers.sh${*:+ $*}"
while [[ $# -gt 0 ]]; do
    if [[ "$1" == --quick || "$1" == --table ]]; then
        preset="$1"
        shift
        continue
    fi
    [[ $# -ge 2 ]] || die "$1 needs a value"
    case "$1" in
    --rounds) rounds="$2" ;;
    --duration) duration="$2" ;;
    --warm-up) warm_up="$2" ;;
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

case "$preset" in
--quick)
    rounds="${rounds:-3}"
    duration="${duration:-3}"
    [[ ${#scenarios[@]} -gt 0 ]] || scenarios=(forwarding forwarding-qos1 fan-out latency-5k)
    ;;
--table)
    rounds="${rounds:-3}"
    duration="${duration:-1.5}"
    warm_up="${warm_up:-0.5}"
    [[ ${#scenarios[@]} -gt 0 ]] || scenarios=("${table[@]}")
    ;;
esac
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
    [[ "$preset" != --quick || ${#peers[@]} -gt 0 ]] || need_packages mosquitto:mosquitto
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
    has_broker "$name" || die "$name: there is no $broker_program; give it by --peer $name=/path/to/it"
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
# Scenario and broker of first runs that came to nothing: they are not tried again.
declare -A given_up=()
# One run in a folder of its own.
measure() {
    local scenario="$1" broker="$2" round="$3" flags=()
    local folder="$out/runs/$broker/$scenario/$round"
    [[ -z "${given_up["$scenario $broker"]:-}" ]] || return 0
    # What ends with its messages has no duration.
    if ! grep -qE '^workload = "(retained|offline|connect)"' "perf/scenarios/$scenario.toml"; then
        [[ -z "$duration" ]] || flags+=(--duration "$duration")
        [[ -z "$warm_up" ]] || flags+=(--warm-up "$warm_up")
    fi
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
        # Percentiles as text: they are in the logs.
        rm -f "$folder"/*.hgrm
        if [[ "$(jq .delivered "$folder/summary.json")" == 0 ]]; then
            failed+=("$scenario, $broker: nothing was delivered")
            given_up["$scenario $broker"]=yes
        fi
    else
        failed+=("$scenario, $broker: $(tail -n 1 "$work/report")")
        echo "  ${failed[-1]}" >&2
        [[ "$round" -gt 1 ]] || given_up["$scenario $broker"]=yes
        rm -rf "$folder"
    fi
}

echo "${#scenarios[@]} scenarios x ${#brokers[@]} brokers (${brokers[*]}) x $rounds rounds, into $out"
# A wrong setting shows now, and not in the middle of it.
for broker in "${brokers[@]}"; do
    start_broker "$broker"
    end_broker
done

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
# The commands in the runs, without where this machine keeps things.
{ grep -rlF -e "$work/" -e "$PWD/" "$out/runs" || true; } |
    xargs -r sed -i "s|$work/|WORK/|g; s|$PWD/||g"

"$noctule" compare "${sets[@]}" --html "$out/report.html" --json >"$work/comparison.json"

# All scenarios at a glance, in the order in which they ran.
overview() {
    printf '%s\n' "${scenarios[@]}" | jq -Rn --slurpfile all "$work/comparison.json" -r '
        def short: if . < 1 then . * 1000 | round / 1000 elif . < 10 then . * 100 | round / 100
            elif . < 100 then . * 10 | round / 10 else round end | tostring;
        def value($s; $set; $key): [$s.rows[] | select(.key == $key) | .cells[$set]?.value][0];
        $all[0] as $all | ($all.sets | length) as $count |
        "| | \($all.sets | join(" | ")) |", "|---|\("--:|" * $count)",
        (inputs as $name | $all.scenarios[] | select(.name == $name) | . as $s |
            ([range($count) | value($s; .; "cpu") // infinite] | min) as $best |
            "| [\(.name)](#\(.name)): \(.question // .description) | " + ([range($count) | . as $set |
                value($s; $set; "cpu") as $cpu |
                if $cpu == null then "–" else
                    if $cpu == $best then "**\($cpu | short)**" else $cpu | short end +
                    if $s.is_closed then "" else
                        "; \(value($s; $set; "p50") / 1000 | short) / " +
                        "\(value($s; $set; "p99") // 0 | . / 1000 | short)" end
                end] | join(" | ")) + " |")'
}

# The figures that only scenario number $1 has.
own_figures() {
    jq -r --argjson scenario "$1" '
        def short: if . < 100 then . * 100 | round / 100 else round end | tostring;
        ["cpu", "throughput", "p50", "p90", "p99", "p99.9", "p99.99", "max", "lost", "duplicated",
         "reordered", "broker-share", "sleeps", "generator-share", "lateness"] as $known |
        . as $all | .scenarios[$scenario].rows[] | select(.key | IN($known[]) | not) |
        # Of twenty connections it is chance.
        select(.key | test("connect") | not or ($all.scenarios[$scenario].name | test("connect"))) |
        (if .key == "memory" then [1048576, "MiB"] else
            [1, ({"bytes": "B", "microseconds": "µs"}[.unit | strings] // (.unit | objects | .other)
            // "")] end) as [$by, $unit] |
        (if $unit == "" then "" else " (\($unit))" end) as $unit |
        "- \(.label)\($unit): " + ([.cells | to_entries[] | select(.value != null) |
            "\($all.sets[.key]) \(.value.value / $by | short)"] | join(", "))' "$work/comparison.json"
}

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

## All of it

CPU µs of the broker for each delivered message (of connect-rate: each connection; of idle-connections:
each ping), the lowest in bold; in an open loop also the latency, p50 / p99, in µs. A dash: it did not
run, see the end.

END
    overview
    if [[ "$preset" == --table ]]; then
        cat <<END

## Goals

A goal was set beside a peer's figure on the same kind of machine (then). Here it is times what that peer
takes in this run (now) over that; see \`scripts/goals.sh\`.

END
        scripts/goals.sh "$out"
    fi
    for ((number = 0; number < $(jq '.scenarios | length' "$work/comparison.json"); number++)); do
        jq -r --argjson n "$number" '.scenarios[$n] | "\n## \(.name)\n\n" +
            (if .question then .question + "\n" else "" end) + .description + "\n"' \
            "$work/comparison.json"
        echo '| broker | CPU µs a message | | 1,000 messages a second | p50 | p99 | p99.9 | lost / dup / order |'
        echo '|---|--:|--:|--:|--:|--:|--:|--:|'
        table_rows "$number"
        echo
        own_figures "$number"
        jq -r --argjson n "$number" '.scenarios[$n].notes | if length > 0 then
            "\n" + (map("- " + .) | join("\n")) else empty end' "$work/comparison.json"
    done
    cat <<END

## How

    $command_line

- $("$noctule" --version), $(git rev-parse --short HEAD 2>/dev/null || echo 'commit unknown')
- it took $((SECONDS / 60)) minutes; load average before $load_before, after $load_after
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
