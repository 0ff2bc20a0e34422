#!/bin/sh
# deadline: 240
# The VFIO backend against the kernel: what only a kernel can answer (tests/src/bin/vfio-kernel), and the conformance suite.
. "$(dirname "$0")/lib.sh"
stub=$UDRV_BIN/stub-driver
edu=$(bdf_of 1234:11e8)
removable=$(bdf_of 1234:11e8 2)
nvme=$(bdf_of 1b36:0010)

for device in "$edu" "$removable" "$nvme"; do
    "$stub" bind "$device"
done
for check in access busy intx one-kind relay dma memlock speed; do
    "$UDRV_BIN/vfio-kernel" $check "$edu"
done
"$UDRV_BIN/vfio-kernel" nvme-msix "$nvme"
"$UDRV_BIN/vfio-kernel" nvme-rollback "$nvme"
for device in "$edu" "$nvme"; do
    "$UDRV_BIN/conformance" "pci:$device" || fail "conformance of $device"
done

# The kernel asks for a device back, and gets it.
"$UDRV_BIN/vfio-kernel" request "$removable"
[ ! -e "/sys/bus/pci/devices/$removable" ] || fail "$removable is still there"
rm -f "/run/udrv/taken/$removable"
echo 1 >/sys/bus/pci/rescan
within 10 test -e "/sys/bus/pci/devices/$removable"

"$stub" release "$edu"
"$stub" release "$nvme"
[ "$(driver_of "$nvme")" = nvme ] || fail "the NVMe controller did not get its driver back"
within 20 test -b /dev/nvme0n1
