#!/bin/sh
# deadline: 120
# kernel: intel_iommu=off
# A machine whose IOMMU is off: every command says so, and what to do; nothing is taken. (Debian's kernel has no
# unsafe no-IOMMU mode that could be turned on.)
. "$(dirname "$0")/lib.sh"
stub=$UDRV_BIN/stub-driver
udrv=$UDRV_BIN/udrv
edu=$(bdf_of 1234:11e8)
nvme=$(bdf_of 1b36:0010)
cd /tmp
[ -z "$(ls /sys/kernel/iommu_groups)" ] || fail "this machine has IOMMU groups, so it tests nothing"

# refused STATUS "what the line has (a pattern of grep)" COMMAND...
refused() {
    expected=$1
    pattern=$2
    shift 2
    status=0
    timeout 20 "$@" >out 2>error || status=$?
    [ "$status" -eq "$expected" ] || fail "exit status $status, not $expected: $*: $(cat error)"
    [ "$(wc -l <error)" -eq 1 ] || fail "not one line: $*: $(cat error)"
    grep -q "$pattern" error || fail "$*: no '$pattern' in: $(cat error)"
    cat error
}

nothing_taken() {
    [ "$(driver_of "$edu")" = none ] || fail "edu is bound to $(driver_of "$edu")"
    [ "$(driver_of "$nvme")" = nvme ] || fail "the NVMe controller is bound to $(driver_of "$nvme")"
    [ -z "$(ls /run/udrv/taken 2>/dev/null)" ] || fail "a record was made: $(ls /run/udrv/taken)"
}

status=0
"$stub" doctor >doctor || status=$?
[ "$status" -eq 1 ] || fail "doctor ends with $status: $(cat doctor)"
grep -q "^FAIL  IOMMU .*intel_iommu=on" doctor || fail "doctor does not say how to turn it on: $(cat doctor)"
status=0
"$stub" doctor "$nvme" >doctor || status=$?
[ "$status" -eq 1 ] || fail "doctor $nvme ends with $status: $(cat doctor)"
"$stub" list | tee list
grep "^$edu " list | grep -q " no " || fail "list does not say that edu is not viable: $(cat list)"

refused 1 "$edu.*no IOMMU.*intel_iommu=on" "$stub" bind "$edu"
refused 1 "$nvme.*no IOMMU.*intel_iommu=on" "$stub" bind "$nvme"
refused 1 "$nvme.*no IOMMU.*intel_iommu=on" "$stub" serve "pci:$nvme" --socket-dir /tmp/sockets
refused 1 "$edu.*IOMMU" "$udrv" info "pci:$edu"
nothing_taken

# and what needs no IOMMU goes on
"$udrv" run edu --device model:edu --samples 10 >out || fail "the model"
