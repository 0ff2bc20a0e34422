#!/bin/sh
# deadline: 300
# `stub-driver bind` takes a device, and `release` gives it back to the driver it had, wherever the process was killed.
. "$(dirname "$0")/lib.sh"
stub=$UDRV_BIN/stub-driver

# override_of BDF: its driver_override
override_of() {
    cat "/sys/bus/pci/devices/$1/driver_override"
}

# check BDF DRIVER: bound to it, without a restriction, not recorded
check_released() {
    [ "$(driver_of "$1")" = "$2" ] || fail "$1 is bound to $(driver_of "$1"), was to $2"
    [ "$(override_of "$1")" = "(null)" ] || fail "$1 is restricted to $(override_of "$1")"
    [ ! -e "/run/udrv/taken/$1" ] || fail "$1 is recorded after its release"
}

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
bind_and_release "$(bdf_of 8086:10d3)" e1000e
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

# whatever a process that was killed between two of its steps may have left
serial=$(bdf_of 1b36:0002)
"$stub" bind "$serial" >/dev/null
cp "/run/udrv/taken/$serial" record
"$stub" release "$serial" >/dev/null
leave() { # DRIVER DRIVER_OVERRIDE
    cp record "/run/udrv/taken/$serial"
    [ "$1" = serial ] || echo "$serial" >/sys/bus/pci/drivers/serial/unbind
    if [ "$1" = vfio-pci ]; then
        echo vfio-pci >"/sys/bus/pci/devices/$serial/driver_override"
        echo "$serial" >/sys/bus/pci/drivers/vfio-pci/bind
    fi
    echo "$2" >"/sys/bus/pci/devices/$serial/driver_override"
    [ "$(driver_of "$serial")" = "$1" ] || fail "could not leave $1"
}
for left in "serial" "serial vfio-pci" "none vfio-pci" "vfio-pci vfio-pci" "vfio-pci" "none"; do
    leave ${left% *} "$(echo "$left" | cut -d ' ' -s -f 2)"
    "$stub" release "$serial" >/dev/null || fail "release after a crash at: $left"
    check_released "$serial" serial
    leave ${left% *} "$(echo "$left" | cut -d ' ' -s -f 2)"
    "$stub" bind "$serial" >/dev/null || fail "bind after a crash at: $left"
    [ "$(driver_of "$serial")" = vfio-pci ] || fail "bind after a crash at '$left' ended on $(driver_of "$serial")"
    "$stub" release "$serial" >/dev/null
    check_released "$serial" serial
done

# and killed at random moments
python3 - "$stub" "$(bdf_of 1b36:0002)" serial <<'PYTHON' || fail "killed at random moments"
import os, random, signal, subprocess, sys, time
stub, bdf, driver = sys.argv[1:]
device = f"/sys/bus/pci/devices/{bdf}"
seed = random.randrange(1 << 32)
random.seed(seed)
print("seed", seed)

def driver_now():
    try:
        return os.path.basename(os.readlink(f"{device}/driver"))
    except FileNotFoundError:
        return None

def state():
    with open(f"{device}/driver_override") as only:
        return (driver_now(), only.read().strip(), os.path.exists(f"/run/udrv/taken/{bdf}"))

def took(command):
    start = time.monotonic()
    subprocess.run([stub, command, bdf], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start

longest = {"bind": took("bind"), "release": took("release")}
seen = {}
for round in range(24):
    command = "bind" if round % 4 else "release"
    if command == "release":
        took("bind")
    victim = subprocess.Popen([stub, command, bdf], stdout=subprocess.DEVNULL)
    try:
        victim.wait(random.uniform(0, longest[command]))
    except subprocess.TimeoutExpired:
        pass
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    left = state()
    seen[left] = seen.get(left, 0) + 1
    recorded = left[2]
    after = subprocess.run([stub, "release", bdf], capture_output=True, text=True)
    assert (after.returncode == 0) or not recorded or "was not taken" in after.stderr, (seed, round, left, after)
    assert state() == (driver, "(null)", False), (seed, round, left, after, state())
for left, count in sorted(seen.items(), key=str):
    print(count, "times left", left)
assert len(seen) > 2, "the kills came too early or too late to show anything"
PYTHON
