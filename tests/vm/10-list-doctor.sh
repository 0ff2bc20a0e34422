#!/bin/sh
# deadline: 120
# `stub-driver list` and `doctor` say what this machine is known to have, as root and as nobody.
. "$(dirname "$0")/lib.sh"
stub=$UDRV_BIN/stub-driver
edu=$(bdf_of 1234:11e8)
nvme=$(bdf_of 1b36:0010)

# line_of BDF: its line of the table
line_of() {
    grep "^$1 " list || fail "list does not show $1"
}

cd /tmp
"$stub" list >list
case $(line_of "$edu") in
*" 1234:11e8 "*" - "*" none "*" yes "*" -") ;;
*) fail "edu has no driver, no reset and is viable, but: $(line_of "$edu")" ;;
esac
case $(line_of "$nvme") in
*"non-volatile memory controller"*" 1b36:0010 "*" nvme "*" flr "*" yes "*) ;;
*) fail "the NVMe controller is on nvme, has FLR and is viable, but: $(line_of "$nvme")" ;;
esac
[ "$(wc -l <list)" -eq "$(($(ls /sys/bus/pci/devices | wc -l) + 1))" ] || fail "list is not one line a device"
if grep -q "$(printf '\033')" list; then fail "colour, although this is no terminal"; fi

"$stub" list --json >list.json
python3 - "$edu" "$(group_of "$edu")" <<'PYTHON' || fail "list --json"
import json, sys
devices = {device["device"]: device for device in json.load(open("list.json"))["devices"]}
edu = devices[sys.argv[1]]
assert edu == {
    "device": sys.argv[1], "class": "unclassified device", "class_code": "0x00ff00", "id": "1234:11e8", "driver": None,
    "group": int(sys.argv[2]), "viable": True, "in_the_way": [], "reset_methods": [], "taken": None,
}, edu
PYTHON

"$stub" doctor >doctor || fail "doctor finds a fault in this machine: $(cat doctor)"
grep -q "^ok    IOMMU " doctor || fail "doctor does not see the IOMMU: $(cat doctor)"
grep -q "^ok    vfio-pci module .* loaded" doctor || fail "doctor does not see vfio-pci: $(cat doctor)"
"$stub" doctor "$edu" >doctor || fail "doctor finds a fault in edu: $(cat doctor)"
grep -q "^warn  reset .*no way to reset" doctor || fail "doctor does not say that edu has no reset: $(cat doctor)"
"$stub" doctor "$nvme" --json >doctor.json || fail "doctor finds a fault in the NVMe controller"
python3 - <<'PYTHON' || fail "doctor --json"
import json
report = json.load(open("doctor.json"))
findings = {finding["what"]: finding for finding in report["findings"]}
assert report["passed"] is True
assert findings["reset"] == {"level": "ok", "what": "reset", "detail": findings["reset"]["detail"], "fix": None}
assert findings["reset"]["detail"].startswith("flr"), findings["reset"]
assert findings["bus mastering"]["detail"].startswith("on"), "its kernel driver is bound"
PYTHON

# a mounted disk is warned of, loudly, and fails nothing
modprobe ext4
mkfs.ext4 -q /dev/nvme0n1
mkdir -p /tmp/disk
mount /dev/nvme0n1 /tmp/disk
"$stub" doctor "$nvme" >doctor || fail "a warning is no failure"
grep -q "^warn  in use .*IN USE BY THE HOST: /dev/nvme0n1 is mounted on /tmp/disk; umount /tmp/disk" doctor ||
    fail "doctor does not warn of the mounted disk: $(cat doctor)"
umount /tmp/disk

# nobody sees the same, and what that user could not see is said
setpriv --reuid 65534 --regid 65534 --clear-groups "$stub" doctor "$edu" >doctor || fail "nobody: $(cat doctor)"
grep -q "^warn  user .*65534" doctor || fail "doctor does not say that nobody may not bind: $(cat doctor)"
setpriv --reuid 65534 --regid 65534 --clear-groups "$stub" list >list.nobody
cmp list list.nobody || fail "list shows nobody something else"

# the command fails if a check does
status=0
"$stub" doctor 0000:77:00.0 >doctor 2>error || status=$?
[ "$status" -eq 1 ] || fail "exit status $status of a failed check"
grep -q "^FAIL  device .*0000:77:00.0" doctor || fail "doctor does not name the device: $(cat doctor)"
cat list
