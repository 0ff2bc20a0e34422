#!/bin/sh
# deadline: 240
# The edu driver on real VFIO through the stub, as a user who owns nothing but the socket.
. "$(dirname "$0")/lib.sh"

edu=$(bdf_of 1234:11e8 1)
address=unix:$SOCKETS/$edu.sock

for how in "" --mmap; do
    serve "pci:$edu" --owner nobody $how
    # the user can do nothing without the socket
    if $AS_NOBODY "$UDRV_BIN/udrv" info "pci:$edu" 2>/tmp/denied; then fail "an unprivileged user opened the device itself"; fi
    $AS_NOBODY "$UDRV_BIN/udrv" info "$address" >/tmp/info
    grep -qi '1234:11e8' /tmp/info || fail "udrv info: $(cat /tmp/info)"
    grep -qi 'reset .*none' /tmp/info || fail "edu has no reset method, but udrv info says: $(cat /tmp/info)"
    grep -qi 'no reset' "$SOCKETS.log" || fail "the stub does not say that edu has no reset method: $(cat "$SOCKETS.log")"
    for irq in thread signal; do
        for vector in msi intx; do
            echo "== ${how:-by message}, $irq, $vector"
            $AS_NOBODY "$UDRV_BIN/udrv" run edu --device "$address" --irq $irq --vector $vector --samples 100 >/tmp/run ||
                fail "${how:-by message}, $irq, $vector: $(cat /tmp/run)"
            cat /tmp/run
            if [ -n "$how" ]; then kind=mapped; else kind="by message"; fi
            grep -q "registers $kind" /tmp/run || fail "registers are not $kind"
        done
    done
    within 10 nothing_mapped "$STUB"
    if bus_mastering "$edu"; then fail "bus mastering is on after the lease"; fi
    stop_stub
    [ "$(driver_of "$edu")" = none ] || fail "edu had no driver and is now bound to $(driver_of "$edu")"
    [ ! -e "$SOCKETS/$edu.sock" ] || fail "the stub left its socket"
done
