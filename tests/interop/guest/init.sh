#!/bin/bash
# The first process of a guest: brings up what a job needs, runs the job, tells the host how it ended.
# The root file system is the host's, read-only; /run/job is for the job, and the project may lie
# anywhere else. The kernel's command line gives the rest:
#   BASALT_JOB    the script to run
#   BASALT_HOST   the host's address, BASALT_ORDERS the port on which it takes requests
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/run/job TMPDIR=/run/job LC_ALL=C

# Asks the host for something and waits until it is done.
ask() {
    local answer
    exec 9<>"/dev/tcp/$BASALT_HOST/$BASALT_ORDERS"
    echo "$*" >&9
    read -r -u 9 answer
    exec 9>&-
    [ "$answer" = ok ] || { echo "the host could not '$*': $answer"; return 1; }
}

say() { echo "[$(cut -d' ' -f1 /proc/uptime)] $*"; }

# attach EXPORT BLOCK CONNECTIONS: the export as /dev/nbd0.
attach() {
    nbd-client "$BASALT_HOST" 10809 /dev/nbd0 -N "$1" -b "$2" -C "$3"
    [ "$(cat /sys/block/nbd0/queue/logical_block_size)" = "$2" ]
}

detach() {
    nbd-client -d /dev/nbd0
    # The kernel lets go of the device a little later.
    until [ "$(cat /sys/block/nbd0/size)" = 0 ]; do sleep 0.1; done
}

# The job has a process of its own: "set -e" means nothing to what is followed by "||".
if [ "${1:-}" = job ]; then
    set -eEuo pipefail
    trap 'echo "line $LINENO of the job failed: $BASH_COMMAND"' ERR
    say "${BASALT_JOB##*/} on Linux $(uname -r)"
    # shellcheck source=/dev/null
    . "$BASALT_JOB"
    exit 0
fi

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mkdir -p /run/job/disk
ip link set lo up
ip link set vec0 up
ip addr add "${BASALT_HOST%.*}.2/24" dev vec0

status=0
insmod "/usr/lib/uml/modules/$(uname -r)/kernel/drivers/block/nbd.ko" nbds_max=1 || status=$?
# A guest that overlooks a failure proves nothing, so it is shown one first.
if BASALT_JOB="${BASALT_JOB%/*}/failing.sh" bash "$0" job; then
    say "the guest does not notice a job that fails"
    status=1
fi
[ $status != 0 ] || bash "$0" job || status=$?
if dmesg | grep -E 'I/O error|EXT4-fs (error|warning)|XFS .*([Cc]orrupt|[Ee]rror)|BUG|hung task'; then
    say "the kernel saw errors"
    status=1
fi
say "the job ended with $status"
ask ended "$status"
sync
echo o >/proc/sysrq-trigger
sleep 1000
