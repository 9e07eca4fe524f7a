#!/usr/bin/env bash
# Runs seeds of the simulated world on all CPUs: scripts/sim.sh [options]
#
#   --seeds N      so many (200)
#   --seconds T    as many as fit into this time, instead
#   --from S       the first seed; by default it follows from the commit, so that each has fresh ones
#   --binary FILE  with this one, instead of building one
#   --table        print how often each fault has struck, and each path was taken, in all of them
#
# Other options go to `noctule sim`. The first failure ends it and prints the command that replays
# it.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh

seeds=200
seconds=
from=
noctule=
rest=()
while [[ $# -gt 0 ]]; do
    case $1 in
    --seeds) seeds=$2 && shift ;;
    --seconds) seconds=$2 && shift ;;
    --from) from=$2 && shift ;;
    --binary) noctule=$2 && shift ;;
    *) rest+=("$1") ;;
    esac
    shift
done
if [[ -z $from ]]; then
    commit=$(git rev-parse --short=8 HEAD 2>/dev/null || echo 1)
    from=$((16#$commit * 1000))
fi

if [[ -z $noctule ]]; then
    cargo build --locked --quiet --profile sim --bin noctule
    noctule=$(target_dir)/sim/noctule
fi
workers=$(nproc)
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
start=$SECONDS

# Seeds $1 to $1 + $2 - 1, or until the time is over.
work() {
    local first=$1 count=$2 log=$3 done=0 part
    while [[ -n $seconds || $done -lt $count ]]; do
        if [[ -n $seconds && $((SECONDS - start)) -ge $seconds ]] || [[ -e $logs/failed ]]; then
            break
        fi
        part=$((count - done < 20 && ${seconds:-0} == 0 ? count - done : 20))
        if ! "$noctule" sim --seed $((first + done)) --seeds "$part" "${rest[@]}" >"$log" 2>&1; then
            cp "$log" "$logs/failed"
            break
        fi
        cat "$log" >>"$log.all"
        done=$((done + part))
    done
    echo "$done" >"$log.done"
}

# One table of those of all parts: rows are summed, of medians the least is kept.
sum_tables() {
    awk '
        /^median of / {
            seeds += $3; proven += $16
            split("5 7 9 12", at, " ")
            for (i in at) if (!(i in least) || $at[i] + 0 < least[i]) least[i] = $at[i] + 0
        }
        / times +seeds$/ {
            if (!($0 in known)) { known[$0]; head[rows + 1] = $0 }
            in_rows = 1
            next
        }
        /^not in any world$/ { in_rows = 0; rest = "" }
        in_rows && NF == 3 {
            if (!($1 in times)) name[++rows] = $1
            times[$1] += $2; runs[$1] += $3
        }
        !in_rows { rest = rest "\n" $0 }
        END {
            printf "%d seeds, %d messages proven; the least median of a part: ", seeds, proven
            printf "%d packets, %d shards, %d kinds struck, ", least[1], least[2], least[3]
            printf "%d of them faults\n", least[4]
            for (i = 1; i <= rows; i++) {
                if (i in head) printf "\n%s\n", head[i]
                printf "%-28s %12d %8d\n", name[i], times[name[i]], runs[name[i]]
                if (!times[name[i]]) never = never " " name[i]
            }
            print rest
            print never ? "\nnever struck:" never : "\neach was struck"
        }' "$@"
}

share=$(((seeds + workers - 1) / workers))
[[ -z $seconds ]] || share=1000000
pids=()
for ((i = 0; i < workers; i++)); do
    work $((from + i * share)) "$share" "$logs/$i" &
    pids+=($!)
done
wait "${pids[@]}"

total=$(cat "$logs"/*.done | awk '{ sum += $1 } END { print sum + 0 }')
elapsed=$((SECONDS - start))
echo "$total seeds from $from in $elapsed s, $((total * 60 / (elapsed > 0 ? elapsed : 1))) a minute"
if [[ -e $logs/failed ]]; then
    cat "$logs/failed"
    exit 1
fi
if [[ " ${rest[*]} " == *" --table "* ]]; then
    sum_tables "$logs"/*.all
fi
