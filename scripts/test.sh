#!/usr/bin/env bash
# All that CI runs, stage by stage. Installs what the tests need on a Debian-like machine that has
# Rust; needs nothing else.
#
# usage: scripts/test.sh [STAGE...]      all stages, or only these, in the order given
#
#   format       rustfmt
#   lint         clippy with all warnings denied; shellcheck
#   unit         unit, property, documentation and house-rule tests
#   loom         the handshake between shards, in all orders of its steps (bounded)
#   sim          the broker in simulated worlds: past failures, and fresh seeds
#   conformance  MQTT by raw packets against a real process, both I/O backends, one and two shards;
#                fails as well when tests/mqtt/CONFORMANCE.md is not what this run gives
#   blackbox     everything else with a real process, on the same four
#   clients      real client libraries in C, Python, JavaScript and Rust, on the same four
#   cost         system calls, allocations and bytes copied per message, against perf/cost-bounds.json
#   instructions
#                what a message takes through codec and broker, against
#                perf/instruction-bounds.json
#   fuzz         made-up bytes, some seconds for each target of tests/fuzz
#
#   deny         licences, advisories and sources by cargo-deny; only when asked for: it needs the
#                tool, and an advisory of today is not a fault of this commit. Licences and sources
#                are held by the unit stage as well.
#
# NOCTULE_TEST_IO and NOCTULE_TEST_SHARDS restrict the black-box stages to a combination. At the end
# stand the table of stages, what failed with the lines around it, and as the last line "N passed, N
# failed"; the exit code says the same.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh

STAGES=(format lint unit loom sim conformance blackbox clients cost instructions fuzz)
# Nothing is skipped: a test that cannot run here fails.
export CI=${CI:-true}
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}

stage_format() {
    need_component rustfmt
    cargo fmt --check
}

