#!/bin/sh
# deadline: 300
# `stub-driver bind` takes a device, and `release` gives it back to the driver it had.
. "$(dirname "$0")/lib.sh"
stub=$UDRV_BIN/stub-driver

bind_and_release() { # BDF DRIVER
    check_released "$1" "$2"
    "$stub" bind "$1"
    [ "$(driver_of "$1")" = vfio-pci ] || fail "$1 is bound to $(driver_of "$1") after bind"
    [ -c "/dev/vfio/$(group_of "$1")" ] || fail "$1 has no group node"
    "$stub" bind "$1" | grep -q "already" || fail "binding $1 twice does not say so"
    "$stub" list | grep "^$1 .* a person" >/dev/null || fail "list does not say that a person took $1"
    "$stub" release "$1"
    check_released "$1" "$2"
}

nvme=$(bdf_of 1b36:0010)
edu=$(bdf_of 1234:11e8)
bind_and_release "$nvme" nvme
within 20 test -b /dev/nvme0n1
bind_and_release "$(bdf_of 8086:100e)" e1000
bind_and_release "$(bdf_of 1b36:0002)" serial
bind_and_release "$edu" none
[ "$(stat -c %a /run/udrv/taken)" = 755 ] || fail "mode of /run/udrv/taken: $(stat -c %a /run/udrv/taken)"

# a device that another tool had bound to vfio-pci stays there
echo vfio-pci >"/sys/bus/pci/devices/$edu/driver_override"
echo "$edu" >/sys/bus/pci/drivers_probe
[ "$(driver_of "$edu")" = vfio-pci ] || fail "edu cannot be bound by hand"
"$stub" bind "$edu"
"$stub" release "$edu"
[ "$(driver_of "$edu")" = vfio-pci ] || fail "release took edu from vfio-pci, where it was before"
[ "$(override_of "$edu")" = vfio-pci ] || fail "release changed the restriction that was there before"
echo "$edu" >/sys/bus/pci/drivers/vfio-pci/unbind
echo >"/sys/bus/pci/devices/$edu/driver_override"

# a driver bound by another tool meanwhile is left alone
"$stub" bind "$nvme"
echo "$nvme" >/sys/bus/pci/drivers/vfio-pci/unbind
modprobe pci_stub
echo pci-stub >"/sys/bus/pci/devices/$nvme/driver_override"
echo "$nvme" >/sys/bus/pci/drivers/pci-stub/bind
"$stub" release "$nvme" | grep -q "pci-stub" || fail "release does not say that pci-stub has the device"
[ "$(driver_of "$nvme")" = pci-stub ] || fail "release took the device from pci-stub"
echo "$nvme" >/sys/bus/pci/drivers/pci-stub/unbind
echo >"/sys/bus/pci/devices/$nvme/driver_override"
echo "$nvme" >/sys/bus/pci/drivers_probe
check_released "$nvme" nvme

# not while a process has the group open
"$stub" bind "$edu"
cd /tmp
exec 3<>"/dev/vfio/$(group_of "$edu")"
if "$stub" release "$edu" 2>error 3>&-; then fail "released while its group is open"; fi
grep -q "process $$ " error || fail "release does not name process $$: $(cat error)"
[ "$(driver_of "$edu")" = vfio-pci ] || fail "a refused release changed the driver"
exec 3>&-
"$stub" release "$edu"
check_released "$edu" none

# nor while only the device is open, which does not say whose it is; nor while the kernel already waits for it
"$stub" bind "$edu"
cat >hold.py <<'PYTHON'
import fcntl, os, signal, struct, sys
VFIO_GROUP_GET_DEVICE_FD, VFIO_GROUP_SET_CONTAINER, VFIO_SET_IOMMU, TYPE1 = 0x3b6a, 0x3b68, 0x3b66, 1
group, container = (os.open(path, os.O_RDWR) for path in (sys.argv[1], "/dev/vfio/vfio"))
fcntl.ioctl(group, VFIO_GROUP_SET_CONTAINER, struct.pack("i", container))
fcntl.ioctl(container, VFIO_SET_IOMMU, TYPE1)
fcntl.ioctl(group, VFIO_GROUP_GET_DEVICE_FD, sys.argv[2].encode() + b"\0")
os.close(group)
os.close(container)
open("holding", "w").write("now")
signal.pause()
PYTHON
python3 hold.py "/dev/vfio/$(group_of "$edu")" "$edu" &
holder=$!
trap 'kill "$holder"' EXIT
within 60 test -s holding
if "$stub" release "$edu" 2>error; then fail "released while it is open"; fi
grep -q "probably process $holder (python3)) has its VFIO group open" error || fail "$holder is not named: $(cat error)"
echo "$edu" >/sys/bus/pci/drivers/vfio-pci/unbind &
unbinding=$!
within 20 grep -q vfio_unregister_group_dev "/proc/$unbinding/stack"
if timeout 30 "$stub" release "$edu" 2>error; then fail "released while the kernel waits for its user"; fi
grep -q "probably process $holder (python3)) has its" error || fail "while the kernel waits: $(cat error)"
mv "/run/udrv/taken/$edu" record
status=0
timeout 30 "$stub" bind "$edu" 2>error || status=$?
[ "$status" -eq 1 ] || fail "bind while the kernel waits: exit status $status"
grep -q "reading its driver_override, because the kernel waits for .*process $holder (python3).* within 5s" error || fail "while the kernel waits: $(cat error)"
mv record "/run/udrv/taken/$edu"
timeout 30 "$stub" list >list || fail "list waits with the kernel"
timeout 30 "$stub" doctor "$edu" >doctor || fail "doctor waits with the kernel"
kill "$holder"
trap - EXIT
wait "$unbinding"
"$stub" release "$edu"
check_released "$edu" none

# two at once: one after the other
"$stub" bind "$nvme" >one &
"$stub" bind "$nvme" >two
wait $!
[ "$(cat one two | grep -c already)" -eq 1 ] || fail "of two at once not exactly one came second: $(cat one two)"
"$stub" release "$nvme"
check_released "$nvme" nvme
