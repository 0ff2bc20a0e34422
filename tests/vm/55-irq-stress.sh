#!/bin/sh
# deadline: 240
# Real MSI and INTx of the edu device, in the three deliveries, while two threads open and close sections at random: every
# cause is seen, no handler runs in a section, and what was raised was delivered or merged.
. "$(dirname "$0")/lib.sh"
edu=$(bdf_of 1234:11e8)
"$UDRV_BIN/stub-driver" bind "$edu"
for vector in msi intx; do
    for delivery in thread signal poll; do
        "$UDRV_BIN/irq-stress" "pci:$edu" $vector $delivery 200 || fail "$vector $delivery"
    done
done
"$UDRV_BIN/udrv" run edu --device "pci:$edu" --irqs --samples 50 | tee /tmp/irqs
grep -q "^  *[1-9][0-9]*  *[1-9].*  MSI vector 0 of pci:$edu" /tmp/irqs || fail "no account of the interrupt in the table"
"$UDRV_BIN/stub-driver" release "$edu"
