#!/bin/sh
# deadline: 600
# As 46-gdb.sh, in lldb: a real lldb on a driver of real VFIO, registers mapped. `udrv regs` is what the device holds,
# break-on-write stops at the driver's line, values are shown by the names of their bits, and six seconds in a section and in a wait
# (whose deadlines are five) lose no interrupt and no deadline.
. "$(dirname "$0")/lib.sh"
command -v lldb >/dev/null || skip "there is no lldb: apt-get install lldb"

edu=$(bdf_of 1234:11e8 1)
line=$(grep -n 'self.io.write(FACTORIAL, n)?' "$(dirname "$0")/../../devices/edu/src/driver.rs" | cut -d: -f1)
said() {
    grep -q -- "$1" /tmp/lldb.out || fail "lldb did not say '$1': $(cat /tmp/lldb.out)"
}

"$UDRV_BIN/stub-driver" bind "$edu" || fail "not bound"
# The driver has a terminal of lldb's, and would say things in colour.
NO_COLOR=1 "$UDRV_BIN/udrv" debug --lldb --batch \
    --ex 'udrv break-on-write factorial 10' --ex run --ex 'frame variable self->io' --ex 'frame variable self->irq' \
    --ex 'udrv poke liveness 0x1234' --ex 'udrv regs' --ex 'breakpoint delete --force' \
    --ex 'udrv break-on-write 0x60 16' --ex continue --ex 'udrv irqs' --ex 'frame variable cause' \
    --ex 'udrv poke 0x60 0x20' --ex 'udrv poke 0x60 0x20' --ex 'udrv poke 0x60 0x20' \
    --ex 'script import time; time.sleep(6)' --ex 'breakpoint delete --force' \
    --ex 'udrv break-on-irq 0' --ex continue --ex 'script time.sleep(6)' --ex 'breakpoint delete --force' --ex continue \
    -- udrv run edu --device "pci:$edu" --samples 5 >/tmp/lldb.out 2>&1 || fail "lldb ended with $?: $(cat /tmp/lldb.out)"

said "registers mapped"
said "udrv: factorial computation is to be written with 0xa at .*/devices/edu/src/driver.rs:$line\$"
said "self->irq = MSI vector 0 of pci:$edu: enabled; 1 raised, 1 delivered\$"
# 5! of the factorial before; the device complements what was poked; the driver has just asked for the interrupt
said "^identification  *0x0000  0x010000ed\$"
said "^card liveness check  *0x0004  0xffffedcb\$"
said "^factorial computation  *0x0008  0x00000078\$"
said "^status  *0x0020  0x00000080  IRQ_ON_FACTORIAL\$"
said "has a section open, entered at devices/edu/src/driver.rs:"
said "cause = 0x10\$"
said "MSI vector 0 is about to be delivered"
# 3 factorials, 2 transfers, 1 in the section and 3 poked there, 5 timed
said "^irqs  *14 raised"
"$UDRV_BIN/stub-driver" release "$edu" || fail "not released"
cat /tmp/lldb.out
