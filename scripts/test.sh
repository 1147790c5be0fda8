#!/usr/bin/env bash
# Everything that must hold before a change lands, in order of speed. Stops at the first failure.
# Usage: scripts/test.sh [stage...]   stages: lint unit sim interop chaos (default: all)
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$HOME/.cargo/bin:$PATH"
bin="${CARGO_TARGET_DIR:-target}/release"

# Named one by one: built together with the simulator, the daemon would carry its planted bugs.
programs=(-p basaltd -p basalt -p basalt-attach -p basalt-interop -p basalt-bench)

stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(lint unit sim interop chaos)

# The largest cluster of the tests has three devices of 8 GiB, and what is compiled takes 8 GiB more.
need_gib() {
    local folder=${CARGO_TARGET_DIR:-target} need=$1 free
    mkdir -p "$folder"
    free=$(($(df --output=avail -k "$folder" | tail -n 1) / 1024 / 1024))
    [ "$free" -ge "$need" ] && return
    echo "test.sh: $need GiB of disk are needed in $folder, $free GiB are free there: make room, or set CARGO_TARGET_DIR" >&2
    exit 1
}
case " ${stages[*]} " in
*" interop "* | *" chaos "*) need_gib 32 ;;
esac

began=$SECONDS
stage() { printf '\n\033[1m==> %s (%d s so far)\033[0m\n' "$*" $((SECONDS - began)); }

for one in "${stages[@]}"; do
    case "$one" in
    lint)
        stage "lint: format"
        cargo fmt --all --check
        stage "lint: clippy (the first run compiles RocksDB, some 15 minutes on two cores)"
        cargo clippy --release --locked --workspace --all-targets -- -D warnings
        stage "lint: house rules"
        scripts/tidy.sh
        ;;
    unit)
        stage "unit tests"
        cargo test --release --locked --no-fail-fast --workspace --exclude basalt-interop --exclude basalt-chaos
        ;;
    sim)
        cargo build --release --locked -p basalt-sim
        stage "simulator: named scenarios"
        "$bin/sim" scenarios
        stage "simulator: 5,000 short seeds"
        "$bin/sim" run --seeds 5000 --profile tiny --jobs "$(nproc)"
        stage "simulator: swarm seeds"
        "$bin/sim" run --seeds 100 --profile swarm --jobs "$(nproc)"
        stage "simulator: determinism"
        "$bin/sim" determinism --seeds 200
        stage "simulator: planted bugs"
        "$bin/sim" planted
        ;;
    interop)
        cargo build --release --locked --bins "${programs[@]}"
        stage "foreign clients against a three-node cluster"
        cargo test --release --locked --no-fail-fast -p basalt-interop -- --test-threads 1
        ;;
    chaos)
        cargo build --release --locked --bins "${programs[@]}"
        stage "real processes under faults (short)"
        cargo test --release --locked --no-fail-fast -p basalt-chaos -- --test-threads 1
        ;;
    *)
        echo "test.sh: unknown stage '$one' (lint unit sim interop chaos)" >&2
        exit 2
        ;;
    esac
done
stage "all of it held"
