#!/bin/sh
# deadline: 400
# A driver killed with SIGKILL at random moments, mostly in mid-DMA (a transfer takes edu 100 ms): each time the device ends
# quiet, nothing stays mapped, and the next client can use it.
. "$(dirname "$0")/lib.sh"

edu=$(bdf_of 1234:11e8 1)
address=unix:$SOCKETS/$edu.sock
serve "pci:$edu" --owner nobody

bus_quiet() { ! bus_mastering "$edu"; }

round=1
while [ $round -le 20 ]; do
    $AS_NOBODY "$UDRV_BIN/udrv" run edu --device "$address" --samples 1 --rounds 1000 >/tmp/victim 2>&1 &
    victim=$!
    # It has the device when its first factorials are told; from there on, anywhere within half a second.
    within 20 grep -q factorial /tmp/victim
    sleep "0.$((0x$(od -An -N2 -tx2 /dev/urandom | tr -d ' ') % 500 + 100))"
    kill -KILL $victim
    wait $victim 2>/dev/null && fail "the driver ended before it was killed: $(cat /tmp/victim)"
    within 20 nothing_mapped "$STUB"
    within 5 bus_quiet
    round=$((round + 1))
done
$AS_NOBODY "$UDRV_BIN/udrv" run edu --device "$address" --samples 10 || fail "the device is of no use after 20 kills"
kill -0 "$STUB" || fail "the stub did not survive"
stop_stub
