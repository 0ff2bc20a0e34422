#!/bin/sh
# Every promise of the Backend trait on the kernel's VFIO through the stub, as a user who owns nothing but the socket: registers by
# message, and mapped.
# deadline: 240
. "$(dirname "$0")/lib.sh"

# conforms BDF COUNT: every check passes but COUNT that the device gives no occasion for
conforms() {
    $AS_NOBODY "$UDRV_BIN/conformance" "unix:$SOCKETS/$1.sock" >"/tmp/$1" || failed="$failed $1"
    cat "/tmp/$1"
    grep -q " 0 failed; $2 not applicable$" "/tmp/$1" || failed="$failed $1 (expected $2 not applicable)"
}
edu=$(bdf_of 1234:11e8)
nvme=$(bdf_of 1b36:0010)
failed=
serve "pci:$edu" "pci:$nvme" --owner nobody
conforms "$edu" 9
conforms "$nvme" 16
stop_stub
serve "pci:$edu" --owner nobody --mmap
conforms "$edu" 8
stop_stub
[ -z "$failed" ] || fail "promises broken through the stub:$failed"
