#!/usr/bin/env bash
# What an acknowledgement that lasts costs: QoS 1 to sessions without a connection, at every
# durability and on both backends, beside peers that keep things on disk, beside redb, and beside the
# disk itself.
#
#   scripts/durable.sh [--rounds N] [--out DIR] [--peer NAME=PROGRAM]... [--broker NAME]...
#                      [--broker-cpu N] [--generator-cpu N]
#
# A row is PUBLISHERSxUNACKNOWLEDGED, each publisher with a topic and an absent session of its own.
# Brokers are noctule-uring-none ... noctule-epoll-power, and the peers of perf/brokers/durable that
# are on the PATH or given; Debian's Mosquitto is installed when it is missing. Each run has a broker
# of its own on loopback, on one CPU, and the generator on another; all of it in turns, and in each
# round also what commits cost without clients (perf/commits.rs), and how fast a start reads.
#
# Results go to perf/results/<date>-durable-<machine>, a README with all tables among them; --out DIR
# that has rounds already adds to them, and --rounds 0 makes its README anew. Data is made where TMPDIR says: it has to be a disk.
# NOCTULE=PROGRAM measures with, and is, one that is built already; COMMITS=PROGRAM the same for
# perf/commits.rs.
set -euo pipefail
cd "$(dirname "$0")/.."
peers_folder=perf/brokers/durable
# shellcheck source=scripts/lib.sh
source scripts/lib.sh
# shellcheck source=scripts/brokers.sh
source scripts/brokers.sh

# Publishers, unacknowledged of each, messages, messages where a peer is measured.
rows=("1 1 20000 10000" "10 1 100000 50000" "100 1 300000 100000" "1000 1 500000 100000"
    "1000 20 2000000 200000")
# Records that a start reads.
recovered=2000000

