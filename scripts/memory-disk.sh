#!/usr/bin/env bash
# Mounts a file system in memory that takes O_DIRECT, which tmpfs does not: ext4 on a loop device.
#   scripts/memory-disk.sh DIR [SIZE]     mounts one of SIZE (default 8G) at DIR
#   scripts/memory-disk.sh --remove DIR   takes it away with all that is in it
set -euo pipefail

usage() {
    sed -n '2,4s/^# \{0,1\}//p' "$0"
    exit 2
}

[ $# -ge 1 ] || usage
if [ "$1" = --remove ]; then
    [ $# -eq 2 ] || usage
    image=$(losetup -nO BACK-FILE "$(findmnt -nro SOURCE "$2")")
    umount "$2"
    rm -f "$image"
    exit 0
fi
dir=$1 size=${2:-8G}
[ "$(id -u)" = 0 ] || { echo "$0: mounting needs root" >&2; exit 1; }
mkdir -p "$dir"
image=$(mktemp /dev/shm/basalt-XXXXXX.img)
truncate -s "$size" "$image"
mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 -O ^has_journal "$image"
# The loop device goes with the mount.
mount -o loop "$image" "$dir" || { rm -f "$image"; exit 1; }
echo "$dir is in memory, $size at most; '$0 --remove $dir' takes it away"
