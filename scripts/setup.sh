#!/usr/bin/env bash
# Sets up what building and testing Basalt needs on Debian 12: system packages and the Rust toolchain.
# Usage: scripts/setup.sh build | test
#   build  what the daemons and the command line need
#   test   also the foreign clients that the tests and the demo run
# It installs only what is missing, and says what is missing where it may not install.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\033[1m==> %s\033[0m\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

build_packages=(build-essential clang libclang-dev pkg-config ca-certificates curl git)
test_packages=(fio qemu-utils libnbd-bin fuse3 python3-libnbd python3 python3-venv nbd-client nbdkit e2fsprogs xfsprogs openssl jq)
# A Linux kernel as a process, and what brings its NBD client up.
test_packages+=(user-mode-linux kmod iproute2 util-linux)

wanted=("${build_packages[@]}")
case "${1:-build}" in
build) ;;
test) wanted+=("${test_packages[@]}") ;;
*) fail "unknown argument '$1': use 'build' or 'test'" ;;
esac

[ "$(uname -s)" = Linux ] || fail "Basalt runs on Linux (io_uring); this is $(uname -s)"
command -v dpkg-query >/dev/null || fail "this script knows Debian packages only; install by hand: ${wanted[*]}"

missing=()
for package in "${wanted[@]}"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    run=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null && sudo -n true 2>/dev/null ||
            fail "these Debian packages are missing and this user may not install them: ${missing[*]}
       ask an administrator for: apt-get install ${missing[*]}"
        run=(sudo)
    fi
    say "installing ${#missing[@]} Debian packages: ${missing[*]}"
    "${run[@]}" apt-get update -qq
    DEBIAN_FRONTEND=noninteractive "${run[@]}" apt-get install -y --no-install-recommends "${missing[@]}" |
        grep -E '^(Setting up|E:)' || true
    for package in "${missing[@]}"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' ||
            fail "the package '$package' could not be installed; see the output of apt-get above"
    done
fi

# A foreign client of the gRPC API: Python's, which knows the services by reflection alone.
python="${XDG_CACHE_HOME:-$HOME/.cache}/basalt/python"
# With it a collector of traces is made.
modules=(grpcio==1.76.0 grpcio-reflection==1.76.0 grpcio-status==1.76.0 opentelemetry-proto==1.45.2)
made="$python/$(printf '%s\n' "${modules[@]}" | sha256sum | cut -c 1-16).installed"
if [ "${1:-build}" = test ] && ! [ -e "$made" ]; then
    say "installing Python's gRPC client into $python"
    rm -rf "$python"
    python3 -m venv "$python" && "$python/bin/pip" install --quiet --disable-pip-version-check "${modules[@]}" ||
        fail "the Python modules could not be installed: ${modules[*]}"
    touch "$made"
fi

channel=$(sed -n 's/^channel = "\(.*\)"$/\1/p' rust-toolchain.toml)
[ -x "$HOME/.cargo/bin/cargo" ] && PATH="$HOME/.cargo/bin:$PATH"
if ! command -v cargo >/dev/null; then
    say "installing the Rust toolchain $channel with rustup (into ~/.cargo and ~/.rustup)"
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
        sh -s -- -y --profile minimal --default-toolchain "$channel" --component clippy,rustfmt ||
        fail "Rust could not be installed; install Rust $channel by hand and run this again"
    PATH="$HOME/.cargo/bin:$PATH"
fi
have=$(cargo --version 2>/dev/null | awk '{print $2}') ||
    fail "cargo does not start; is the toolchain $channel of rust-toolchain.toml installed?"
[ "$have" = "$channel" ] || fail "Rust $channel is wanted (rust-toolchain.toml), cargo is $have; use rustup"
say "ready: Rust $have, $(uname -r), $(nproc) cores"
