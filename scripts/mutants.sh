#!/usr/bin/env bash
# Planted bugs: are they found by the simulated world? scripts/mutants.sh [options] [NAME...]
#
# Each tests/mutants/NAME.patch is a small bug; its first line says which. It is applied to a copy of
# the tree, which is built and runs seeds until one breaks a rule; the table says how many that took,
# and which rule. Without names, all of them.
#
# Most are found by `noctule sim`. One with a second line `found-by: sim::crash` (or sim::journal) is
# found by that test of the library, which has seeds of its own; the table names the test as the rule.
# So it does with any other test of the library; one without seeds counts as one.
#
#   --check        only see whether all patches still apply
#   --seeds N      give up after so many (200)
#   --from S       the first seed (1)
#
# What was measured last stands in tests/mutants/FOUND.md.
#
# A patch that does not apply, or a bug that is not found, fails.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh

check=
seeds=200
from=1
names=()
while [[ $# -gt 0 ]]; do
    case $1 in
    --check) check=yes ;;
    --seeds) seeds=$2 && shift ;;
    --from) from=$2 && shift ;;
    -*) die "unknown option $1" ;;
    *) names+=("$1") ;;
    esac
    shift
done
if [[ ${#names[@]} -eq 0 ]]; then
    for patch in tests/mutants/*.patch; do
        names+=("$(basename "$patch" .patch)")
    done
fi

copy=$(target_dir)/mutants/tree
mkdir -p "$copy"
failed=0

# Makes the copy what the tree is. A file that has not changed keeps its time, one that has gets the
# present: so a build makes again what has changed since the one before, and no more.
restore() {
    local path
    for path in Cargo.toml Cargo.lock src benches tests; do
        diff -rqN "$path" "$copy/$path" || true
    done | sed -n 's/^Files \(.*\) and .* differ$/\1/p' | while read -r path; do
        if [[ -e $path ]]; then
            mkdir -p "$copy/$(dirname "$path")"
            cp "$path" "$copy/$path"
        else
            rm "$copy/$path"
        fi
    done
}

# A copy of what a build needs, with one bug.
plant() {
    restore
    patch --quiet --forward --strip=1 --no-backup-if-mismatch --directory="$copy" \
        <"tests/mutants/$1.patch"
}

# The bug is built anew each time: what is built sooner is soonest done.
build_and() {
    CARGO_TARGET_DIR=$(target_dir)/mutants CARGO_INCREMENTAL=1 cargo "$1" --locked --quiet \
        --profile sim --config profile.sim.lto='"off"' \
        --config profile.sim.package.noctule.opt-level=1 \
        --config profile.sim.package.noctule.debug=false \
        --manifest-path "$copy/Cargo.toml" "${@:2}"
}
printf '%-24s %8s  %-18s %s\n' bug seeds rule what
for name in "${names[@]}"; do
    what=$(head -1 "tests/mutants/$name.patch")
    if ! plant "$name" >/dev/null; then
        printf '%-24s %8s  %-18s %s\n' "$name" - "DOES NOT APPLY" "$what"
        failed=$((failed + 1))
        continue
    fi
    if [[ -n $check ]]; then
        printf '%-24s %8s  %-18s %s\n' "$name" - applies "$what"
        continue
    fi
    used=$seeds
    rule="NOT FOUND"
    found_by=$(sed -n '2s/^found-by: //p' "tests/mutants/$name.patch")
    if [[ -n $found_by ]]; then
        # The seeds of such a test begin with 0.
        if ! log=$(NOCTULE_CRASH_SEEDS=$seeds NOCTULE_JOURNAL_SEEDS=$seeds build_and test --lib \
            -- "$found_by" 2>&1); then
            failed_seed=$(sed -n 's/.*seed \([0-9]*\).*/\1/p' <<<"$log" | tail -1)
            [[ -n $failed_seed || $log == *"test result: FAILED"* ]] || die "$name: $log"
            failed_seed=${failed_seed:-0}
            used=$((failed_seed + 1))
            rule=$found_by
        fi
    else
        # What the bug leaves unused is no news.
        log=$(build_and build --bin noctule 2>&1) || die "$name: $log"
        for ((seed = from; seed < from + seeds; seed += 10)); do
            count=$((from + seeds - seed < 10 ? from + seeds - seed : 10))
            if ! log=$(timeout 300 "$(target_dir)/mutants/sim/noctule" sim --seed "$seed" \
                --seeds "$count" 2>/dev/null); then
                # One that hangs says nothing: the first of the ten, then.
                failed_seed=$(sed -n 's/^replay: noctule sim --seed \([0-9]*\).*/\1/p' <<<"$log")
                used=$((${failed_seed:-$seed} - from + 1))
                rule=$(sed -n 's/^\([a-z-]*\): .*/\1/p' <<<"$log" | head -1)
                rule=${rule:-crash}
                break
            fi
        done
    fi
    printf '%-24s %8d  %-18s %s\n' "$name" "$used" "$rule" "$what"
    if [[ $rule == "NOT FOUND" ]]; then
        failed=$((failed + 1))
    fi
done
echo "${#names[@]} bugs, $failed not found or not applicable"
[[ $failed -eq 0 ]]
