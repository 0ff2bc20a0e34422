#!/bin/bash
# The keyboard driver on QEMU's keyboard: keys sent through the monitor are printed; the traffic is recorded; the kernel's driver
# is back afterwards.
# deadline: 240
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib-usb.sh"

load_usb
modprobe hid-generic
within 60 usb_port_of 0627:0001
port=$(usb_port_of 0627:0001)
kernel_has_keyboard() { [ "$(basename "$(readlink "/sys/bus/usb/devices/$port:1.0/driver")")" = usbhid ]; }
within 60 kernel_has_keyboard

"$UDRV_BIN/udrv" run usb-keyboard --device "usb:$port" --events 6 --seconds 150 --record /tmp/keys.pcapng >/tmp/keys 2>/tmp/log &
driver=$!
within 60 grep -q ready /tmp/log
monitor sendkey a
within 60 grep -q "release a" /tmp/keys
monitor sendkey shift-b
wait "$driver" || fail "exit status $?: $(cat /tmp/log /tmp/keys)"
sort /tmp/keys >/tmp/sorted
printf '%s\n' "press   a" "press   b" "press   left shift" "release a" "release b" "release left shift" | diff - /tmp/sorted ||
    fail "other keys"

# the recording: as usbmon would have told it (link type 220), submissions and ends, with the report of key a (usage 4)
python3 - <<'P' || fail "the recording"
import struct
file = open("/tmp/keys.pcapng", "rb").read()
at, packets, link = 0, [], None
while at < len(file):
    kind, length = struct.unpack_from("=II", file, at)
    assert struct.unpack_from("=I", file, at + length - 4)[0] == length
    if kind == 1:
        link = struct.unpack_from("=H", file, at + 8)[0]
    if kind == 6:
        packets.append(file[at + 28:at + length - 4])
    at += length
assert link == 220, link
reports = [p[64:72] for p in packets if p[8:9] == b"C" and p[9] == 1 and struct.unpack_from("=I", p, 36)[0] == 8]
assert bytes([0, 0, 4, 0, 0, 0, 0, 0]) in reports, reports
assert any(p[8:9] == b"S" and p[9] == 2 and p[41] == 0x0b for p in packets), "no SET_PROTOCOL"
P
within 60 kernel_has_keyboard
