#!/usr/bin/env bash
# Memory errors that tests alone do not show: scripts/sanitize.sh [STAGE...]
#
#   library    AddressSanitizer over the unit tests of what has unsafe code or raw bytes: codec,
#              buffers, journal, lanes, the kernel's backends, the event loop
#   address    AddressSanitizer over a broker on each backend, under load
#   valgrind   memcheck over the unit tests of codec, buffers and lanes, and over a broker on epoll
#              under load; on io_uring it has recovered its journal within a second under valgrind
#              3.19.0, and was not listening a minute later
#   miri       the codec's and the buffers' unit tests, where a toolchain has Miri; without one it says
#              so and goes on
#
# Without a stage, all of them. Leaks count as errors, under valgrind those that are certain; none is
# suppressed. It needs no nightly: RUSTC_BOOTSTRAP=1 opens the sanitizer of any toolchain. CI runs
# none of this: the stage `library` alone builds all anew, and took eight minutes on two busy CPUs.
#
# Load is NOCTULE_SANITIZE_SECONDS (1) of each line of LOADS, on two shards with a journal.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh

# What `noctule bench` is to do: all ways of a message, large ones, queues that go to the disk and
# back, sessions that come and go.
LOADS=(
    "pairs --pairs 4 --qos 0"
    "pairs --pairs 4 --qos 1 --payload 16,5000,70000 --mqtt 5"
    "pairs --pairs 4 --qos 2"
    "fan-out --subscribers 20 --payload 20000"
    "route --filters 20"
    "shared --publishers 2 --subscribers 4 --qos 1 --mqtt 5"
    "request-response --publishers 2 --subscribers 2"
    "slow-subscriber --qos 1 --payload 2000"
    "retained --messages 60"
    "offline --pairs 3 --messages 60 --qos 2"
    "churn --clients 10"
    "storm --clients 20 --storm-every 1"
)

export ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=1
seconds=${NOCTULE_SANITIZE_SECONDS:-1}
host=$(rustc -vV | sed -n 's/^host: //p')
target=$(target_dir)
work=$(mktemp -d)
broker=
clean_up() {
    [[ -z $broker ]] || kill -KILL "$broker" 2>/dev/null || true
    rm -rf "$work"
}
trap clean_up EXIT

# Puts a broker on backend $1, given as a command, under each load, and stops it.
under_load() {
    local io=$1 ready=$work/ready.json log=$work/broker.log load port count delivered=0 code=0
    shift
    rm -rf "$ready" "$work/data"
    "$@" serve --listen 127.0.0.1:0 --ready-file "$ready" --io "$io" --shards 2 \
        --data "$work/data" >"$log" 2>&1 &
    broker=$!
    for _ in $(seq 600); do
        if [[ -s $ready ]] || ! kill -0 "$broker" 2>/dev/null; then
            break
        fi
        sleep 0.1
    done
    port=$(sed -n 's/.*"listeners":\["127.0.0.1:\([0-9]*\)".*/\1/p' "$ready" || true)
    if [[ -z $port ]]; then
        cat "$log"
        die "no broker on $io"
    fi
    echo "a broker on $io, messages or sessions of each load:"
    for load in "${LOADS[@]}"; do
        # How fast it is, and whether all comes in time, is of no interest here; nor is a load that
        # is too slow to deliver anything, which shows as 0, as long as most do.
        # shellcheck disable=SC2086
        "$target/debug/noctule" bench $load --port "$port" --warm-up 0 --duration "$seconds" \
            --drain 5 --quiet >"$work/bench.log" 2>&1 || true
        count=$(sed -n 's/^ *delivered.*(\([0-9,]*\) in all).*/\1/p' "$work/bench.log")
        if ! kill -0 "$broker" 2>/dev/null; then
            cat "$log"
            die "$load: the broker has ended"
        fi
        printf '  %-60s %10s\n' "$load" "${count:-?}"
        [[ ${count:-0} == 0 ]] || delivered=$((delivered + 1))
    done
    [[ $((2 * delivered)) -gt ${#LOADS[@]} ]] ||
        die "only $delivered of ${#LOADS[@]} loads have delivered anything on $io"
    kill -TERM "$broker"
    wait "$broker" || code=$?
    broker=
    if [[ $code -ne 0 ]]; then
        cat "$log"
        die "the broker on $io has ended with $code"
    fi
}

# Cargo, for code that the sanitizer watches. Given by target, the flag does not reach build scripts
# and procedural macros.
with_address_sanitizer() {
    local command=$1
    shift
    RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=$target/address \
        cargo "$command" --locked --quiet --target "$host" "$@"
}

stage_library() {
    # The simulated worlds are safe Rust all through, and take long.
    with_address_sanitizer test --lib -- codec:: buf:: ids:: io:: mesh:: transport:: shard:: \
        client:: journal:: --skip sim::
}

stage_address() {
    with_address_sanitizer build --bin noctule
    cargo build --locked --quiet --bin noctule
    local io
    for io in uring epoll; do
        under_load "$io" "$target/address/$host/debug/noctule"
    done
}

# Cargo, for code that valgrind runs: it hides the vdso, which rustix looks for by itself otherwise.
with_libc() {
    local command=$1
    shift
    RUSTFLAGS=--cfg=rustix_use_libc CARGO_TARGET_DIR=$target/valgrind cargo "$command" --locked "$@"
}

stage_valgrind() {
    need_packages valgrind:valgrind
    local tests memcheck=(valgrind --quiet --fair-sched=try --error-exitcode=99 --leak-check=full
        --show-leak-kinds=definite --errors-for-leak-kinds=definite --num-callers=25)
    tests=$(with_libc test --no-run --lib --message-format=json 2>/dev/null |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | head -1)
    # Few cases of each property: each takes fifty times as long as it does.
    PROPTEST_CASES=4 "${memcheck[@]}" "$tests" --quiet --test-threads=1 codec:: buf:: mesh:: \
        --skip sim::
    with_libc build --quiet --bin noctule
    cargo build --locked --quiet --bin noctule
    under_load epoll "${memcheck[@]}" "$target/valgrind/debug/noctule"
}

stage_miri() {
    local toolchain
    for toolchain in "" +nightly; do
        # shellcheck disable=SC2086
        if cargo $toolchain miri --version >/dev/null 2>&1; then
            # shellcheck disable=SC2086
            MIRIFLAGS=-Zmiri-disable-isolation PROPTEST_CASES=2 CARGO_TARGET_DIR=$target/miri \
                cargo $toolchain miri test --locked --lib -- codec:: buf:: --skip sim::
            return
        fi
    done
    echo "no toolchain here has Miri (rustup +nightly component add miri): left out"
}

stages=("$@")
[[ ${#stages[@]} -gt 0 ]] || stages=(library address valgrind miri)
for stage in "${stages[@]}"; do
    declare -F "stage_$stage" >/dev/null || die "unknown stage $stage"
done
for stage in "${stages[@]}"; do
    heading "$stage"
    begin=$SECONDS
    "stage_$stage"
    echo "$stage: no error, $((SECONDS - begin)) s"
done
