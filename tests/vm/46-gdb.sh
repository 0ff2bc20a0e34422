#!/bin/sh
# deadline: 400
# A real gdb on a driver of real VFIO, registers mapped: `udrv regs` is what the device holds, break-on-write stops at the
# driver's line, and six seconds in a section and in a wait (whose deadlines are five) lose no interrupt and no deadline.
. "$(dirname "$0")/lib.sh"
command -v gdb >/dev/null || skip "there is no gdb: apt-get install gdb"

edu=$(bdf_of 1234:11e8 1)
line=$(grep -n 'self.io.write(FACTORIAL, n)?' "$(dirname "$0")/../../devices/edu/src/driver.rs" | cut -d: -f1)
said() {
    grep -q -- "$1" /tmp/gdb.out || fail "gdb did not say '$1': $(cat /tmp/gdb.out)"
}

"$UDRV_BIN/stub-driver" bind "$edu" || fail "not bound"
"$UDRV_BIN/udrv" debug --batch \
    --ex 'udrv break-on-write factorial 10' --ex run --ex 'udrv poke liveness 0x1234' --ex 'udrv regs' --ex delete \
    --ex 'udrv break-on-write 0x60 16' --ex continue --ex 'udrv irqs' \
    --ex 'udrv poke 0x60 0x20' --ex 'udrv poke 0x60 0x20' --ex 'udrv poke 0x60 0x20' \
    --ex 'python import time; time.sleep(6)' --ex delete \
    --ex 'udrv break-on-irq 0' --ex continue --ex 'python time.sleep(6)' --ex delete --ex continue \
    -- udrv run edu --device "pci:$edu" --samples 5 >/tmp/gdb.out 2>&1 || fail "gdb ended with $?: $(cat /tmp/gdb.out)"

said "registers mapped"
said "udrv: factorial computation is to be written with 0xa at devices/edu/src/driver.rs:$line\$"
# 5! of the factorial before; the device complements what was poked; the driver has just asked for the interrupt
said "^identification  *0x0000  0x010000ed\$"
said "^card liveness check  *0x0004  0xffffedcb\$"
said "^factorial computation  *0x0008  0x00000078\$"
said "^status  *0x0020  0x00000080  IRQ_ON_FACTORIAL\$"
said "has a section open, entered at devices/edu/src/driver.rs:"
said "MSI vector 0 is about to be delivered"
# 3 factorials, 2 transfers, 1 in the section and 3 poked there, 5 timed
said "^irqs  *14 raised"

# through the stub, by its control socket
serve "pci:$edu"
"$UDRV_BIN/udrv" debug --batch --ex 'udrv break-on-write factorial 12' --ex run --ex 'udrv regs' --ex kill \
    -- udrv run edu --device "unix:$SOCKETS/$edu.sock" --samples 5 >/tmp/gdb.out 2>&1 || fail "gdb ended with $?: $(cat /tmp/gdb.out)"
said "^factorial computation  *0x0008  0x00375f00\$"
stop_stub
"$UDRV_BIN/stub-driver" release "$edu" || fail "not released"
cat /tmp/gdb.out
