#!/bin/sh
# The virtual machine is the VFIO host that the other scenarios take for granted.
. "$(dirname "$0")/lib.sh"

[ "$(ls /sys/kernel/iommu_groups | wc -l)" -gt 0 ] || fail "no IOMMU groups"

[ "$(bdfs_of 1234:11e8 | wc -l)" -eq 2 ] || fail "expected two edu devices, found: $(bdfs_of 1234:11e8 | xargs)"
[ "$(group_of "$(bdf_of 1234:11e8 1)")" != "$(group_of "$(bdf_of 1234:11e8 2)")" ] || fail "the edu devices share a group"
for edu in $(bdfs_of 1234:11e8); do
    [ "$(driver_of "$edu")" = none ] || fail "$edu is bound to $(driver_of "$edu")"
done

nvme=$(bdf_of 1b36:0010)
[ "$(driver_of "$nvme")" = nvme ] || fail "NVMe $nvme is bound to $(driver_of "$nvme")"
e1000=$(bdf_of 8086:100e)
[ "$(driver_of "$e1000")" = e1000 ] || fail "e1000 $e1000 is bound to $(driver_of "$e1000")"
[ "$(driver_of "$(bdf_of 1b36:0002)")" = serial ] || fail "pci-serial is bound to $(driver_of "$(bdf_of 1b36:0002)")"

[ -c /dev/vfio/vfio ] || fail "no /dev/vfio/vfio"
[ -d /sys/bus/pci/drivers/vfio-pci ] || fail "vfio-pci is not loaded"

grep -q ' /mnt/host 9p ro,' /proc/mounts || fail "the host's root is not a read-only 9p mount"
if touch "/mnt/host$PWD/written-by-guest" 2>/dev/null; then fail "the guest can write to the host's root"; fi
touch written-by-guest || fail "the overlay cannot be written"
rm written-by-guest

for program in udrv stub-driver; do
    [ -x "$UDRV_BIN/$program" ] || fail "no $program in UDRV_BIN=$UDRV_BIN"
done
echo "IOMMU groups: $(ls /sys/kernel/iommu_groups | wc -l), edu: $(bdfs_of 1234:11e8 | xargs), nvme: $nvme, kernel $(uname -r)"
