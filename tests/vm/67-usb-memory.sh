#!/bin/sh
# Transfers that the kernel's usbfs has no memory for fail, and say which limit to raise; the driver recovers the disk and goes on.
# After the scenarios that unplug the disk: QEMU 7.2 forgets the command that the recovery (Bulk-Only Mass Storage Reset) ends, and
# with it never lets go of the disk's image, so that no other disk could be plugged in.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib-usb.sh"

udrv=$UDRV_BIN/udrv
load_usb
device=usb:46f4:0001
limit=/sys/module/usbcore/parameters/usbfs_memory_mb
before=$(cat $limit)
echo 1 >$limit
status=0
"$udrv" run usb-storage --device "$device" read --blocks 2048 --output /dev/null 2>/tmp/log || status=$?
echo "$before" >$limit
[ "$status" -eq 1 ] || fail "a transfer of 1 MiB although the kernel has no memory for it: exit status $status"
grep -q "raise $limit" /tmp/log || fail "not told which limit: $(cat /tmp/log)"
"$udrv" run usb-storage --device "$device" read --blocks 2048 --output /dev/null
within 90 disk_is_back
