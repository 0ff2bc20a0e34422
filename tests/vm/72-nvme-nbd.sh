#!/bin/sh
# deadline: 900
# A namespace as a block device: `udrv run nvme --export nbd:SOCKET` on real VFIO, with the kernel's nbd as its client. A file
# system that the kernel's nvme driver has made, fio's verification, a driver that is killed, and commands that do not end.
. "$(dirname "$0")/lib.sh"
stub=$UDRV_BIN/stub-driver
udrv=$UDRV_BIN/udrv
nvme=$(bdf_of 1b36:0010)
disk=/dev/nvme0n1
work=/tmp/nvme-nbd
socket=$work/disk.sock
mkdir -p "$work/mnt"
cd "$work"
modprobe -a ext4 nbd

kernel_has_it() {
    [ -b "$disk" ]
}

# export_it ARGS...: serves the namespace; its process is $EXPORT
export_it() {
    RUST_LOG=warn "$udrv" run nvme --device "pci:$nvme" --export "nbd:$socket" "$@" >export.log 2>&1 &
    EXPORT=$!
    within 60 exporting
}
exporting() {
    kill -0 "$EXPORT" 2>/dev/null || fail "the export ended: $(cat export.log)"
    grep -q "is at nbd:" export.log
}
end_export() {
    kill -TERM "$EXPORT"
    wait "$EXPORT" || fail "the export's exit status is $?: $(cat export.log)"
    [ ! -e "$socket" ] || fail "the socket is left"
}

# attach N: the kernel's nbd over N connections
attach() {
    nbd-client -unix "$socket" /dev/nbd0 -connections "$1" -timeout 120 >/dev/null 2>client.log || fail "nbd-client: $(cat client.log)"
    within 20 attached
}
attached() {
    read -r size </sys/block/nbd0/size
    [ "$size" = "$sectors" ]
}
detach() {
    nbd-client -d /dev/nbd0 >/dev/null
    within 20 detached
}
detached() {
    [ ! -e /sys/block/nbd0/pid ]
}

# sums FOLDER: the checksums of the files below it
sums() {
    (cd "$1" && find . -type f ! -path './lost+found*' -exec sha256sum {} + | sort -k2)
}

within 20 kernel_has_it
read -r sectors </sys/class/block/nvme0n1/size
[ "$sectors" = 524288 ] || fail "not 256 MiB: $sectors blocks"

# The kernel makes a file system and files in it.
mkfs.ext4 -q "$disk"
mount "$disk" mnt
mkdir mnt/kernel
for n in 1 2 3 4 5 6; do head -c $((n * 700000)) /dev/urandom >mnt/kernel/$n; done
sums mnt >kernel.sums
umount mnt

# udrv shows it: it is whole, its files are the same, and takes others.
"$stub" bind "$nvme"
export_it
attach 4
fsck.ext4 -n -f /dev/nbd0 || fail "fsck through udrv"
mount /dev/nbd0 mnt
sums mnt | cmp - kernel.sums || fail "other files through udrv than the kernel wrote"
mkdir mnt/udrv
for n in 1 2 3; do head -c $((n * 900000)) /dev/urandom >mnt/udrv/$n; done
rm mnt/kernel/6
sums mnt >udrv.sums
umount mnt
fsck.ext4 -n -f /dev/nbd0 || fail "fsck through udrv, afterwards"
echo "ok ext4 through udrv"

# fio: random writes of four jobs past the page cache, read back and verified.
mount /dev/nbd0 mnt
fio --name=verify --directory=mnt --ioengine=libaio --direct=1 --rw=randwrite --bs=4k --iodepth=4 --numjobs=4 --size=4m \
    --verify=crc32c --do_verify=1 --verify_fatal=1 --group_reporting >fio.log 2>&1 || fail "fio: $(tail -30 fio.log)"
rm mnt/verify.*
umount mnt
grep -q 'err= 0' fio.log || fail "fio says nothing of errors: $(cat fio.log)"
echo "ok fio verify, 4 jobs"
detach
end_export

# After release the kernel's driver finds all of it.
"$stub" release "$nvme"
within 20 kernel_has_it
fsck.ext4 -n -f "$disk" || fail "the kernel's fsck after release"
mount "$disk" mnt
sums mnt | cmp - udrv.sums || fail "the kernel finds other files than were written through udrv"
mkdir mnt/again
head -c 1000000 /dev/urandom >mnt/again/1
sums mnt >again.sums
umount mnt
echo "ok the kernel has what udrv wrote"

# The other way round once more, with a controller that loses doorbells: commands do not end, are aborted, and tried again after
# the reset of the controller, under a mounted file system.
cat >plan.toml <<PLAN
[[fault]]
kind = "lost-write"
region = 0
offset = 0x1008
writes = { from = 20, count = 1 }
[[fault]]
kind = "lost-write"
region = 0
offset = 0x1010
writes = { from = 30, count = 2 }
PLAN
"$stub" bind "$nvme"
export_it --timeout 2 --faults plan.toml --connections 2
attach 2
mount /dev/nbd0 mnt
sums mnt | cmp - again.sums || fail "other files than the kernel wrote, with commands that do not end"
head -c 3000000 /dev/urandom >mnt/again/2
sync
sums mnt >fault.sums
umount mnt
fsck.ext4 -n -f /dev/nbd0 || fail "fsck after commands that did not end"
detach
end_export
grep -q "a command did not end in time" export.log || fail "no command timed out: $(cat export.log)"
grep -q "resetting the controller" export.log || fail "no reset: $(cat export.log)"
echo "ok commands that do not end, $(grep -c 'did not end in time' export.log) of them"

# The driver is killed at any moment and started again: what was flushed is there. This ends the file system.
"$UDRV_BIN/nbd-flushed" 4 8 "$socket" "$udrv" run nvme --device "pci:$nvme" --export "nbd:$socket" || fail "after a kill"
"$stub" release "$nvme"
within 20 kernel_has_it
check_released "$nvme" nvme
