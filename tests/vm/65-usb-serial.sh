#!/bin/bash
# The serial driver: FTDI on QEMU's usb-serial, whose line ends in a PCI serial port (00:0b.0); CDC-ACM on our model, over USB/IP,
# with the kernel's cdc_acm as the peer.
# deadline: 180
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib-usb.sh"

modprobe -a xhci_pci ftdi_sio cdc-acm vhci-hcd || fail "cannot load the drivers"
within 20 usb_port_of 0403:6001 >/dev/null
port=$(usb_port_of 0403:6001)
kernel_driver_of() { link=$(readlink "/sys/bus/usb/devices/$1/driver") && [ "${link##*/}" = "$2" ]; }
within 20 kernel_driver_of "$port:1.0" ftdi_sio
for tty in /sys/class/tty/ttyS*; do
    case $(readlink -f "$tty/device") in */0000:00:0b.0*) far=/dev/${tty##*/} ;; esac
done
[ -c "${far:-}" ] || fail "no PCI serial port at the other end"

# serial ARGS...: starts the driver and waits until it is ready
serial() {
    "$UDRV_BIN/udrv" run usb-serial --link /run/serial "$@" >/tmp/serial.out 2>/tmp/serial.log &
    DRIVER=$!
    within 20 serial_is_ready
}
serial_is_ready() {
    kill -0 "$DRIVER" 2>/dev/null || fail "the driver ended: $(cat /tmp/serial.log)"
    grep -q ^ready /tmp/serial.log
}
# serial_ends SIGNAL: ends it in the orderly way
serial_ends() {
    kill "-$1" "$DRIVER"
    wait "$DRIVER" || fail "exit status $?: $(cat /tmp/serial.log)"
    [ ! -L /run/serial ] || fail "the link is left"
}
talk() { python3 "$(dirname "$0")/lib-serial.py" "$@" || fail "$*: $(cat /tmp/serial.log)"; }

echo "# FTDI: bytes both ways, closed and opened again with another speed"
serial --device "usb:$port" --record /tmp/serial.pcapng
[ "$(readlink /run/serial)" = "$(cat /tmp/serial.out)" ] || fail "the link leads to $(readlink /run/serial)"
talk /run/serial "$far" 115200 20000
talk /run/serial "$far" 57600 2000

echo "# a second driver is told that it is busy"
if "$UDRV_BIN/udrv" run usb-serial --device "usb:$port" >/dev/null 2>/tmp/log; then fail "two drivers have it"; fi
grep -q "usb:$port" /tmp/log || fail "not told which: $(cat /tmp/log)"

echo "# SIGTERM: the kernel's driver is back"
serial_ends TERM
grep -q "22000 bytes received, 22000 sent; 0 overruns" /tmp/serial.log || fail "counters: $(cat /tmp/serial.log)"
within 20 kernel_driver_of "$port:1.0" ftdi_sio
within 20 test -c /dev/ttyUSB0
# SET_BAUD_RATE (40 03) with 3 MHz / 26 and / 52.125, SET_MODEM_CTRL (40 01) with DTR and RTS on and off
python3 - <<'P' || fail "the requests"
recorded = open("/tmp/serial.pcapng", "rb").read()
for request in ["40031a0000000000", "400334c000000000", "4001030300000000", "4001000300000000"]:
    assert bytes.fromhex(request) in recorded, request
P

echo "# pulled out: the driver ends, with a message, and takes its link along"
serial --device "usb:$port"
monitor device_del usbserial
if wait "$DRIVER"; then fail "no error"; fi
grep -q gone /tmp/serial.log || fail "not told: $(cat /tmp/serial.log)"
[ ! -L /run/serial ] || fail "the link is left"
monitor device_add usb-serial,bus=xhci.0,port=3,chardev=usbserial,always-plugged=on,id=usbserial
within 30 usb_port_of 0403:6001 >/dev/null

echo "# CDC-ACM: our model under the kernel's own driver"
"$UDRV_BIN/stub-driver" usb export model:cdc-acm >/run/export.log 2>&1 &
STUB=$!
exporting() {
    kill -0 "$STUB" 2>/dev/null || fail "the stub ended: $(cat /run/export.log)"
    grep -qx ready /run/export.log
}
within 20 exporting
usbip attach -r 127.0.0.1 -b 0-1 || fail "usbip cannot attach"
within 30 test -c /dev/ttyACM0
talk /dev/ttyACM0 - 115200 20000

echo "# and under ours, on the same device"
serial --device usb:1209:0005
talk /run/serial - 9600 20000
serial_ends INT
acm=$(usb_port_of 1209:0005)
within 20 kernel_driver_of "$acm:1.0" cdc_acm
within 20 test -c /dev/ttyACM0
talk /dev/ttyACM0 - 9600 1000
usbip detach -p "$(usbip port 2>/dev/null | sed -n 's/^Port \([0-9]*\):.*/\1/p' | head -1)" 2>/dev/null
no_model() { ! usb_port_of 1209:0005 >/dev/null; }
within 30 no_model
kill -TERM "$STUB"
wait "$STUB" || fail "the stub's exit status is $?: $(cat /run/export.log)"

echo "# bad input"
if "$UDRV_BIN/udrv" run usb-serial --device usb:dead:beef 2>/tmp/log; then fail "a device that is not there"; fi
grep -q "dead:beef" /tmp/log || fail "$(cat /tmp/log)"
if "$UDRV_BIN/udrv" run usb-serial --device usb:46f4:0001 2>/tmp/log; then fail "a disk is no serial port"; fi
grep -q "CDC-ACM" /tmp/log || fail "$(cat /tmp/log)"
