#!/bin/sh
# deadline: 180
# The stub killed with SIGKILL while it serves: its client gets an error in time, and the next stub repairs what it left.
. "$(dirname "$0")/lib.sh"

nvme=$(bdf_of 1b36:0010)
edu=$(bdf_of 1234:11e8 1)
[ "$(driver_of "$nvme")" = nvme ] || fail "the NVMe controller is bound to $(driver_of "$nvme")"
serve "pci:$nvme" "pci:$edu" --owner nobody
[ "$(driver_of "$nvme")" = vfio-pci ] || fail "the stub serves an NVMe controller bound to $(driver_of "$nvme")"

$AS_NOBODY "$UDRV_BIN/udrv" run edu --device "unix:$SOCKETS/$edu.sock" --samples 1 --rounds 1000 >/tmp/client 2>&1 &
client=$!
within 20 grep -q factorial /tmp/client
kill -KILL "$STUB"
wait "$STUB" 2>/dev/null || :

# a child that has ended may stay visible until it is waited for
gone() { ! grep -qs '^State:[[:space:]]*[^Z]' /proc/$client/status; }
within 20 gone
if wait $client; then fail "the client reports success without its device"; fi
tail -1 /tmp/client | grep -q "gone" || fail "the client says: $(tail -1 /tmp/client)"

[ "$(driver_of "$nvme")" = vfio-pci ] || fail "the kernel gave the controller back by itself, so this tests nothing"
if bus_mastering "$edu"; then fail "bus mastering is on after the stub's death"; fi

# the next stub: serves something else, and gives back what the dead one had taken
serve model:edu --owner nobody
nvme_back() { [ "$(driver_of "$nvme")" = nvme ]; }
within 20 nvme_back
grep -q "$nvme" "$SOCKETS.log" || fail "the stub does not say what it repaired: $(cat "$SOCKETS.log")"
[ "$(driver_of "$edu")" = none ] || fail "edu had no driver and is bound to $(driver_of "$edu")"
within 20 test -b /dev/nvme0n1
$AS_NOBODY "$UDRV_BIN/udrv" run edu --device "unix:$SOCKETS/edu.sock" --samples 10 || fail "the next stub does not serve"
stop_stub
