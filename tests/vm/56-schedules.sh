#!/bin/sh
# deadline: 240
# Interrupts placed at register accesses of the real edu device, over the kernel's VFIO: a planted bug is found, shrunk and
# replayed, and the edu driver survives one before each of its accesses. And the same device with --rt, and its irqsoff account.
. "$(dirname "$0")/lib.sh"
edu=$(bdf_of 1234:11e8)
"$UDRV_BIN/stub-driver" bind "$edu"
"$UDRV_BIN/schedules" "pci:$edu" || fail "schedules"

"$UDRV_BIN/udrv" run --rt=0 edu --device "pci:$edu" --samples 50 --irqsoff --json | tee /tmp/off
grep -q '"irqs_off":{"histogram":\[{"from_ns":.*"places":\[{"at":"[^"]*driver.*\.rs:[0-9]*:[0-9]*","longest_ns":' /tmp/off ||
    fail "no account of its sections, with their lines"
"$UDRV_BIN/stub-driver" release "$edu"
