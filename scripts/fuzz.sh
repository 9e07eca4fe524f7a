#!/usr/bin/env bash
# Fuzzes one target for a while: scripts/fuzz.sh [target] [seconds] [libFuzzer options...]
#
# A target NAME is the binary fuzz_NAME of the feature `fuzz`, in tests/fuzz/NAME.rs, with a seed
# corpus in tests/fuzz/corpus/NAME and, if there is one, a dictionary in tests/fuzz/NAME.dict. What
# is found on the way goes to target/fuzz, not into the repository; a failing input is kept in
# target/fuzz/artifacts/NAME and is replayed by giving it as an option.
#
# The coverage instrumentation is an LLVM pass that the stable toolchain has: no nightly is needed.
set -euo pipefail
cd "$(dirname "$0")/.."

target="${1:-codec}"
seconds="${2:-60}"
shift $(($# < 2 ? $# : 2))

host="$(rustc -vV | sed -n 's/^host: //p')"
work="target/fuzz"
found="$work/corpus/$target"
artifacts="$work/artifacts/$target"
mkdir -p "$found" "$artifacts"

# Given by target, the flags do not reach build scripts and procedural macros.
CARGO_TARGET_DIR="$work" RUSTFLAGS="
    -Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares
    -Cdebug-assertions=on
    -Coverflow-checks=on
    -Cdebuginfo=line-tables-only
    -Copt-level=3
    -Ccodegen-units=16" \
    cargo build --quiet --features fuzz --bin "fuzz_$target" --target "$host"

options=(-max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1
    -artifact_prefix="$artifacts/")
if [[ -f "tests/fuzz/$target.dict" ]]; then
    options+=(-dict="tests/fuzz/$target.dict")
fi
exec "$work/$host/debug/fuzz_$target" "${options[@]}" "$@" "$found" "tests/fuzz/corpus/$target"
