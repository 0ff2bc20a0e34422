#!/bin/sh
# The stub opens a USB device for an unprivileged driver, and gives it back whatever way the driver ends.
# deadline: 180
. "$(dirname "$0")/../vm/lib.sh"
. "$(dirname "$0")/lib-usb.sh"

udrv=$UDRV_BIN/udrv
image=$UDRV_VM_RUN/usb.img
load_usb
within 20 disk_is_back
port=$(usb_port_of 46f4:0001)
dd if=/dev/urandom of="$(disk_of "$port")" bs=1M count=8 oflag=direct status=none

# usb_serve: starts the stub for the disk and waits until it is ready
usb_serve() {
    "$UDRV_BIN/stub-driver" usb serve usb:46f4:0001 --socket-dir /run/udrv --owner nobody >/run/usb-stub.log 2>&1 &
    STUB=$!
    within 20 usb_serving
}
usb_serving() {
    kill -0 "$STUB" 2>/dev/null || fail "the stub ended: $(cat /run/usb-stub.log)"
    grep -qx ready /run/usb-stub.log
}
usb_serve
socket=unix:/run/udrv/usb-$port.sock
# in the background a function would be a shell, and the driver its child
nobody="setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --"
mkdir -p /tmp/nobody && chown nobody /tmp/nobody

echo "# an unprivileged user drives the disk"
[ -z "$(disk_of "$port")" ] || fail "the kernel still has the disk"
$AS_NOBODY "$udrv" run usb-storage --device "$socket" read --blocks 16384 --output /tmp/nobody/read
head -c 8388608 "$image" | cmp - /tmp/nobody/read || fail "what was read differs from the image"
if $AS_NOBODY "$udrv" run usb-storage --device "usb:$port" info 2>/tmp/log; then fail "nobody may open the node himself"; fi

echo "# killed with transfers in flight, ten times; the next driver finds the device usable"
for round in 1 2 3 4 5 6 7 8 9 10; do
    rm -f /tmp/nobody/read
    $nobody "$udrv" run usb-storage --device "$socket" read --output /tmp/nobody/read 2>/tmp/driver.log &
    driver=$!
    # after as many MiB as there were rounds, so that it is hit at another place each time
    while kill -0 "$driver" 2>/dev/null; do
        [ "$(stat -c %s /tmp/nobody/read 2>/dev/null || echo 0)" -lt $((round * 1048576)) ] || break
    done
    kill -KILL "$driver" 2>/dev/null || fail "round $round: the driver had ended by itself: $(cat /tmp/driver.log)"
    wait "$driver" || true
done
$AS_NOBODY "$udrv" run usb-storage --device "$socket" read --blocks 16384 --output /tmp/nobody/read
head -c 8388608 "$image" | cmp - /tmp/nobody/read || fail "what was read after the kills differs from the image"

echo "# a second driver at the same time is refused, and told why"
mkfifo /tmp/nobody/fifo && chown nobody /tmp/nobody/fifo
$nobody "$udrv" run usb-storage --device "$socket" read --output /tmp/nobody/fifo 2>/dev/null &
first=$!
exec 3</tmp/nobody/fifo
if $AS_NOBODY "$udrv" run usb-storage --device "$socket" info 2>/tmp/log; then fail "two drivers at once"; fi
grep -q "another driver has the device" /tmp/log || fail "not told why: $(cat /tmp/log)"
exec 3<&-
wait "$first" || true

echo "# told to end, the stub gives the disk back"
kill -TERM "$STUB"
wait "$STUB" || fail "the stub's exit status is $?: $(cat /run/usb-stub.log)"
within 20 disk_is_back

echo "# and also when the driver it serves was killed just before"
usb_serve
$nobody "$udrv" run usb-storage --device "$socket" read --output /tmp/nobody/read 2>/tmp/driver.log &
driver=$!
within 20 test -s /tmp/nobody/read
kill -KILL "$driver"
kill -TERM "$STUB"
wait "$STUB" || fail "the stub's exit status is $?: $(cat /run/usb-stub.log)"
within 20 disk_is_back
head -c 8388608 "$image" | cmp -n 8388608 - "$(disk_of "$port")" || fail "the kernel reads other blocks"
