#!/bin/sh
# Every promise of the Backend trait on the kernel's VFIO: with the edu device's own interrupts and transfers, and with what the
# other devices have (NVMe: MSI-X, a reset; e1000e: MSI, MSI-X, a reset that is not FLR; pci-serial: a pin and I/O ports).
# deadline: 240
. "$(dirname "$0")/lib.sh"

failed=
for id in 1234:11e8 1b36:0010 8086:10d3 1b36:0002; do
    bdf=$(bdf_of "$id")
    "$UDRV_BIN/stub-driver" bind "$bdf"
    "$UDRV_BIN/conformance" "pci:$bdf" || failed="$failed $bdf"
    "$UDRV_BIN/stub-driver" release "$bdf"
done
[ -z "$failed" ] || fail "the kernel's VFIO breaks promises on:$failed"
