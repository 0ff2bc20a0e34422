#!/bin/sh
# A device whose group has a sibling on a kernel driver cannot be opened, even when it is on vfio-pci itself.
. "$(dirname "$0")/lib.sh"
sata=0000:00:1f.2
smbus=0000:00:1f.3
modprobe i2c_i801
[ "$(driver_of $smbus)" = i801_smbus ] || fail "$smbus is bound to $(driver_of $smbus)"
[ "$(driver_of $sata)" = none ] || echo $sata >"/sys/bus/pci/devices/$sata/driver/unbind"
echo vfio-pci >/sys/bus/pci/devices/$sata/driver_override
echo $sata >/sys/bus/pci/drivers_probe
[ "$(driver_of $sata)" = vfio-pci ] || fail "$sata is bound to $(driver_of $sata)"

status=0
"$UDRV_BIN/udrv" info pci:$sata 2>/tmp/error || status=$?
cat /tmp/error
[ "$status" -eq 1 ] && [ "$(wc -l </tmp/error)" -eq 1 ] || fail "exit status $status"
grep -q "group $(group_of $sata) is not viable: kernel drivers hold $smbus (i801_smbus)" /tmp/error || fail "the sibling is not named"

echo $smbus >/sys/bus/pci/drivers/i801_smbus/unbind
"$UDRV_BIN/udrv" info pci:$sata

echo $smbus >/sys/bus/pci/drivers_probe
echo $sata >/sys/bus/pci/drivers/vfio-pci/unbind
echo >/sys/bus/pci/devices/$sata/driver_override
echo $sata >/sys/bus/pci/drivers_probe