rounds=3
out=
broker_cpu=0
generator_cpu=1
brokers=()
peers=()
command_line="scripts/durable.sh${*:+ $*}"
while [[ $# -gt 0 ]]; do
    [[ $# -ge 2 ]] || die "$1 needs a value"
    case "$1" in
    --rounds) rounds="$2" ;;
    --out) out="$2" ;;
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

need_packages jq:jq taskset:util-linux
[[ "$(nproc --all)" -ge 2 ]] || die "broker and generator need a CPU each"
if [[ ${#brokers[@]} -eq 0 ]]; then
    need_packages mosquitto:mosquitto
    for level in none process power; do
        brokers+=("noctule-uring-$level" "noctule-epoll-$level")
    done
    brokers+=(mosquitto mosquitto_1s)
    ! has_broker flashmq || brokers+=(flashmq)
    for name in "${peers[@]}"; do
        [[ " ${brokers[*]} " == *" $name "* ]] || brokers+=("$name")
    done
fi
for name in "${brokers[@]}"; do
    has_broker "$name" || die "$name: there is no $broker_program; give it by --peer $name=/path/to/it"
done
noctule="$(build_noctule)"
commits="${COMMITS:-}"
if [[ -z "$commits" ]]; then
    cargo build --release --quiet --example commits
    commits="$(target_dir)/release/examples/commits"
fi
[[ -n "$out" ]] || out="perf/results/$(date -u +%F)-durable-$(machine_name)"
mkdir -p "$out"
work="$(mktemp -d)"
clean_up() {
    end_broker
    rm -rf "$work"
}
trap clean_up EXIT
[[ "$(stat -f -c %T "$work")" != tmpfs ]] || die "$work is in memory: set TMPDIR to a directory on a disk"

# A run of one broker in a folder of its own: where, the scenario, and flags of noctule bench.
measure() {
    local broker="$1" folder="$2" scenario="$3"
    shift 3
    start_broker "$broker"
    timeout 300 "$noctule" bench "perf/scenarios/$scenario.toml" --port "$port" --broker-pid "$broker_pid" \
        --cpus "$generator_cpu" --out "$folder" --quiet "$@" >"$work/report" 2>&1 || true
    end_broker
    [[ -f "$folder/summary.json" ]] || die "$broker, $folder: $(tail -n 1 "$work/report")"
    # Percentiles as text, and what single messages took: the summary is enough here.
    rm -f "$folder"/*.hgrm "$folder"/*.hlog
}

# A broker on the data directory of the last one, with a bound that all of it is within.
serve() {
    rm -f "$work/ready"
    taskset -c "$broker_cpu" "$noctule" serve --listen 127.0.0.1:0 --io uring --shards 1 --data "$work/broker" \
        --ready-file "$work/ready" --stats-file "$work/started" --queue-len-max 100000000 >"$work/log" 2>&1 &
    broker_pid=$!
    for _ in {1..1500}; do
        port="$(jq -er '.listeners[0] | split(":")[-1]' "$work/ready" 2>/dev/null)" && return
        sleep 0.02
    done
    die "it does not start: $(tail -n 3 "$work/log")"
}

# How long a start takes that reads so many messages of an absent session.
recovery() {
    rm -rf "$work/broker" "$work/started"
    serve
    "$noctule" sub -p "$port" -c -i archive -x 86400 -q 1 -t 'recovery/#' -W 1 >/dev/null 2>&1 || true
    awk -v n="$recovered" 'BEGIN { for (i = 0; i < n; i++) printf "%064d\n", i }' |
        taskset -c "$generator_cpu" "$noctule" pub -p "$port" -i source -q 1 -t recovery/x -l -M 1000
    kill -9 "$broker_pid"
    wait "$broker_pid" 2>/dev/null || true
    rm -f "$work/started"
    serve
    end_broker
    tail -n 1 "$work/started" | jq -c '.total.journal | {recovered_records, recovered_messages, recovery_ms}'
}

first=1
while [[ -e "$out/rounds/$first" ]]; do first=$((first + 1)); done
load_before="$(cut -d ' ' -f 1-3 /proc/loadavg)"
for ((round = first; round < first + rounds; round++)); do
    heading "round $round: commits"
    folder="$out/rounds/$round"
    mkdir -p "$folder"
    taskset -c "$broker_cpu" "$commits" "$work" 1 >"$folder/commits.jsonl"
    cat "$folder/commits.jsonl"
    for broker in "${brokers[@]}"; do
        # One message under way, and nothing to be kept.
        [[ "$broker" != noctule-*-power ]] ||
            measure "$broker" "$folder/ping-pong/$broker" alone-on-the-wire --pairs 1 --warm-up 0.5 --duration 1.5
    done
    for row in "${rows[@]}"; do
        read -r publishers inflight messages fewer <<<"$row"
        heading "round $round: $publishers publishers, $inflight unacknowledged"
        for broker in "${brokers[@]}"; do
            [[ "$broker" == noctule-* ]] || messages="$fewer"
            measure "$broker" "$folder/${publishers}x$inflight/$broker" offline-drain \
                --pairs "$publishers" --inflight "$inflight" --messages "$messages"
            jq -r --arg broker "$broker" '[.figures[] | select(.name | test("tor")) | "\(.name) \(.value | . * 100 | round / 100)"] |
                "  \($broker): \(join(", "))"' "$folder/${publishers}x$inflight/$broker/summary.json"
        done
    done
    [[ " ${brokers[*]} " != *" noctule-uring-power "* ]] || recovery >"$folder/recovery.json"
done
{ grep -rlF -e "$work/" -e "$PWD/" "$out/rounds" || true; } |
    xargs -r sed -i "s|$work/|WORK/|g; s|$noctule|noctule|g; s|$PWD/||g"

# Every run as one line: row, broker, and its figures.
find "$out/rounds" -name summary.json | while read -r file; do
    jq -c --arg file "${file#"$out/rounds/"}" '($file | split("/")) as [$round, $row, $broker] |
        (.figures | map({(.name): .value}) | add) as $f | {round: $round, row: $row, broker: $broker,
            rate: $f["stored a second"], p50: (($f["store p50"] // 0) * 1000), p99: (($f["store p99"] // 0) * 1000),
            cpu: $f["broker CPU for each stored"], bytes: $f["broker bytes written for each stored"],
            drain: .broker.cpu_micros_per_delivered, drained: .delivered_per_second, lost: .faults.lost,
            ping_pong: (.latency_nanos.p50 / 1000)}' "$file"
done >"$work/all"
for file in "$out"/rounds/*/commits.jsonl; do
    jq -c --arg round "$(basename "$(dirname "$file")")" '. + {round: $round}' "$file"
done >"$work/commits"
cat "$out"/rounds/*/recovery.json >"$work/recovery" 2>/dev/null || true

# Of several rounds.
functions='
    def round2: if . >= 1000 then round elif . >= 100 then . * 10 | round / 10 else . * 100 | round / 100 end;
    def middle: sort | (.[(length - 1) / 2 | floor] + .[length / 2 | floor]) / 2;
    def spread: map(select(. != null)) | if length == 0 then "–" elif min == max then "\(min | round2)"
        else "\(middle | round2) (\(min | round2) to \(max | round2))" end;'
table() {
    jq -rs --arg row "$1" --arg order "${brokers[*]}" "$functions"'
        map(select(.row == $row)) | group_by(.broker) | map({(.[0].broker): .}) | add as $by |
        $order | split(" ")[] | select($by[.]) | . as $broker | $by[$broker] |
        "| \($broker) | \(map(.rate) | spread) | \(map(.p50) | spread) | \(map(.p99) | spread) | " +
        "\(map(.cpu) | spread) | \(map(.bytes) | spread) | \(map(.drain) | spread) | \(map(.drained) | spread) |"' "$work/all"
}
goals() {
    jq -rs --slurpfile commits "$work/commits" --slurpfile recovery "$work/recovery" "$functions"'
        . as $all | def of($row; $broker; $key): [$all[] | select(.row == $row and .broker == $broker) | .[$key]] |
            if length == 0 then null else middle end;
        def verdict($met): if $met then "met" else "missed" end;
        # Of one round: what the disk does changes.
        def single($power): [$commits[] | select(.store == "raw") | . as $raw |
            [$all[] | select(.round == $raw.round and .broker == $power)] |
            {rate: (.[] | select(.row == "1x1") | .rate), ping: (.[] | select(.row == "ping-pong") | .ping_pong)} |
            .rate * ($raw.p50_us + .ping) / 1e6];
        (("uring", "epoll") | . as $io | "noctule-\($io)-power" as $power | "noctule-\($io)-" as $own |
            (single($power) | select(length > 0) |
                "| one in flight, \($io): rate times (raw commit p50 + ping-pong p50) of the same round | 0.8 | \(spread) | \(verdict(min >= 0.8)) |"),
            (of("1000x20"; $power; "rate") | "| 1000 publishers, 20 unacknowledged, \($io), power | 600000 a second | \(round) | \(verdict(. >= 600000)) |"),
            (of("1000x20"; $own + "process"; "rate") / of("1000x20"; $own + "none"; "rate") |
                "| process against none, rate, \($io) | 0.85 | \(round2) | \(verdict(. >= 0.85)) |"),
            (of("1000x20"; $own + "process"; "cpu") / of("1000x20"; $own + "none"; "cpu") |
                "| process against none, CPU, \($io) | 1.15 | \(round2) | \(verdict(. <= 1.15)) |"),
            (("none", "power") | . as $level | of("1000x20"; $own + $level; "cpu") |
                "| store, \($io), \($level) | 0.6 µs | \(round2) | \(verdict(. <= 0.6)) |"),
            (("none", "power") | . as $level | of("1000x20"; $own + $level; "drain") |
                "| drain, \($io), \($level) | 0.3 µs | \(round2) | \(verdict(. <= 0.3)) |")),
        ($recovery | select(length > 0) | map(.recovered_records / .recovery_ms * 1000) |
            "| recovery | 1000000 records a second | \(spread) | \(verdict(middle >= 1000000)) |")' "$work/all"
}
commit_table() {
    jq -rs "$functions"'group_by([.records, .store])[] |
        "| \(.[0].store) | \(.[0].records) | \(map(.records_per_second) | spread) | \(map(.p50_us) | spread) | " +
        "\(map(.p99_us) | spread) | \(map(.cpu_us) | spread) | \(map(.bytes) | spread) |"' "$work/commits"
}
some="$(find "$out/rounds" -name environment.json | sort | head -n 1)"
count="$(find "$out/rounds" -mindepth 1 -maxdepth 1 | wc -l)"
{
    echo "# What lasts, and what it costs: $(date -u +%F)"
    echo
    echo "\`$command_line\`, $count round(s) in turns, load average $load_before before and"
    echo "$(cut -d ' ' -f 1-3 /proc/loadavg) after the last of them. Median (lowest to highest of the rounds)."
    jq -r '.machine // {} | "\(.cpu_model), \(.cpus) CPUs, \(.kernel), \(.system), \(.virtualisation)."' "$some"
    echo
    echo "QoS 1, 64 B, to sessions without a connection, one for each publisher; broker on CPU $broker_cpu, generator"
    echo "on CPU $generator_cpu. What each broker has kept when its acknowledgement leaves: \`none\` nothing;"
    echo "\`process\` what survives the process; \`power\` what survives a power cut, as far as the device"
    echo "tells the truth; mosquitto what it saved last (every 1800 s; mosquitto_1s every second, all of it anew);"
    echo "flashmq what it saved last (every 3600 s). A virtual disk may answer a flush from memory."
    echo
    echo "## Goals"
    echo
    echo "| | goal | here | |"
    echo "|---|--:|--:|---|"
    goals
    for row in "${rows[@]}"; do
        read -r publishers inflight _ _ <<<"$row"
        echo
        echo "## $publishers publishers, $inflight unacknowledged each"
        echo
        echo "| | acknowledged a second | p50 µs | p99 µs | CPU µs each | bytes written each | CPU µs each, drained | drained a second |"
        echo "|---|--:|--:|--:|--:|--:|--:|--:|"
        table "${publishers}x$inflight"
    done
    echo
    echo "## Commits without clients"
    echo
    echo "The same records, so many to a commit, one commit under way; \`raw\` is one block, O_DIRECT and O_DSYNC."
    echo
    echo "| | records a commit | records a second | p50 µs | p99 µs | CPU µs a record | bytes written a record |"
    echo "|---|--:|--:|--:|--:|--:|--:|"
    commit_table
    echo
    echo "## Recovery"
    echo
    echo "A start after \`kill -9\` with $recovered messages of 64 B for one session: records a second, all included"
    echo "until it could serve: $(jq -rs "$functions"'map(.recovered_records / .recovery_ms * 1000) | spread' "$work/recovery")."
} >"$out/README.md"
sed -n '/^## Goals/,/^## [0-9]/p' "$out/README.md"
echo "all of it: $out/README.md"
