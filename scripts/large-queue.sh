#!/usr/bin/env bash
# A queue that is larger than memory, by the numbers: messages for one session without a connection,
# `kill -9`, and all of them back, in order; the broker's memory and the rates at each step.
#
#   scripts/large-queue.sh [MESSAGES] [BYTES] [SHARDS]      one million of 1 KiB on one shard
#
# NOCTULE names the program (else target/release/noctule), IO the backend, BUDGET the memory budget
# (256MiB). The data directory is made where TMPDIR says: it should be a disk. Time is only worth
# reading on a quiet machine: client and broker share it.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh

messages=${1:-1000000} bytes=${2:-1024} shards=${3:-1}
program=${NOCTULE:-$(target_dir)/release/noctule}
[[ -x $program ]] || die "$program is not there: cargo build --release, or say NOCTULE=PROGRAM"
folder=$(mktemp -d)
broker=
trap '[[ -z $broker ]] || kill -9 "$broker" 2>/dev/null; rm -rf "$folder"' EXIT

start() {
    rm -f "$folder/ready"
    "$program" serve --listen 127.0.0.1:0 --data "$folder/data" --ready-file "$folder/ready" \
        --stats-file "$folder/stats" --io "${IO:-auto}" --shards "$shards" \
        --memory-budget "${BUDGET:-256MiB}" --queue-len-max 100000000 --queue-disk-bytes-max 1024GiB \
        >>"$folder/log" 2>&1 &
    broker=$!
    while [[ ! -s $folder/ready ]]; do
        kill -0 "$broker" 2>/dev/null || die "the broker has ended: $(tail -3 "$folder/log")"
        sleep 0.01
    done
    port=$(sed -E 's/.*"listeners":\["[^"]*:([0-9]+)".*/\1/' "$folder/ready")
}
# Bytes of memory, most so far and now.
memory() {
    awk '/VmHWM|VmRSS/ { printf "%s %d MiB  ", $1, $2 / 1024 } END { print "" }' "/proc/$broker/status"
}
# Seconds of processor time of the broker so far.
cpu() {
    awk -v hz="$(getconf CLK_TCK)" '{ print ($14 + $15) / hz }' "/proc/$broker/stat"
}
counter() {
    kill -USR1 "$broker"
    sleep 0.5
    grep -o "\"$1\":[0-9]*" "$folder/stats" | tail -1 | cut -d: -f2
}
since() {
    awk -v a="$1" -v b="$(date +%s.%N)" -v n="$messages" -v c="$2" -v d="$(cpu)" \
        'BEGIN { printf "%.1f s, %d messages/s, %.2f us of processor each", b - a, n / (b - a), (d - c) / n * 1e6 }'
}

start
echo "$messages messages of $bytes bytes, $shards shard(s), budget ${BUDGET:-256MiB}, started: $(memory)"
"$program" sub -p "$port" -c -i archive -x 86400 -q 1 -t 'large/#' -W 1 >/dev/null 2>&1 || true
line=$(head -c "$bytes" /dev/zero | tr '\0' x)
began=$(date +%s.%N) before=$(cpu)
awk -v line="$line" -v n="$messages" 'BEGIN { for (i = 0; i < n; i++) print line }' |
    "$program" pub -p "$port" -i source -q 1 -t large/x -l -M 1000
echo "queued:  $(since "$began" "$before"); $(memory)"
echo "on disk: $(counter messages_on_disk) messages, refused or dropped: $(counter dropped_queue_full) $(counter dropped_memory) $(counter publishes_refused)"
kill -9 "$broker"
wait "$broker" 2>/dev/null || true
began=$(date +%s.%N)
start
echo "killed, and ready again: $(since "$began" 0); $(memory)"
began=$(date +%s.%N) before=$(cpu)
"$program" sub -p "$port" -c -i archive -x 86400 -q 1 -t 'large/#' -C "$messages" -F %l -M 1000 |
    awk -v n="$messages" 'END { if (NR != n) { print "only " NR " of " n; exit 1 } }'
echo "drained: $(since "$began" "$before"); $(memory)"
echo "read back: $(counter messages_read_back), lost: $(counter dropped_unreadable) $(counter dropped_not_owed)"
