#!/bin/sh
# The stub opens a USB device for an unprivileged driver, and gives it back whatever way the driver ends; if the stub itself
# was killed, the next one does.
# deadline: 500
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib-usb.sh"

udrv=$UDRV_BIN/udrv
image=$UDRV_VM_RUN/usb.img
load_usb
port=$(usb_port_of 46f4:0001)
dd if=/dev/urandom of="$(disk_of "$port")" bs=1M count=8 oflag=direct status=none
mkdir -p /tmp/nobody && chown nobody /tmp/nobody
log=/tmp/nobody/log

driver_of_disk() {
    link=$(readlink "/sys/bus/usb/devices/$port:1.0/driver") || return 0
    echo "${link##*/}"
}
# kernel_has_disk: the kernel's driver has it, and nothing is recorded
kernel_has_disk() { [ "$(driver_of_disk)" = usb-storage ] && [ ! -e "/run/udrv/taken/usb:$port" ]; }
# start_reading: an unprivileged driver in the background, in the middle of its work
start_reading() {
    rm -f /tmp/nobody/read
    $AS_NOBODY "$udrv" run usb-storage --device "$socket" read --output /tmp/nobody/read 2>$log &
    driver=$!
    within 60 has_read 1
}
# has_read MIB: the driver has read as much
has_read() {
    kill -0 "$driver" 2>/dev/null || fail "the driver had ended by itself: $(cat $log)"
    [ "$(stat -c %s /tmp/nobody/read 2>/dev/null || echo 0)" -ge $(($1 * 1048576)) ]
}

serve "usb:$port" --owner nobody
socket=unix:$SOCKETS/usb-$port.sock

echo "# an unprivileged user drives the disk; the kernel has it before and after"
kernel_has_disk || fail "taken without a driver"
$AS_NOBODY "$udrv" run usb-storage --device "$socket" read --blocks 16384 --output /tmp/nobody/read
head -c 8388608 "$image" | cmp - /tmp/nobody/read || fail "what was read differs from the image"
within 60 kernel_has_disk
if $AS_NOBODY "$udrv" run usb-storage --device "usb:$port" info 2>$log; then fail "nobody may open the node himself"; fi

echo "# killed with transfers in flight, ten times: the kernel's driver is back, and the next driver finds the device usable"
for round in 1 2 3 4 5 6 7 8 9 10; do
    start_reading
    [ -e "/run/udrv/taken/usb:$port" ] || fail "round $round: nothing is recorded"
    # after as many MiB as there were rounds, so that it is hit at another place each time
    within 60 has_read $round
    kill -KILL "$driver"
    wait "$driver" || true
    within 60 kernel_has_disk
done
within 90 disk_is_back
head -c 8388608 "$image" | cmp -n 8388608 - "$(disk_of "$port")" || fail "the kernel reads other blocks after the kills"
$AS_NOBODY "$udrv" run usb-storage --device "$socket" read --blocks 16384 --output /tmp/nobody/read
head -c 8388608 "$image" | cmp - /tmp/nobody/read || fail "what was read after the kills differs from the image"

echo "# a second driver at the same time is refused, and told why"
mkfifo /tmp/nobody/fifo && chown nobody /tmp/nobody/fifo
$AS_NOBODY "$udrv" run usb-storage --device "$socket" read --output /tmp/nobody/fifo 2>/dev/null &
first=$!
exec 3</tmp/nobody/fifo
if $AS_NOBODY "$udrv" run usb-storage --device "$socket" info 2>$log; then fail "two drivers at once"; fi
grep -q "process $first of user 65534 has it" $log || fail "not told why: $(cat $log)"
"$UDRV_BIN/stub-driver" status | grep -q "process $first" || fail "status does not name it: $("$UDRV_BIN/stub-driver" status)"
exec 3<&-
wait "$first" || true
within 60 kernel_has_disk

echo "# a disk that is mounted is not taken"
within 90 disk_is_back
mkfs.ext4 -q -F -b 4096 "$(disk_of "$port")"
mkdir -p /mnt/usb
mount "$(disk_of "$port")" /mnt/usb
if $AS_NOBODY "$udrv" run usb-storage --device "$socket" info 2>$log; then fail "taken although it is mounted"; fi
grep -q "is mounted on /mnt/usb" $log || fail "not told why: $(cat $log)"
umount /mnt/usb
dd if=/dev/urandom of="$(disk_of "$port")" bs=1M count=8 oflag=direct status=none

echo "# a driver that keeps the descriptor after its lease has no more than endpoint 0"
within 90 disk_is_back
# Debian's: another may be in a folder of root's.
$AS_NOBODY /usr/bin/python3 "$(dirname "$0")/lib-usb-kept.py" "${socket#unix:}" "/sys/bus/usb/devices/$port:1.0/driver" >/tmp/kept ||
    fail "the driver that keeps it"
[ "$(cat /tmp/kept)" = "ask for a descriptor" ] || fail "after its lease a driver could: $(cat /tmp/kept)"
kernel_has_disk || fail "with $(driver_of_disk) after a driver that kept the descriptor"

echo "# told to end in the middle of a driver's work, the stub gives the disk back first"
start_reading
stop_stub
wait "$driver" && fail "the driver went on"
kernel_has_disk || fail "with $(driver_of_disk) after the stub's end"

echo "# also when the driver was killed just before; the address says what it is instead of where"
serve usb:46f4:0001 --owner nobody
socket=unix:$SOCKETS/usb-46f4-0001.sock
start_reading
kill -KILL "$driver"
stop_stub
wait "$driver" || true
kernel_has_disk || fail "with $(driver_of_disk) after the stub's end"

echo "# the stub and its driver killed: the next stub gives the disk back before it does anything else"
serve usb:46f4:0001:udrv --owner nobody
socket=unix:$SOCKETS/usb-46f4-0001-udrv.sock
start_reading
kill -KILL "$STUB" "$driver"
wait "$STUB" "$driver" || true
[ -z "$(driver_of_disk)" ] || fail "nothing to repair: $(driver_of_disk) has it"
serve model:edu
grep -q "usb:$port: left taken by a stub that died" "$SOCKETS.log" || fail "no word of it: $(cat "$SOCKETS.log")"
kernel_has_disk || fail "not repaired: $(driver_of_disk) has it, recorded: $(ls /run/udrv/taken)"
stop_stub

echo "# the stub alone killed: its driver keeps the disk while it lives; then the next stub gives it back"
serve "usb:$port" --owner nobody
socket=unix:$SOCKETS/usb-$port.sock
mkfifo /tmp/nobody/hold && chown nobody /tmp/nobody/hold
$AS_NOBODY "$udrv" run usb-storage --device "$socket" read --output /tmp/nobody/hold 2>/dev/null &
driver=$!
exec 3</tmp/nobody/hold
kill -KILL "$STUB"
wait "$STUB" || true
serve model:edu
grep -q "a program has interface 0" "$SOCKETS.log" || fail "taken from a driver that lives: $(cat "$SOCKETS.log")"
[ "$(driver_of_disk)" = usbfs ] || fail "with $(driver_of_disk) while its driver lives"
stop_stub
kill -KILL "$driver"
exec 3<&-
wait "$driver" || true
serve "usb:$port" --owner nobody
kernel_has_disk || fail "not repaired: $(driver_of_disk) has it"
stop_stub
within 90 disk_is_back
head -c 8388608 "$image" | cmp -n 8388608 - "$(disk_of "$port")" || fail "the kernel reads other blocks"
