#!/usr/bin/env bash
# House rules that a compiler does not check. Prints every offence with the rule and the place.
set -euo pipefail
cd "$(dirname "$0")/.."
bad=0
offend() { printf 'tidy: %s\n' "$*"; bad=1; }

mapfile -t rust < <(git ls-files '*.rs')

# A file is one room: under 800 lines.
for file in "${rust[@]}"; do
    lines=$(wc -l <"$file")
    [ "$lines" -le 800 ] || offend "$file has $lines lines; split it by purpose (800 at most)"
done

# Lines stay readable.
while IFS= read -r line; do offend "longer than 120 columns: $line"; done < <(
    awk 'length($0) > 120 { print FILENAME ":" FNR }' "${rust[@]}")

# No stubs and no silenced tests.
while IFS= read -r line; do offend "stub or silenced test: $line"; done < <(
    grep -nE 'todo!\(|unimplemented!\(|#\[ignore|FIXME|XXX' "${rust[@]}" || true)

# The state machines do no I/O: no clock, randomness, threads, files or sockets in core, client, wire.
while IFS= read -r line; do offend "I/O, clock, thread or randomness in a state machine: $line"; done < <(
    grep -nE 'std::(fs|net|thread|process|env)|Instant::now|SystemTime|rand::|RandomState|HashMap::new\(' \
        $(git ls-files 'storage/core/src/*.rs' 'storage/client/src/*.rs' | grep -v '/tests/') || true)

# Unsafe only at the edges.
while IFS= read -r file; do
    case "$file" in
    storage/device/* | storage/wire/src/buffer* | storage/node/src/*) ;;
    # Taking over the sockets of socket activation.
    controlplane/attach/src/main.rs | storage/attach/nbd/src/activation.rs) ;;
    *) offend "unsafe outside the device, ring and buffer edges: $file" ;;
    esac
done < <(grep -lE '\bunsafe (\{|fn|impl|extern)' "${rust[@]}" | grep -v '^tests/' || true)

# Every direct dependency has its reason.
for name in $(sed -n '/^\[workspace.dependencies\]/,/^\[/p' Cargo.toml | sed -n 's/^\([a-z0-9_-]*\) = .*/\1/p' | grep -v '^basalt-'); do
    grep -q "^| \`$name\`" docs/dependencies.md || offend "docs/dependencies.md has no reason for '$name'"
done

# Links between documents lead somewhere.
while IFS=: read -r file link; do
    target="$(dirname "$file")/${link%%#*}"
    [ -e "$target" ] || offend "$file links to '$link', which does not exist"
done < <(git ls-files '*.md' | xargs grep -oE '\]\([^)h#][^)]*\)' | sed 's/](\(.*\))/\1/')

# The architecture names every crate.
for dir in $(sed -n '/^members = \[/,/^\]/p' Cargo.toml | sed -n 's/^ *"\(.*\)",$/\1/p'); do
    grep -q "$dir" docs/architecture.md || offend "docs/architecture.md does not name the crate '$dir'"
done

[ "$bad" = 0 ] && echo "tidy: ${#rust[@]} Rust files, no offence"
exit "$bad"
