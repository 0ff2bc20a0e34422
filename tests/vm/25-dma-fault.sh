#!/bin/sh
# DMA outside a mapping is stopped by the IOMMU; the driver notices by what did not arrive, the host by its log; both go on.
. "$(dirname "$0")/lib.sh"
stub=$UDRV_BIN/stub-driver
edu=$(bdf_of 1234:11e8)
short=${edu#0000:}
"$stub" bind "$edu"

# The kernel's log is what the host notices by. Lines are cleared first, so that only ours are seen.
dmesg --clear
"$UDRV_BIN/vfio-kernel" fault "$edu"
faulted() { # READ-OR-WRITE ADDRESS
    dmesg | grep -q "DMAR: \[DMA $1 .*device \[$short\] fault addr $2 "
}
within 10 faulted Read 0x8000000
within 10 faulted Write 0x8000000
within 10 faulted Read 0x1000
dmesg | grep DMAR

# And the next driver has a device that works.
"$UDRV_BIN/udrv" run edu --device "pci:$edu" --samples 10 >/tmp/out
grep -q "^DMA .*equal" /tmp/out || fail "the device is no use after the faults"
"$stub" release "$edu"
