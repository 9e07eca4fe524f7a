#!/usr/bin/env bash
# How many instructions a delivered message takes through codec and broker, counted by callgrind
# (package valgrind): the same on a busy machine as on an idle one, where time is not. Optimised as
# released. perf/README.md says how to read it.
#
#   scripts/instructions.sh [CASE...]      all cases of benches/instructions.rs, or these
#   scripts/instructions.sh --check        all, against perf/instruction-bounds.json: CI's gate
#
# KEEP=DIR keeps callgrind's files there, for callgrind_annotate.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh

need_packages valgrind:valgrind
program=$(cargo bench --locked --bench instructions --no-run --message-format short 2>&1 |
    tee /dev/stderr | sed -n 's/.*Executable.*(\(.*\))$/\1/p')
[[ -x $program ]] || die "no program was built"
out=${KEEP:-$(mktemp -d)}
[[ -n ${KEEP:-} ]] || trap 'rm -rf "$out"' EXIT

# Messages delivered and instructions, of a run of case $1 with about $2 messages.
count() {
    valgrind --tool=callgrind --callgrind-out-file="$out/$1.$2" "$program" "$1" "$2" 2>&1 |
        awk '/Collected/ { instructions = $4 } /^[0-9]+$/ { messages = $1 }
            END { print messages, instructions }'
}

bounds=
if [[ "${1:-}" == --check ]]; then
    need_packages jq:jq
    bounds=perf/instruction-bounds.json
    shift
fi
cases=("$@")
[[ $# -gt 0 ]] || mapfile -t cases < <("$program")
failed=0
printf '%-16s %s\n' case 'instructions a message'
for case in "${cases[@]}"; do
    read -r messages instructions < <(count "$case" 20000)
    read -r more more_instructions < <(count "$case" 60000)
    each=$(((more_instructions - instructions) / (more - messages)))
    if [[ -z "$bounds" ]]; then
        printf '%-16s %8d\n' "$case" "$each"
        continue
    fi
    bound=$(jq --arg case "$case" '.[$case] // error("no bound for \($case)")' "$bounds")
    printf '%-16s %8d of %d\n' "$case" "$each" "$bound"
    [[ "$each" -le "$bound" ]] || failed=$((failed + 1))
done
[[ "$failed" == 0 ]] || die "$failed above their bound: perf/README.md says what to do"
