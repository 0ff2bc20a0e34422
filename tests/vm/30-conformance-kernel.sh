#!/bin/sh
# Every promise of the Backend trait on the kernel's VFIO: with the edu device's own interrupts and transfers, and with what the
# other devices have (NVMe: MSI-X, FLR; pci-serial: a pin and I/O ports).
# deadline: 240
. "$(dirname "$0")/lib.sh"

# conforms VENDOR:DEVICE COUNT: every check passes but COUNT that the device gives no occasion for
conforms() {
    bdf=$(bdf_of "$1")
    "$UDRV_BIN/stub-driver" bind "$bdf"
    "$UDRV_BIN/conformance" "pci:$bdf" >"/tmp/$bdf" || failed="$failed $bdf"
    cat "/tmp/$bdf"
    grep -q " 0 failed; $2 not applicable$" "/tmp/$bdf" || failed="$failed $bdf (expected $2 not applicable)"
    "$UDRV_BIN/stub-driver" release "$bdf"
}
failed=
conforms 1234:11e8 8
conforms 1b36:0010 16
conforms 1b36:0002 16
[ -z "$failed" ] || fail "the kernel's VFIO breaks promises on:$failed"
