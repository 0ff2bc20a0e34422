#!/bin/sh
# deadline: 120
# A device whose IOMMU group has a sibling on a host driver is refused, with the sibling named and nothing changed.
. "$(dirname "$0")/lib.sh"
stub=$UDRV_BIN/stub-driver
isa=0000:00:1f.0
sata=0000:00:1f.2
smbus=0000:00:1f.3
[ "$(group_of $isa) $(group_of $sata)" = "$(group_of $smbus) $(group_of $smbus)" ] || fail "00:1f.x do not share a group"

modprobe ahci
modprobe i2c_i801
[ "$(driver_of $sata)" = ahci ] || fail "$sata is bound to $(driver_of $sata)"
[ "$(driver_of $smbus)" = i801_smbus ] || fail "$smbus is bound to $(driver_of $smbus)"

# refused BDF SIBLING DRIVER
refused() {
    before=$(driver_of "$1")
    status=0
    "$stub" bind "$1" 2>error || status=$?
    [ "$status" -eq 1 ] || fail "exit status $status for $1"
    [ "$(wc -l <error)" -eq 1 ] || fail "not one line: $(cat error)"
    grep -q "group $(group_of "$1") is not viable.*$2 ($3)" error || fail "the sibling is not named: $(cat error)"
    grep -q "echo $2 > /sys/bus/pci/drivers/$3/unbind" error || fail "the message does not say what to do: $(cat error)"
    [ "$(driver_of "$1")" = "$before" ] || fail "$1 was on $before, is on $(driver_of "$1")"
    [ "$(cat "/sys/bus/pci/devices/$1/driver_override")" = "(null)" ] || fail "$1 is restricted"
    [ ! -e "/run/udrv/taken/$1" ] || fail "$1 is recorded"
}
cd /tmp
refused $sata $smbus i801_smbus
refused $smbus $sata ahci
"$stub" list | grep "^$sata .*no: .*$smbus (i801_smbus)" >/dev/null || fail "list does not name the sibling"
if "$stub" doctor $sata >doctor 2>error; then fail "doctor passes a group that is not viable"; fi
grep -q "^FAIL  group .*$smbus (i801_smbus); echo $smbus > " doctor || fail "doctor does not name the sibling: $(cat doctor)"

# what the message says helps: the kernel lets the group be opened then, and before it does not
echo vfio-pci >"/sys/bus/pci/devices/$sata/driver_override"
echo $sata >/sys/bus/pci/drivers/ahci/unbind
echo $sata >/sys/bus/pci/drivers/vfio-pci/bind
cat >viable.py <<'PYTHON'
import fcntl, os, struct, sys
VFIO_GROUP_GET_STATUS, VIABLE = 0x3b67, 1
status = bytearray(struct.pack("II", 8, 0))
fcntl.ioctl(os.open(sys.argv[1], os.O_RDWR), VFIO_GROUP_GET_STATUS, status)
print(struct.unpack("II", status)[1] & VIABLE)
PYTHON
[ "$(python3 viable.py "/dev/vfio/$(group_of $sata)")" = 0 ] || fail "the kernel takes the group for viable"
echo $sata >/sys/bus/pci/drivers/vfio-pci/unbind
echo >"/sys/bus/pci/devices/$sata/driver_override"
echo $smbus >/sys/bus/pci/drivers/i801_smbus/unbind
"$stub" bind $sata
[ "$(python3 viable.py "/dev/vfio/$(group_of $sata)")" = 1 ] || fail "the kernel does not take the group for viable"
"$stub" release $sata
echo $smbus >/sys/bus/pci/drivers/i801_smbus/bind
echo $sata >/sys/bus/pci/drivers/ahci/bind
