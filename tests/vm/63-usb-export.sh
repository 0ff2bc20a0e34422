#!/bin/bash
# The USB/IP server and the kernel's own client (vhci_hcd), over the loopback: a model and a real device, with the kernel's
# usb-storage on top.
# deadline: 500
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib-usb.sh"

load_usb
modprobe vhci-hcd
port=$(usb_port_of 46f4:0001)

# usb_export DEVICE...: starts the server and waits until it is ready
usb_export() {
    "$UDRV_BIN/stub-driver" usb export "$@" >/run/export.log 2>&1 &
    STUB=$!
    within 60 exporting
}
exporting() {
    kill -0 "$STUB" 2>/dev/null || fail "the stub ended: $(cat /run/export.log)"
    grep -qx ready /run/export.log
}
# imported_disk: the block device of an imported disk, with its medium
imported_disk() {
    for block in /sys/block/sd*; do
        case $(readlink -f "$block") in
        */vhci_hcd*)
            [ "$(cat "$block/size")" -gt 0 ] || return 1
            [ -b "/dev/${block##*/}" ] || return 1
            echo "/dev/${block##*/}"
            return 0
            ;;
        esac
    done
    return 1
}
no_imported_disk() { ! imported_disk >/dev/null; }
attach() {
    # the stub may still be resetting the device after the client before
    within 60 usbip attach -r 127.0.0.1 -b "$1" 2>/tmp/attach.log
    within 90 imported_disk
}
detach() {
    usbip detach -p "$(usbip port 2>/dev/null | sed -n 's/^Port \([0-9]*\):.*/\1/p' | head -1)" 2>/dev/null
    within 90 no_imported_disk
}

echo "# a model: the kernel mounts its file system"
truncate -s 32M /tmp/model.img
mkfs.ext4 -q -b 4096 -d "$PWD/udrv" /tmp/model.img
usb_export model:usb-storage:/tmp/model.img
usbip list -r 127.0.0.1 2>/dev/null | grep -q "1209:0002" || fail "not listed: $(usbip list -r 127.0.0.1)"
attach 0-1
mkdir -p /mnt/usb
mount "$(imported_disk)" /mnt/usb
diff -r "$PWD/udrv" /mnt/usb -x lost+found || fail "other files"
dd if=/dev/urandom of=/mnt/usb/new bs=1M count=4 status=none
sum=$(md5sum </mnt/usb/new)
umount /mnt/usb

echo "# a second client finds what the first has written"
detach
attach 0-1
mount "$(imported_disk)" /mnt/usb
[ "$(md5sum </mnt/usb/new)" = "$sum" ] || fail "what was written is not there"
umount /mnt/usb

echo "# detached in the middle of I/O, five times"
for round in 1 2 3 4 5; do
    disk=$(imported_disk)
    dd if="$disk" of=/dev/null bs=64k iflag=direct status=none 2>/dev/null &
    reader=$!
    within 60 sh -c "[ \$(awk '{print \$3}' /sys/block/${disk##*/}/stat) -gt $((round * 100)) ]"
    detach
    if wait "$reader"; then fail "round $round: the reader was not interrupted"; fi
    attach 0-1
done
mount "$(imported_disk)" /mnt/usb
[ "$(md5sum </mnt/usb/new)" = "$sum" ] || fail "what was written is not there any more"
umount /mnt/usb
detach
kill -TERM "$STUB"
wait "$STUB" || fail "the stub's exit status is $?: $(cat /run/export.log)"

echo "# a real device"
dd if=/dev/urandom of="$(disk_of "$port")" bs=1M count=64 oflag=direct status=none
usb_export usb:46f4:0001
[ -z "$(disk_of "$port")" ] || fail "the kernel's driver still has it"
attach "$port"
cmp "$UDRV_VM_RUN/usb.img" "$(imported_disk)" || fail "the blocks differ from the image"
dd if=/dev/urandom of=/tmp/blocks bs=1M count=4 status=none
dd if=/tmp/blocks of="$(imported_disk)" bs=64k seek=64 oflag=direct status=none
detach

echo "# told to end, the stub gives it back"
kill -TERM "$STUB"
wait "$STUB" || fail "the stub's exit status is $?: $(cat /run/export.log)"
within 60 disk_is_back
dd if="$(disk_of "$port")" bs=64k skip=64 count=64 iflag=direct status=none | cmp - /tmp/blocks || fail "not what was written"

echo "# only the loopback unless told otherwise"
if "$UDRV_BIN/stub-driver" usb export model:usb-storage --listen 0.0.0.0:3240 2>/tmp/log; then fail "listens to everybody"; fi
grep -q -- --allow /tmp/log || fail "not told what to do: $(cat /tmp/log)"