stage_lint() {
    need_component clippy
    cargo clippy --locked --all-targets -- -D warnings
    need_packages shellcheck:shellcheck
    shellcheck scripts/*.sh perf/brokers/*.sh .ci/run
}

stage_unit() {
    cargo test --locked --no-fail-fast --lib --bins --test tidy --test dependencies \
        --test conformance
    cargo test --locked --doc
}

stage_loom() {
    LOOM_MAX_PREEMPTIONS=${LOOM_MAX_PREEMPTIONS:-3} \
        cargo test --locked --features loom --lib loom_
}

stage_conformance() {
    scripts/conformance.sh --check
}

# Every test of tests/ that no other stage runs, so that none is forgotten.
stage_blackbox() {
    need_packages strace:strace
    # The report of `noctule compare` is looked at in a browser.
    command -v chromium >/dev/null || command -v chromium-browser >/dev/null ||
        command -v google-chrome >/dev/null ||
        need_packages chromium-headless-shell:chromium-headless-shell
    local file name tests=()
    for file in tests/*.rs tests/*/main.rs; do
        name=${file#tests/}
        name=${name%/main.rs}
        name=${name%.rs}
        case $name in
        tidy | dependencies | conformance | mqtt | clients | sim | '*') ;;
        *) tests+=(--test "$name") ;;
        esac
    done
    [[ ${#tests[@]} -gt 0 ]] || die "no black-box tests"
    cargo test --locked --no-fail-fast "${tests[@]}"
    # A part of MQTT once more, on a kernel that gives everything in pieces and late.
    NOCTULE_TEST_FAULTS=7:quiet cargo test --locked --no-fail-fast --test mqtt -- \
        connect:: qos:: retained:: session:: takeover::
}

stage_clients() {
    install_clients
    cargo test --locked --no-fail-fast --test clients
}

# Past failures and sameness with all assertions; then seeds that nobody has run before. The test
# builds the binary as well, as the black-box tests use it: slower than the profile `sim`, and
# sooner there.
stage_sim() {
    cargo test --locked --test sim
    scripts/mutants.sh --check
    scripts/sim.sh --binary "$(target_dir)/debug/noctule" --seeds "${NOCTULE_SIM_SEEDS:-200}"
}

stage_cost() {
    scripts/cost.sh --check
}

stage_instructions() {
    scripts/instructions.sh --check
}

stage_fuzz() {
    # libFuzzer is C++.
    need_packages c++:g++
    scripts/fuzz.sh all "${NOCTULE_FUZZ_SECONDS:-20}"
}

stage_deny() {
    command -v cargo-deny >/dev/null || die "cargo install --locked cargo-deny"
    cargo deny check
}

# A part of the Rust toolchain that a minimal installation lacks.
need_component() {
    local command=${1/rustfmt/fmt}
    cargo "$command" --version >/dev/null 2>&1 || rustup component add "$1"
}

# The client libraries: system packages, a Python environment in target/, node_modules beside the
# scripts; all pinned.
install_clients() {
    need_packages mosquitto_sub:mosquitto-clients python3:python3 node:nodejs npm:npm
    python3 -c 'import ensurepip, venv' 2>/dev/null || install_packages python3-venv
    local venv=target/clients/venv pins=tests/clients/requirements.txt
    if ! cmp -s "$pins" "$venv/installed.txt"; then
        rm -rf "$venv"
        python3 -m venv "$venv"
        "$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$pins"
        cp "$pins" "$venv/installed.txt"
    fi
    local lock=tests/clients/package-lock.json modules=tests/clients/node_modules
    if ! cmp -s "$lock" "$modules/installed.json"; then
        npm ci --prefix tests/clients --no-audit --no-fund --ignore-scripts
        cp "$lock" "$modules/installed.json"
    fi
}

# ---- running the stages ----

passed=0
failed=0
failures=()
times=()
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

# Runs one stage with a heading and its time. Its tests are counted; one that fails in another way
# counts as one failure.
run_stage() {
    local stage=$1 status=0 start=$SECONDS log=$logs/$1 counts
    heading "$stage"
    # In a subshell of its own, for `set -e` to hold in it: as a condition it would not.
    set +e
    (
        set -e
        "stage_$stage"
    ) 2>&1 | tee "$log"
    status=${PIPESTATUS[0]}
    set -e
    counts=$(awk '/^test result:/ { for (i = 2; i <= NF; i++) {
        if ($i == "passed;") passed += $(i - 1); if ($i == "failed;") failed += $(i - 1) } }
        END { print passed + 0, failed + 0 }' "$log")
    passed=$((passed + ${counts% *}))
    failed=$((failed + ${counts#* }))
    if [[ $status -ne 0 ]]; then
        failures+=("$stage")
        if [[ ${counts#* } -eq 0 ]]; then
            failed=$((failed + 1))
        fi
    elif [[ $counts == "0 0" ]]; then
        passed=$((passed + 1))
    fi
    times+=("$(printf '%-12s %4d s  %s' "$stage" $((SECONDS - start)) \
        "$([[ $status -eq 0 ]] && echo ok || echo FAILED)")")
}

# What went wrong in the log of a stage: the names of failed tests, and the lines around each
# failure; the end of the log where nothing in it looks like one.
failed_lines() {
    grep -E '^test .*(FAILED|has overflowed)$' "$1" || true
    awk -v context=30 '
        function mark(from, to) { for (; from <= to; from++) marked[from] = 1 }
        { line[NR] = $0 }
        # What a failed test has printed: its panic, and its last lines.
        /^---- .* ----$/ { show(); output = NR }
        /^failures:$/ || /^test result:/ { show() }
        / panicked at / { mark(NR - 1, NR + 5) }
        /^replay: / { mark(NR - 3, NR + 1) }
        /^error(\[|:)/ || /^==[0-9]+== ?ERROR/ { mark(NR - 1, NR + 12) }
        function show() {
            if (output) {
                mark(output, output)
                mark(NR - output > context ? NR - context : output, NR - 1)
            }
            output = 0
        }
        END {
            for (n in marked) if (n > 0 && n <= NR) any = 1
            if (!any) mark(NR - context + 1, NR)
            for (n = 1; n <= NR; n++) {
                if (!(n in marked)) continue
                if (last && n > last + 1) print "[...]"
                print line[n]
                last = n
            }
        }' "$1" | head -400
}

main() {
    command -v cargo >/dev/null || die "no cargo: install Rust from https://rustup.rs"
    need_packages cc:gcc
    local stage
    [[ $# -gt 0 ]] || set -- "${STAGES[@]}"
    for stage in "$@"; do
        declare -F "stage_$stage" >/dev/null || die "no stage $stage; there are ${STAGES[*]} deny"
    done
    for stage in "$@"; do
        run_stage "$stage"
    done
    heading summary
    printf '%s\n' "${times[@]}"
    for stage in "${failures[@]}"; do
        heading "failed in $stage"
        failed_lines "$logs/$stage"
    done
    [[ ${#failures[@]} -eq 0 ]] || printf '\nfailed: %s\n' "${failures[*]}"
    echo "$passed passed, $failed failed"
    [[ ${#failures[@]} -eq 0 && $failed -eq 0 ]]
}

main "$@"
