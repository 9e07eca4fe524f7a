#!/usr/bin/env bash
# What a delivered message costs in things that can be counted: system calls, context switches,
# allocations, bytes copied. perf/README.md says how to read it.
#
#   scripts/cost.sh [SCENARIO] [--io uring|epoll] [--shards N] [--messages N] [-- FLAGS OF noctule bench]
#   scripts/cost.sh --check         what perf/cost-bounds.json lists, against its bounds: CI's gate
#
# SCENARIO is a file, or a name in perf/scenarios (forwarding); without --io both backends are
# measured. Every figure is the difference between a run of N messages (100,000) and one of a tenth
# of that, on a broker that has had a run before: connecting and growing are not in it. System calls
# are counted in runs of their own, because strace slows the broker down. Builds noctule with the
# feature count-alloc, without optimisation, which changes no count; NOCTULE=PROGRAM is one that is
# built already.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh
# shellcheck source=scripts/brokers.sh
source scripts/brokers.sh

bounds=perf/cost-bounds.json
# shellcheck disable=SC2034 # brokers.sh
broker_cpu=0
# The default, which clean sessions are not to pay for.
# shellcheck disable=SC2034 # brokers.sh
durability=power
generator_cpu=1
strace_pid=

# The unoptimised program that counts its allocations.
build_counting() {
    if [[ -n "${NOCTULE:-}" ]]; then
        build_noctule
        return
    fi
    # The profile of tests, whose dependencies CI has built already; a folder of its own would have
    # them built once more.
    cargo build --locked --quiet --profile test --features count-alloc --bin noctule
    cp "$(target_dir)/debug/noctule" "$work/noctule"
    echo "$work/noctule"
}

# Writes all counters of the broker, with its context switches, into the file $1.
snapshot() {
    local tries
    rm -f "$NOCTULE_STATS_FILE"
    kill -USR1 "$broker_pid"
    for tries in {1..500}; do
        [[ -s "$NOCTULE_STATS_FILE" ]] && break
        sleep 0.02
    done
    [[ -s "$NOCTULE_STATS_FILE" ]] || die "no counters from the broker after $tries tries"
    local switches
    switches="$(cat /proc/"$broker_pid"/task/*/status |
        awk '/ctxt_switches/ { sum += $2 } END { print sum + 0 }')"
    jq --argjson switches "$switches" '.switches = $switches' "$NOCTULE_STATS_FILE" >"$1"
}

# One run of $1 messages against the broker.
run_bench() {
    "$noctule" bench "$scenario" --port "$port" --cpus "$generator_cpu" --quiet \
        --messages "$1" --warm-up 0 --duration 600 "${flags[@]}" >"$work/bench.log" 2>&1 ||
        die "the run of $1 messages failed: $(tail -n 20 "$work/bench.log")"
}

