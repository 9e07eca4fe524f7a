# Starting and ending the brokers that are measured. Sourced after lib.sh, never run.
#
# The script that sources it has set: noctule (the program), work (a folder that it removes),
# broker_cpu. start_broker sets broker_pid and port.
# shellcheck shell=bash

broker_pid=
port=

# The programs of peers, by name, that were given on the command line.
declare -A given_programs=()
# Where it is said how peers are started.
peers_folder="${peers_folder:-perf/brokers}"

# Builds noctule as it is measured, unless $NOCTULE names one, and prints where it is.
build_noctule() {
    if [[ -n "${NOCTULE:-}" ]]; then
        [[ -x "$NOCTULE" ]] || die "NOCTULE=$NOCTULE cannot be run"
        echo "$NOCTULE"
        return
    fi
    local commit
    commit="$(git rev-parse --short=12 HEAD 2>/dev/null || true)"
    if [[ -n "$commit" && -n "$(git status --porcelain --untracked-files=no)" ]]; then
        commit+="-changed"
    fi
    echo "building noctule: minutes the first time" >&2
    NOCTULE_COMMIT="$commit" cargo build --release --quiet
    echo "$(target_dir)/release/noctule"
}

# What this machine is called in perf/results.
machine_name() {
    local model name
    model="$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)"
    name="$(nproc --all)-cpu-$(tr -cs '[:alnum:]' '-' <<<"${model,,}")"
    echo "${name%-}"
}

# The broker that a name such as flashmq-1.26 stands for.
kind_of() {
    echo "${1%%-*}"
}

# Reads how the peer $1 is started: by perf/brokers, or the folder in $peers_folder.
read_peer() {
    local kind
    kind="$(kind_of "$1")"
    broker_program='' broker_settings='' broker_arguments=() broker_environment=()
    [[ -f "$peers_folder/$kind.sh" ]] || die "$1: there is no $peers_folder/$kind.sh"
    # shellcheck source=perf/brokers/mosquitto.sh
    source "$peers_folder/$kind.sh"
    broker_program="${given_programs[$1]:-$broker_program}"
}

# Whether the broker $1 can be started here.
has_broker() {
    [[ "$1" == noctule-* ]] && return
    read_peer "$1"
    command -v "$broker_program" >/dev/null
}

# Replaces what only a run knows. The settings keep their file's extension: some go by it.
# shellcheck disable=SC2154 # work, see above
filled_in() {
    local settings="$work/settings.${broker_settings##*.}"
    sed "s|@PORT@|$port|g; s|@WORK@|$work/broker|g; s|@SETTINGS@|$settings|g"
}

# Starts the broker $1, and waits until it listens. A peer's port may be taken: then on another one.
# shellcheck disable=SC2154 # work, see above
start_broker() {
    for _ in {1..4}; do
        if try_broker "$1"; then return; fi
    done
    die "$1 did not start: $(tail -n 5 "$work/log")"
}

# shellcheck disable=SC2154 # work and broker_cpu, see above
try_broker() {
    local name="$1" command=()
    end_broker
    rm -rf "$work/ready" "$work/broker" "$work"/settings.*
    mkdir "$work/broker"
    if [[ "$name" == noctule-* ]]; then
        # noctule-uring, or noctule-uring-power.
        local io="${name#noctule-}" level="${durability:-none}"
        [[ "$io" != *-* ]] || level="${io#*-}"
        command=("$noctule" serve --listen 127.0.0.1:0 --io "${io%%-*}" --shards "${shards:-1}"
            --durability "$level" --data "$work/broker" --ready-file "$work/ready")
    else
        read_peer "$name"
        port=$((20000 + RANDOM % 10000))
        [[ -z "$broker_settings" ]] ||
            filled_in <"$peers_folder/$broker_settings" >"$work/settings.${broker_settings##*.}"
        local part
        command=(env)
        for part in "${broker_environment[@]}" "$broker_program" "${broker_arguments[@]}"; do
            command+=("$(filled_in <<<"$part")")
        done
    fi
    taskset -c "$broker_cpu" "${command[@]}" >"$work/log" 2>&1 &
    broker_pid=$!
    for _ in {1..1500}; do
        kill -0 "$broker_pid" 2>/dev/null || break
        if [[ "$name" == noctule-* ]]; then
            port="$(jq -er '.listeners[0] | split(":")[-1]' "$work/ready" 2>/dev/null)" && return
        elif (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            return
        fi
        sleep 0.02
    done
    return 1
}

# Ends our broker, by its id.
end_broker() {
    [[ -n "$broker_pid" ]] || return 0
    kill "$broker_pid" 2>/dev/null || true
    wait "$broker_pid" 2>/dev/null || true
    broker_pid=
}
