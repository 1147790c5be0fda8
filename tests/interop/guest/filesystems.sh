# File systems and raw access through the kernel's NBD client, a node killed meanwhile.
# shellcheck shell=bash

# fill NAME MIB: files of all sizes, and their sums in /run/job/NAME.
fill() {
    mkdir /run/job/disk/small /run/job/disk/tiny
    (cd /run/job/disk/small && head -c 1M /dev/urandom | split -b 9001 -a 3)
    (cd /run/job/disk/tiny && head -c 16K /dev/urandom | split -b 300 -a 3)
    head -c "$2M" /dev/urandom >/run/job/disk/large
    cp /run/job/disk/large /run/job/disk/copy
    rm /run/job/disk/small/*c /run/job/disk/tiny/*d
    sync
    sums >"/run/job/$1"
    [ "$(wc -l <"/run/job/$1")" -gt 100 ]
}

sums() { (cd /run/job/disk && find . -type f -print0 | sort -z | xargs -0 cksum); }

# Zeros from OFFSET on for BYTES.
zeros() { cmp -n "$2" -i "$1:0" /dev/nbd0 /dev/zero; }
not() { if "$@" >/dev/null; then return 1; fi; }

attach disk 512 1
# This kernel zeroes by writing; it learns WRITE_ZEROES later.
[ "$(cat /sys/block/nbd0/queue/discard_max_bytes)" -gt 0 ]
[ "$(cat /sys/block/nbd0/queue/write_cache)" = "write back" ]
[ "$(cat /sys/block/nbd0/queue/fua)" = 1 ]

say "ext4, sectors of 512 bytes, one connection"
mkfs.ext4 -q -F /dev/nbd0
mount /dev/nbd0 /run/job/disk
fill ext4 24
umount /run/job/disk
e2fsck -f -n /dev/nbd0
detach

say "ext4 again, sectors of 4096 bytes, four connections, a node killed under it"
attach disk 4096 4
mount -o ro,noload /dev/nbd0 /run/job/disk
sums | cmp - /run/job/ext4
umount /run/job/disk
mount /dev/nbd0 /run/job/disk
ask kill 2
head -c 24M /dev/urandom >/run/job/disk/more
sync
ask start 2
rm /run/job/disk/copy
sync
fstrim -v /run/job/disk
sums >/run/job/ext4
umount /run/job/disk
blockdev --flushbufs /dev/nbd0
e2fsck -f -n /dev/nbd0
mount -o ro,noload /dev/nbd0 /run/job/disk
sums | cmp - /run/job/ext4
umount /run/job/disk
detach

say "XFS, two connections, a node frozen under it"
attach disk 512 2
mkfs.xfs -q -f /dev/nbd0
mount -o discard /dev/nbd0 /run/job/disk
ask freeze 3
fill xfs 16
ask thaw 3
rm /run/job/disk/large
sync
sums >/run/job/xfs
umount /run/job/disk
xfs_repair -n /dev/nbd0
detach
attach disk 512 4
mount /dev/nbd0 /run/job/disk
sums | cmp - /run/job/xfs
umount /run/job/disk
xfs_repair -n /dev/nbd0

say "fio verifies what it writes past the cache, the leader of some groups killed under it"
verified() {
    fio --name=guest --filename=/dev/nbd0 --direct=1 --ioengine=libaio --iodepth=16 --size=24m --verify=crc32c \
        --verify_fatal=1 --verify_state_save=0 --serialize_overlap=1 --output=/run/job/fio "$@" ||
        { cat /run/job/fio; return 1; }
    grep -E 'IOPS|err=' /run/job/fio
}
verified --rw=randwrite --bs=512-16k &
fio=$!
# It is under way once the device has taken writes of it.
began=$(awk '{print $5}' /sys/block/nbd0/stat)
until [ "$(awk '{print $5}' /sys/block/nbd0/stat)" -gt $((began + 200)) ]; do sleep 0.05; done
ask kill 1
wait $fio
ask start 1
verified --rw=randtrimwrite --bs=4k --io_size=8m --verify=0

say "discard, BLKZEROOUT and blkdiscard, aligned and not"
dd if=/dev/urandom of=/dev/nbd0 bs=1M count=16 oflag=direct status=none
blkdiscard -o 1M -l 2M /dev/nbd0
zeros 1M 2M
blkdiscard -z -o $((4 * 1048576 + 512)) -l $((3 * 1048576 + 1024)) /dev/nbd0
zeros $((4 * 1048576 + 512)) $((3 * 1048576 + 1024))
not zeros $((4 * 1048576)) 512
not zeros $((7 * 1048576 + 1536)) 512
dd if=/dev/urandom of=/run/job/piece bs=512 count=7 status=none
dd if=/run/job/piece of=/dev/nbd0 bs=512 seek=2051 oflag=direct conv=notrunc,fsync status=none
blockdev --flushbufs /dev/nbd0
dd if=/dev/nbd0 bs=512 skip=2051 count=7 iflag=direct status=none | cmp - /run/job/piece
blkdiscard /dev/nbd0
zeros 0 64M
zeros 480M 32M
detach
