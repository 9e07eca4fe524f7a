# Shell functions that the scripts share. Sourced, never run.
# shellcheck shell=bash

# Prints a heading that is found again in a long log.
heading() {
    printf '\n=== %s ===\n' "$*"
}

# Says what is wrong, and ends the script.
die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# Runs a command as root: directly, or by sudo.
as_root() {
    if [[ $(id -u) -eq 0 ]]; then
        "$@"
    else
        command -v sudo >/dev/null || die "not root, and no sudo: cannot run $*"
        sudo "$@"
    fi
}

# Installs the Debian packages among its arguments that are not there yet; an argument is
# COMMAND:PACKAGE, the package is missing when the command is.
need_packages() {
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
    done
    install_packages "${missing[@]}"
}

# Installs Debian packages.
install_packages() {
    [[ $# -gt 0 ]] || return 0
    command -v apt-get >/dev/null || die "install these by hand, there is no apt-get: $*"
    echo "installing $*"
    as_root apt-get update -q
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$@"
}

# Where cargo builds.
target_dir() {
    cargo metadata --format-version 1 --no-deps --offline |
        sed -E 's/.*"target_directory":"([^"]*)".*/\1/'
}