# One run of $1 messages; the broker's system calls in it, and what it delivered, into the file $2.
run_traced() {
    local tries before=$work/before.json after=$work/after.json
    snapshot "$before"
    : >"$work/strace.log"
    # Through a function, $! would be a shell's.
    local root=()
    [[ $(id -u) -eq 0 ]] || root=(sudo)
    "${root[@]}" strace -f -c -U calls,name -o "$work/strace" -p "$broker_pid" \
        2>"$work/strace.log" &
    strace_pid=$!
    for tries in {1..500}; do
        grep -q attached "$work/strace.log" && break
        kill -0 "$strace_pid" 2>/dev/null || break
        sleep 0.02
    done
    grep -q attached "$work/strace.log" ||
        die "strace cannot attach (after $tries tries): $(cat "$work/strace.log")"
    run_bench "$1"
    as_root kill -TERM "$strace_pid"
    wait "$strace_pid" || true
    strace_pid=
    snapshot "$after"
    awk '$1 ~ /^[0-9]+$/ && $2 != "total" { print $1, $2 }' "$work/strace" |
        jq -Rn --slurpfile before "$before" --slurpfile after "$after" '
            {calls: ([inputs | split(" ") | {(.[1]): (.[0] | tonumber)}] | add // {}),
             delivered: ([$after, $before] | map(.[0].total.broker |
                .messages_out_qos0 + .messages_out_qos1 + .messages_out_qos2) | .[0] - .[1])}
        ' >"$2"
}

# Measures $scenario on the backend $1 with $messages and $shards: the figures, into the file $2.
measure() {
    start_broker "noctule-$1"
    local small=$((messages / 10))
    run_bench "$small"
    snapshot "$work/0.json"
    run_bench "$small"
    snapshot "$work/1.json"
    run_bench "$messages"
    snapshot "$work/2.json"
    run_traced "$small" "$work/traced-1.json"
    run_traced "$messages" "$work/traced-2.json"
    end_broker
    jq -n --arg io "$1" --arg scenario "$(basename "$scenario" .toml)" --argjson shards "$shards" \
        --slurpfile s0 "$work/0.json" --slurpfile s1 "$work/1.json" --slurpfile s2 "$work/2.json" \
        --slurpfile t1 "$work/traced-1.json" --slurpfile t2 "$work/traced-2.json" '
        def counts: .[0] | (.total.loop | {allocations, allocated_bytes, copied_to_outboxes,
            copied_to_lanes, copied_to_store, copied_from_input}) + {switches,
            delivered: (.total.broker | .messages_out_qos0 + .messages_out_qos1 + .messages_out_qos2)};
        def minus($b): with_entries(.value -= ($b[.key] // 0));
        ($s0 | counts) as $a | ($s1 | counts) as $b | ($s2 | counts) as $c
        | ($c | minus($b) | minus($b | minus($a))) as $d
        | ($t2[0].delivered - $t1[0].delivered) as $traced
        | if $a.allocations == null then error("built without the feature count-alloc") else . end
        # What counts nothing holds nothing: connecting has allocated.
        | if $a.allocations == 0 or $d.delivered <= 0 or $traced <= 0
            or ($t2[0].calls | length) == 0 then error("nothing was counted") else . end
        | {scenario: $scenario, io: $io, shards: $shards, delivered: $d.delivered,
           system_calls: ((($t2[0].calls | add) - ($t1[0].calls | add // 0)) / $traced),
           by_call: ($t2[0].calls | minus($t1[0].calls) | map_values(. / $traced)),
           context_switches: ($d.switches / $d.delivered),
           allocations: ($d.allocations / $d.delivered),
           allocated_bytes: ($d.allocated_bytes / $d.delivered),
           bytes_copied: (($d | to_entries | map(select(.key | startswith("copied_")).value) | add)
                / $d.delivered),
           by_copy: ($d | with_entries(select(.key | startswith("copied_")))
                | map_values(. / $d.delivered))}' >"$2"
}

# Prints the figures of the file $1.
show() {
    jq -r '
        def digits($n): . * pow(10; $n) | round / pow(10; $n) | if . == 0 then "0" else tostring end;
        def column: . + " " * ([1, 12 - length] | max);
        def parts($n): to_entries | map(select(.value | fabs > 0.0005)) | sort_by(-.value)
            | map("\(.key | if startswith("copied_") then .[7:] | gsub("_"; " ") else . end) "
                + (.value | digits($n))) | join(", ");
        "\(.scenario) on \(.io), \(.shards) shard\(if .shards > 1 then "s" else "" end), "
        + "per delivered message (\(.delivered) of them):",
        "  system calls      \(.system_calls | digits(4) | column)\(.by_call | parts(4))",
        "  context switches  \(.context_switches | digits(4))",
        "  allocations       \(.allocations | digits(5) | column)bytes in them \(.allocated_bytes | digits(2))",
        "  bytes copied      \(.bytes_copied | digits(2) | column)\(.by_copy | parts(2))"' "$1"
}

# Holds the figures of the file $1 against the bounds of the JSON object $2.
hold() {
    jq -r --argjson bound "$2" '
        . as $is | [("system_calls", "allocations", "bytes_copied") | select($is[.] > $bound[.])
        | "  ABOVE ITS BOUND: \(gsub("_"; " ")) \($is[.]), at most \($bound[.])"] | .[]' "$1"
}

check() {
    local entry io failed=0 complaints
    while read -r entry; do
        scenario="perf/scenarios/$(jq -r .scenario <<<"$entry").toml"
        [[ -f "$scenario" ]] || die "$bounds: no scenario $scenario"
        io="$(jq -r .io <<<"$entry")"
        messages="$(jq -r .messages <<<"$entry")"
        shards="$(jq -r '.shards // 1' <<<"$entry")"
        mapfile -t flags < <(jq -r '.flags // [] | .[]' <<<"$entry")
        measure "$io" "$work/figures.json"
        show "$work/figures.json"
        complaints="$(hold "$work/figures.json" "$entry")"
        if [[ -n "$complaints" ]]; then
            echo "$complaints"
            failed=1
        fi
    done < <(jq -c '.[]' "$bounds")
    [[ $failed -eq 0 ]] || die "a message costs more than $bounds allows: find out why; only a
reason is a reason to raise a bound"
}

scenario=forwarding
ios=(uring epoll)
shards=1
messages=100000
flags=()
checking=
[[ $# -eq 0 || "$1" == -* ]] || {
    scenario="$1"
    shift
}
while [[ $# -gt 0 ]]; do
    case "$1" in
    --check)
        checking=yes
        shift
        continue
        ;;
    --)
        flags=("${@:2}")
        break
        ;;
    esac
    [[ $# -ge 2 ]] || die "$1 needs a value"
    case "$1" in
    --io) ios=("$2") ;;
    --shards) shards="$2" ;;
    --messages) messages="$2" ;;
    *) die "unknown option $1" ;;
    esac
    shift 2
done
[[ -f "$scenario" ]] || scenario="perf/scenarios/${scenario%.toml}.toml"
[[ -f "$scenario" ]] || die "no scenario $scenario"

need_packages jq:jq strace:strace taskset:util-linux
[[ "$(nproc --all)" -ge 2 ]] || die "broker and generator need a CPU each"
work="$(mktemp -d)"
clean_up() {
    [[ -z "$strace_pid" ]] || as_root kill -TERM "$strace_pid" 2>/dev/null || true
    end_broker
    rm -rf "$work"
}
trap clean_up EXIT
export NOCTULE_STATS_FILE="$work/stats.json"
noctule="$(build_counting)"

if [[ -n "$checking" ]]; then
    check
else
    for io in "${ios[@]}"; do
        measure "$io" "$work/figures.json"
        show "$work/figures.json"
    done
fi
