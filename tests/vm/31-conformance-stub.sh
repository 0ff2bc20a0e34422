#!/bin/sh
# Every promise of the Backend trait on the kernel's VFIO through the stub, as a user who owns nothing but the socket: registers by
# message and mapped.
# deadline: 240
. "$(dirname "$0")/lib.sh"

edu=$(bdf_of 1234:11e8)
nvme=$(bdf_of 1b36:0010)
failed=
for mmap in "" --mmap; do
    serve "pci:$edu" "pci:$nvme" --owner nobody $mmap
    for bdf in "$edu" "$nvme"; do
        as_nobody "$UDRV_BIN/conformance" "unix:$SOCKETS/$bdf.sock" || failed="$failed $bdf$mmap"
    done
    stop_stub
done
[ -z "$failed" ] || fail "promises broken through the stub:$failed"
