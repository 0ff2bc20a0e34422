#!/bin/sh
# deadline: 240
# The edu driver recorded on real VFIO, by itself and by the stub, and replayed without it: the same output, but for times.
# Checked for what its device does to memory, too.
. "$(dirname "$0")/lib.sh"

edu=$(bdf_of 1234:11e8 1)
serve "pci:$edu" --owner nobody
"$UDRV_BIN/udrv" run edu --device "unix:$SOCKETS/$edu.sock" --samples 5 --record /tmp/stub.trace --record-dma >/tmp/stub.out ||
    fail "through the stub: $(cat /tmp/stub.out)"
stop_stub

# as the stub sees it, of a client that records nothing
serve "pci:$edu" --owner nobody --record /tmp/leases --record-dma
"$UDRV_BIN/udrv" run edu --device "unix:$SOCKETS/$edu.sock" --samples 5 >/tmp/lease.out || fail "recorded by the stub: $(cat /tmp/lease.out)"
stop_stub
cp "/tmp/leases/$edu-1.trace" /tmp/lease.trace || fail "the stub left no recording: $(ls /tmp/leases)"

"$UDRV_BIN/stub-driver" bind "$edu" || fail "not bound"
"$UDRV_BIN/udrv" run edu --device "pci:$edu" --samples 5 --record /tmp/vfio.trace --record-dma --sanitise-dma >/tmp/vfio.out ||
    fail "in this process: $(cat /tmp/vfio.out)"
"$UDRV_BIN/stub-driver" release "$edu" || fail "not released"

# what time and chance decide is left out: latencies, and whether a signal came in the section
findings() { grep -v -e '^latency' -e '^irqs' "$1"; }
for how in stub lease vfio; do
    for irq in thread signal; do
        "$UDRV_BIN/udrv" run edu --device "replay:/tmp/$how.trace" --samples 5 --irq $irq >/tmp/replay.out || fail "replay of $how, $irq"
        findings /tmp/replay.out >/tmp/replayed
        findings /tmp/$how.out >/tmp/recorded
        [ -s /tmp/recorded ] && cmp /tmp/recorded /tmp/replayed || fail "$how, $irq: $(cat /tmp/replayed) is not $(cat /tmp/recorded)"
    done
    irqs=$("$UDRV_BIN/udrv" trace show /tmp/$how.trace --irq | grep -c ' irq  ')
    [ "$irqs" -ge 11 ] || fail "$irqs interrupts in the recording through $how: expected 3 factorials, 2 transfers, 1 section, 5 timed"
done
for what in 'run   MSI' 'irqs off' 'lend ' 'DMA source address'; do
    "$UDRV_BIN/udrv" trace show /tmp/vfio.trace | grep -q "$what" || fail "no '$what' in the recording"
done
