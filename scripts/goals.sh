#!/usr/bin/env bash
# Holds a published table against the goals of perf/goals.json, in Markdown.
#
#   scripts/goals.sh perf/results/<date>-<machine>
#
# A goal was set beside what a peer took on the same kind of machine ("then"). A shared machine is not
# the same from day to day, so here the goal is times what that peer took in this run ("now") over
# what it took then; both backends are medians of the rounds, as the peer is. Memory is held against its goal
# as it is. Latency has no goal but the best peer of the run.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh
need_packages jq:jq

[[ $# -eq 1 && -d "$1/runs" ]] || die "which results? a folder of perf/results"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

# Every run as one line: its broker, its scenario, and its figures by name.
for file in "$1"/runs/*/*/*/summary.json; do
    jq -c --arg file "${file#"$1/runs/"}" '($file | split("/")) as [$broker, $scenario] |
        {$broker, $scenario, p50: .latency_nanos.p50, p99: .latency_nanos.p99,
            figures: ((.figures | map({(.name): .value}) | add // {})
                + {cpu: .broker.cpu_micros_per_delivered})}' "$file"
done >"$work/runs"

jq -rs --slurpfile goals perf/goals.json '
    def middle: map(select(. != null)) | sort | if length == 0 then null
        else (.[(length - 1) / 2 | floor] + .[length / 2 | floor]) / 2 end;
    def short: if . == null then "–" elif . >= 100 then round elif . >= 10 then . * 10 | round / 10
        elif . >= 1 then . * 100 | round / 100 else . * 1000 | round / 1000 end | tostring;
    . as $runs |
    def of($broker; $scenario): [$runs[] | select(.broker == $broker and .scenario == $scenario)];
    def figure($broker; $goal): of($broker; $goal.scenario) |
        map(.figures[$goal.figure // "cpu"]) | middle;
    "| | goal | peer: then, now | goal here | noctule-uring | noctule-epoll | |",
    "|---|--:|---|--:|--:|--:|---|",
    ($goals[0][] | . as $goal |
        (if .peer then figure(.peer; $goal) else null end) as $now |
        (if .peer then (if $now then .goal * $now / .then else null end) else .goal end) as $here |
        [figure("noctule-uring"; $goal), figure("noctule-epoll"; $goal)] as $own |
        "| \(.row) | \(.goal) | \(if .peer then "\(.peer): \(.then), \($now | short)" else "" end) " +
        "| \($here | short) | \($own[0] | short) | \($own[1] | short) | " +
        (if $here == null then "no such peer here" elif ($own | min) <= .goal then "met as it is"
            elif ($own | min) <= $here then "met" else "missed" end) + " |"),
    (("latency-5k", "latency-20k") as $scenario | ("p50", "p99") as $key |
        ([$runs[] | select(.scenario == $scenario) | .broker] | unique |
            map({broker: ., value: (of(.; $scenario) | map(.[$key]) | middle / 1000)})) as $all |
        ($all | map(select(.broker | startswith("noctule") | not)) | min_by(.value)) as $best |
        ($all | map(select(.broker | startswith("noctule")))) as $own |
        select($best) | "| \($scenario), \($key), µs | the best peer | \($best.broker): \($best.value | short) " +
        "| \($best.value | short) | " + ($own | sort_by(.broker) | reverse | map(.value | short) | join(" | ")) +
        " | \(if ($own | map(.value) | min) <= $best.value then "met" else "missed" end) |")' "$work/runs"
