#!/usr/bin/env bash
# Runs the conformance suite and writes its page, tests/mqtt/CONFORMANCE.md.
#
# usage: scripts/conformance.sh                  runs all black-box tests of MQTT, on both I/O backends
#                                                with one and two shards, and writes the page
#        scripts/conformance.sh --check          the same, but compares: fails when the page is stale
#        scripts/conformance.sh --list-missing   observable statements without a test; runs nothing
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh

page=tests/mqtt/CONFORMANCE.md

# Has tests/conformance.rs write something into a file.
ask() {
    NOCTULE_CONFORMANCE=$1 NOCTULE_CONFORMANCE_OUT=$2 NOCTULE_CONFORMANCE_LOG=${3:-} \
        cargo test --locked --quiet --test conformance -- --exact on_demand >"$temporary/out" 2>&1 ||
        { cat "$temporary/out" >&2; exit 1; }
}

# Runs the suite, and the unit tests that are cited.
run() {
    local unit
    ask list-unit-tests "$temporary/unit"
    mapfile -t unit <"$temporary/unit"
    cargo test --locked --no-fail-fast --test mqtt
    [[ ${#unit[@]} -eq 0 ]] || cargo test --locked --no-fail-fast --lib -- --exact "${unit[@]}"
}

# Runs all, and writes the page to a file.
write() {
    local log=$temporary/log
    [[ -z ${NOCTULE_TEST_IO:-}${NOCTULE_TEST_SHARDS:-}${NOCTULE_TEST_BROKER_ADDR:-} ]] ||
        die "the page is of all combinations: unset NOCTULE_TEST_*"
    run 2>&1 | tee "$log"
    ask write "$1" "$log"
}

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
case ${1:-} in
--list-missing)
    ask list-missing "$temporary/list"
    cat "$temporary/list"
    ;;
--check)
    write "$temporary/page.md"
    diff -u "$page" "$temporary/page.md" ||
        die "$page is stale; to write it anew: scripts/conformance.sh"
    ;;
'') write "$page" ;;
*) die "usage: scripts/conformance.sh [--check | --list-missing]" ;;
esac
