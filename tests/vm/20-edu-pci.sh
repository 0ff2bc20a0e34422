#!/bin/sh
# deadline: 180
# The edu driver over the kernel's VFIO, in process, as root: both interrupts, both deliveries. And whatever can keep a
# device from being opened: one line that names it and says what to do.
. "$(dirname "$0")/lib.sh"
stub=$UDRV_BIN/stub-driver
udrv=$UDRV_BIN/udrv
edu=$(bdf_of 1234:11e8)
node=/dev/vfio/$(group_of "$edu")
cd /tmp

# refused "what the line has (a pattern of grep)" COMMAND...
wanted=1
refused() {
    pattern=$1
    shift
    status=0
    "$@" >out 2>error || status=$?
    [ "$status" -eq "$wanted" ] || fail "exit status $status, not $wanted: $*: $(cat error)"
    [ "$(wc -l <error)" -eq 1 ] || fail "not one line: $*: $(cat error)"
    grep -q "$pattern" error || fail "$*: no '$pattern' in: $(cat error)"
    cat error
}

refused "not bound to vfio-pci; bind it first: stub-driver bind $edu" "$udrv" info "pci:$edu"
refused "bound to the driver nvme.*stub-driver bind" "$udrv" info "pci:$(bdf_of 1b36:0010)"
refused "no such PCI device; .stub-driver list." "$udrv" info pci:0000:77:00.0
wanted=2 # what is no address is a matter of usage
refused "nvme0.*expected a PCI address such as" "$udrv" info pci:nvme0
refused "0000:00:20.0.*expected a PCI address such as" "$udrv" info pci:0000:00:20.0
wanted=1

"$stub" bind "$edu"
refused "uid 65534 may not open $node, which belongs to uid 0 with mode 600" \
    setpriv --reuid=65534 --regid=65534 --clear-groups -- "$udrv" info "pci:$edu"
mv /dev/vfio/vfio /dev/vfio/away
refused "there is no /dev/vfio/vfio; load its modules: modprobe" "$udrv" info "pci:$edu"
mv /dev/vfio/away /dev/vfio/vfio
mv "$node" /dev/vfio/away
refused "there is no $node; load its modules: modprobe" "$udrv" info "pci:$edu"
mv /dev/vfio/away "$node"
exec 3<>"$node"
refused "process $$ (.*) has it open; end that process" sh -c "exec 3>&-; exec $udrv info pci:$edu"
exec 3>&-

"$udrv" info "pci:$edu" | tee out
grep -q "1234:11e8" out || fail "info does not name the device"
grep -q "reset *none" out || fail "edu has no reset method, and info does not say so"
grep -q "region BAR0 *0x100000 bytes *READ | WRITE | MMAP" out || fail "BAR0 is not as QEMU's documentation says"
grep -q "irq INTx *1 vector" out && grep -q "irq MSI *1 vector" out || fail "INTx and MSI are not both there"

for vector in msi intx; do
    for irq in thread signal; do
        "$udrv" run edu --device "pci:$edu" --irq $irq --vector $vector --samples 300 | tee out
        grep -q "12! = 479001600, by interrupt" out || fail "$irq $vector: factorial"
        grep -q "^DMA .*4095 bytes.*equal" out || fail "$irq $vector: DMA"
        grep -q "held its interrupt back, delivered it at its end" out || fail "$irq $vector: section"
    done
done
# Nothing of a driver stays: the next one, a moment later, found no interrupt of its predecessor, and the device is quiet.
if grep -q "vfio-[a-z]*(\|vfio-[a-z]*\[" /proc/interrupts; then fail "an interrupt stayed armed: $(grep vfio- /proc/interrupts)"; fi
byte=$(od -An -tu1 -j4 -N1 "/sys/bus/pci/devices/$edu/config")
[ $((byte & 4)) -eq 0 ] || fail "bus mastering is still on"
"$stub" release "$edu"
