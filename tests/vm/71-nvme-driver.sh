#!/bin/sh
# deadline: 600
# The NVMe driver on real VFIO against the kernel's own: what one writes the other reads, and its suite, with the controller
# reset in mid-I/O. By pci: and through the stub.
. "$(dirname "$0")/lib.sh"
stub=$UDRV_BIN/stub-driver
udrv=$UDRV_BIN/udrv
nvme=$(bdf_of 1b36:0010)
disk=/dev/nvme0n1
work=/tmp/nvme-driver
mkdir -p "$work"
cd "$work"

# kernel_has_it: the kernel's driver shows the namespace
kernel_has_it() {
    [ -b "$disk" ]
}

# sum FILE [dd's words]: the checksum of what dd reads, past the page cache
sum() {
    from=$1
    shift
    dd if="$from" bs=64k status=none "$@" | sha256sum | cut -d' ' -f1
}

within 20 kernel_has_it
read -r sectors </sys/class/block/nvme0n1/size
read -r serial </sys/class/nvme/nvme0/serial

# What the kernel writes, udrv reads: 4 MiB at 1 MiB.
head -c 4194304 /dev/urandom >kernel-wrote
dd if=kernel-wrote of="$disk" bs=64k seek=16 oflag=direct conv=fsync status=none
"$stub" bind "$nvme"
"$udrv" run nvme --device "pci:$nvme" identify | tee identify
grep -q "^serial *$serial$" identify || fail "another serial number than the kernel's, $serial"
grep -q "^namespace *1: $sectors blocks of 512 bytes" identify || fail "another size than the kernel's, $sectors blocks"
for wait in interrupt polled hybrid; do
    "$udrv" run nvme --device "pci:$nvme" --wait $wait read --lba 2048 --blocks 8192 --output udrv-read
    [ "$(sum udrv-read)" = "$(sum kernel-wrote)" ] || fail "$wait: udrv read other bytes than the kernel wrote"
    rm udrv-read
done
"$udrv" run nvme --device "pci:$nvme" smart | tee smart
grep -q "^critical warning *0x00" smart || fail "the controller is ill"

# What udrv writes, the kernel reads after release: 4 MiB at 8 MiB, and what was there beside it stays.
head -c 4194304 /dev/urandom >udrv-wrote
"$udrv" run nvme --device "pci:$nvme" write --lba 16384 --input udrv-wrote
if "$udrv" run nvme --device "pci:$nvme" write --lba "$sectors" --input udrv-wrote 2>error; then fail "wrote beyond the end"; fi
grep -q "whole blocks of 512 bytes, within $sectors" error || fail "unclear: $(cat error)"

# Polled, on mapped registers, ten times the reads are not one system call more. (Where the kernel's clock cannot be read without a
# call, as in an emulated machine, reading it is one: it is left out.)
calls() {
    strace -f -e 'trace=!clock_gettime' -o calls "$udrv" run nvme --device "pci:$nvme" --wait polled bench --depth 4 --count "$1" >/dev/null
    grep -c '(' calls
}
few=$(calls 200)
many=$(calls 2000)
echo "system calls: $few for 200 reads, $many for 2000"
[ "$many" -lt $((few + 50)) ] || fail "polled reads make system calls: $(tail -20 calls)"

# Doorbells in memory (Doorbell Buffer Config), where the controller has them: how many of them
# the controller wants told by register as well is its affair; the model's tests show that the driver leaves out those it does not.
if grep -q "^doorbells *in memory" identify; then
    "$udrv" run nvme --device "pci:$nvme" --wait polled bench --depth 32 --count 4000 | tee doorbells
    rung=$(sed 's/.*; \([0-9]*\) doorbells, \([0-9]*\) by register.*/\1/' doorbells)
    written=$(sed 's/.*; \([0-9]*\) doorbells, \([0-9]*\) by register.*/\2/' doorbells)
    [ "$written" -le "$rung" ] || fail "$written registers written for $rung doorbells"
    # QEMU 7.2 takes what is there at once and asks for the register each time.
    echo "doorbells in memory: $rung, of which $written by register too"
else
    echo "the controller has no doorbells in memory: not tried"
fi

# The suite on the machine's own controller.
"$UDRV_BIN/nvme-suite" "pci:$nvme" | tee suite
grep -q "ok reset_in_mid_io_answers_every_command" suite || fail "the suite did not reset in mid-I/O"

"$stub" release "$nvme"
within 20 kernel_has_it
[ "$(sum "$disk" iflag=direct skip=128 count=64)" = "$(sum udrv-wrote)" ] || fail "the kernel reads other bytes than udrv wrote"
[ "$(sum "$disk" iflag=direct skip=16 count=64)" = "$(sum kernel-wrote)" ] || fail "bytes changed that nobody wrote"

# Through the stub, as a user who owns nothing but the socket.
serve "pci:$nvme" --owner nobody --mmap
address=unix:$SOCKETS/$nvme.sock
chmod 777 "$work"
$AS_NOBODY "$udrv" run nvme --device "$address" read --lba 16384 --blocks 8192 --output through-stub
[ "$(sum through-stub)" = "$(sum udrv-wrote)" ] || fail "through the stub other bytes come"
$AS_NOBODY "$udrv" run nvme --device "$address" write --lba 32768 --input kernel-wrote
stop_stub
within 20 kernel_has_it
[ "$(sum "$disk" iflag=direct skip=256 count=64)" = "$(sum kernel-wrote)" ] || fail "the kernel reads other bytes than came through the stub"
check_released "$nvme" nvme
