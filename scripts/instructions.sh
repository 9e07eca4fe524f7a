#!/usr/bin/env bash
# How many instructions a delivered message takes through codec and broker, counted by callgrind
# (package valgrind): the same on a busy machine as on an idle one, where time is not. Optimised as
# released. perf/README.md says how to read it.
#
#   scripts/instructions.sh [CASE...]      all cases of benches/instructions.rs, or these
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

cases=("$@")
[[ $# -gt 0 ]] || mapfile -t cases < <("$program")
printf '%-16s %s\n' case 'instructions a message'
for case in "${cases[@]}"; do
    read -r messages instructions < <(count "$case" 20000)
    read -r more more_instructions < <(count "$case" 60000)
    printf '%-16s %8d\n' "$case" \
        $(((more_instructions - instructions) / (more - messages)))
done
