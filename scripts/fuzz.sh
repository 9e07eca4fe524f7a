#!/usr/bin/env bash
# Fuzzes one target for a while, or all: scripts/fuzz.sh [target] [seconds] [libFuzzer options...]
#
#   scripts/fuzz.sh codec 600        one target, its output as it comes
#   scripts/fuzz.sh all 20           each target in turn; its output is shown when it fails
#   scripts/fuzz.sh night 28800      all targets for a night, on all CPUs; at its end what is worth
#                                    keeping of the new inputs stands in target/fuzz/kept
#
# A target NAME is the binary fuzz_NAME of the feature `fuzz`, in tests/fuzz/NAME.rs, with a seed
# corpus in tests/fuzz/corpus/NAME and, if there is one, a dictionary in tests/fuzz/NAME.dict. What
# is found on the way goes to target/fuzz, not into the repository; a failing input is kept in
# target/fuzz/artifacts/NAME and is replayed by giving it as an option.
#
# The coverage instrumentation is an LLVM pass that the stable toolchain has: no nightly is needed.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh

asked="${1:-codec}"
seconds="${2:-60}"
shift $(($# < 2 ? $# : 2))

work="target/fuzz"
programs="$(target_dir)/debug"

targets=()
case $asked in
all | night)
    for file in tests/fuzz/*.rs; do
        targets+=("$(basename "$file" .rs)")
    done
    ;;
*) targets=("$asked") ;;
esac

# One build for all of them. The flags are for our own crate: what it uses is what the tests use.
mkdir -p "$work"
cat >"$work/rustc" <<'END'
#!/bin/sh
exec "$@" -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Copt-level=3 -Ccodegen-units=16
END
chmod +x "$work/rustc"
RUSTC_WORKSPACE_WRAPPER="$PWD/$work/rustc" cargo build --quiet --profile test --features fuzz \
    "${targets[@]/#/--bin=fuzz_}"

# Runs target $1; the rest are options of libFuzzer.
fuzz() {
    local target=$1 options=() found="$work/corpus/$1" artifacts="$work/artifacts/$1"
    shift
    mkdir -p "$found" "$artifacts"
    if [[ -f "tests/fuzz/$target.dict" ]]; then
        options+=(-dict="tests/fuzz/$target.dict")
    fi
    "$programs/fuzz_$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
        -print_final_stats=1 -artifact_prefix="$artifacts/" "${options[@]}" "$@" "$found" \
        "tests/fuzz/corpus/$target"
}

# What a target did, from its log.
figures() {
    local executed
    executed=$(sed -n 's/^stat::number_of_executed_units: *//p' "$2" | awk '{ n += $1 } END { print n + 0 }')
    echo "$1: $executed inputs in $seconds s, none failed"
}

case $asked in
all)
    for target in "${targets[@]}"; do
        log="$work/$target.log"
        if ! fuzz "$target" "$@" >"$log" 2>&1; then
            grep -v '^#[0-9]' "$log" | tail -100
            echo "replay: scripts/fuzz.sh $target 60 $work/artifacts/$target/..."
            exit 1
        fi
        figures "$target" "$log"
    done
    ;;
night)
    seconds=$((seconds / ${#targets[@]}))
    for target in "${targets[@]}"; do
        log="$work/$target.log"
        # It goes on behind an input that needs too much of something; a crash ends it.
        if ! fuzz "$target" -fork="$(nproc)" -ignore_timeouts=1 -ignore_ooms=1 "$@" \
            >"$log" 2>&1; then
            tail -100 "$log"
            exit 1
        fi
        kept="$work/kept/$target"
        mkdir -p "$kept"
        "$programs/fuzz_$target" -merge=1 "$kept" "tests/fuzz/corpus/$target" \
            "$work/corpus/$target" >"$work/$target.merge.log" 2>&1
        echo "$target: $seconds s, $(find "$kept" -type f | wc -l) inputs in $kept," \
            "$(find "$work/artifacts/$target" -type f | wc -l) in $work/artifacts/$target"
    done
    ;;
*) fuzz "$asked" "$@" ;;
esac
