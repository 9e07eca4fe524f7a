#!/usr/bin/env bash
# Planted bugs: are they found by the simulated world? scripts/mutants.sh [options] [NAME...]
#
# Each tests/mutants/NAME.patch is a small bug; its first line says which. It is applied to a copy of
# the tree, which is built and runs seeds until one breaks a rule; the table says how many that took,
# and which rule. Without names, all of them.
#
# Most are found by `noctule sim`. One with a second line `found-by: sim::crash` (or sim::journal) is
# found by that test of the library, which has seeds of its own; the table names the test as the rule.
#
#   --check        only see whether all patches still apply
#   --seeds N      give up after so many (200)
#   --from S       the first seed (1)
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
rm -rf "$copy"
mkdir -p "$copy"
failed=0

# A fresh copy of what a build needs, with one bug.
plant() {
    # Files that have not changed keep their times, so that little is built again.
    cp -a -u Cargo.toml Cargo.lock src benches tests "$copy"
    for file in "${touched[@]}"; do
        cp "$file" "$copy/$file"
    done
    touched=()
    mapfile -t touched < <(sed -n 's,^+++ b/\([^[:space:]]*\).*,\1,p' "tests/mutants/$1.patch")
    patch --quiet --forward --strip=1 --directory="$copy" <"tests/mutants/$1.patch"
}

# The bug is built anew each time: what is built sooner is soonest done.
build_and() {
    CARGO_TARGET_DIR=$(target_dir)/mutants cargo "$1" --locked --quiet --profile sim \
        --config profile.sim.package.noctule.opt-level=1 \
        --config profile.sim.package.noctule.debug=false \
        --manifest-path "$copy/Cargo.toml" "${@:2}"
}

touched=()
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
            [[ -n $failed_seed ]] || die "$name: $log"
            used=$((failed_seed + 1))
            rule=$found_by
        fi
    else
        build_and build --bin noctule
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
