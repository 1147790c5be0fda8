# SQLite on ext4 over NBD: checks what the last power cut left, then commits until the next one.
# BASALT_ROUND is the round; the host counts the commits that bank.py tells it.
# shellcheck shell=bash

attach bank 4096 2
if [ "$BASALT_ROUND" = 1 ]; then
    mkfs.ext4 -q -F /dev/nbd0
fi
mount /dev/nbd0 /run/job/disk
say "round $BASALT_ROUND"
/usr/bin/python3 -B "${BASALT_JOB%.sh}.py" /run/job/disk "$BASALT_ROUND" "$BASALT_HOST" 10811
# Only the last round comes here.
umount /run/job/disk
e2fsck -f -n /dev/nbd0
detach
