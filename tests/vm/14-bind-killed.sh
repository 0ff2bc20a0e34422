#!/bin/sh
# deadline: 300
# Wherever a process that binds or releases was killed, the next one gives the device back to the driver it had.
. "$(dirname "$0")/lib.sh"
stub=$UDRV_BIN/stub-driver
cd /tmp

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
python3 - "$stub" "$serial" serial <<'PYTHON' || fail "killed at random moments"
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
