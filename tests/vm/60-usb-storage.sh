#!/bin/sh
# USB mass storage by our driver on QEMU's usb-storage, over the kernel's usbfs: what it reads is the image, what it writes the
# kernel's driver reads, and the kernel's driver is back however ours ended.
# deadline: 400
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib-usb.sh"

udrv=$UDRV_BIN/udrv
image=$UDRV_VM_RUN/usb.img
load_usb
port=$(usb_port_of 46f4:0001)
device=usb:$port

# A real file system on it, made by the kernel's driver.
disk=$(disk_of "$port")
mkfs.ext4 -q -b 4096 "$disk"
mkdir -p /mnt/usb
mount "$disk" /mnt/usb
cp -r "$PWD/udrv" /mnt/usb/
umount /mnt/usb
blockdev --flushbufs "$disk"

"$udrv" usb list | grep -q "usb-storage" || fail "usb list does not show the kernel's driver: $("$udrv" usb list)"
"$udrv" usb list --json | python3 -c '
import json, sys
devices = json.load(sys.stdin)["devices"]
disk = next(d for d in devices if (d["vendor"], d["product"]) == (0x46f4, 1))
assert disk["interfaces"][0]["driver"] == "usb-storage", disk
assert disk["interfaces"][0]["codes"] == [8, 6, 80], disk
' || fail "usb list --json"

echo "# every block equals the image"
"$udrv" run usb-storage --device "$device" info
"$udrv" run usb-storage --device "$device" read --output /tmp/read.img
cmp "$image" /tmp/read.img || fail "what was read differs from the image"
within 90 disk_is_back

echo "# written blocks are read back by the kernel's driver"
dd if=/dev/urandom of=/tmp/blocks bs=512 count=2048 status=none
"$udrv" run usb-storage --device usb:46f4:0001 write --lba 100000 --input /tmp/blocks
within 90 disk_is_back
disk=$(disk_of "$port")
dd if="$disk" bs=512 skip=100000 count=2048 iflag=direct status=none | cmp - /tmp/blocks || fail "the kernel reads other blocks"

echo "# the kernel's driver is back after an error and after a panic"
if "$udrv" run usb-storage --device "$device" read --output /dev/full 2>/tmp/log; then fail "no error"; fi
within 90 disk_is_back
if "$udrv" run usb-storage --device "$device" info >/dev/full 2>/tmp/log; then fail "no panic"; fi
grep -q panicked /tmp/log || fail "no panic: $(cat /tmp/log)"
within 90 disk_is_back

echo "# and after SIGINT and SIGTERM in the middle of a read, ten times: the process ends only when it is"
for signal in 2 15 2 15 2 15 2 15 2 15; do
    rm -f /tmp/read.img
    "$udrv" run usb-storage --device "$device" read --output /tmp/read.img 2>/tmp/log &
    driver=$!
    within 60 test -s /tmp/read.img
    kill -"$signal" "$driver"
    status=0
    wait "$driver" || status=$?
    [ "$status" -eq $((128 + signal)) ] || fail "signal $signal: exit status $status: $(cat /tmp/log)"
    link=$(readlink "/sys/bus/usb/devices/$port:1.0/driver") || fail "signal $signal: no driver has the disk: $(cat /tmp/log)"
    [ "${link##*/}" = usb-storage ] || fail "signal $signal: the disk is with $link"
done
within 90 disk_is_back
head -c 1048576 "$image" | cmp -n 1048576 - "$(disk_of "$port")" || fail "the kernel reads other blocks"

echo "# what cannot be used says what to do"
if "$udrv" run usb-storage --device usb:dead:beef info 2>/tmp/log; then fail "a device that is not there"; fi
grep -q "udrv usb list" /tmp/log || fail "no advice: $(cat /tmp/log)"
if $AS_NOBODY "$udrv" run usb-storage --device "$device" info 2>/tmp/log; then fail "nobody may open it"; fi
grep -q "permission" /tmp/log || fail "no word of the permission: $(cat /tmp/log)"
