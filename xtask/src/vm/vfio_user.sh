#!/bin/busybox sh
# The first and only process of the machine that sees the stub's edu model through QEMU's vfio-user client, as a PCI device like any
# other. It tells what it finds on ttyS1, a line each, `NAME VALUE`; the host judges. With `hold` on the kernel's command line it
# works the device until it is killed.
# Registers are those of QEMU's docs/specs/edu.rst.
export PATH=/bin
/bin/busybox --install -s /bin

mkdir -p /proc /sys /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
while read -r module; do
    insmod "/modules/$module"
done </modules.order

tell() {
    echo "$*" >/dev/ttyS1
}

device=/sys/bus/pci/devices/0000:00:04.0
tell vendor "$(cat $device/vendor)"
tell device "$(cat $device/device)"
tell class "$(cat $device/class)"
tell driver-before "$(readlink $device/driver || echo none)"
read -r first last _ <$device/resource
tell bar0-size $((last - first + 1))
tell config-ids "$(hexdump -v -n 4 -e '4/1 "%02x"' $device/config)"
# memory space and bus mastering
echo 1 >$device/enable
printf '\006\000' | dd of=$device/config bs=2 seek=2 conv=notrunc 2>/dev/null
tell config-command "$(hexdump -v -s 4 -n 2 -e '2/1 "%02x"' $device/config)"

get() {
    devmem $((first + $1)) 32
}
put() {
    devmem $((first + $1)) 32 "$2"
}
# Beyond what `mem=` leaves to the kernel, so free for the device.
buffer=0xc000000
# transfer SOURCE DESTINATION COUNT COMMAND: bit 0 starts, bit 1 is to memory
transfer() {
    put 0x80 "$1"
    put 0x84 0
    put 0x88 "$2"
    put 0x8c 0
    put 0x90 "$3"
    put 0x94 0
    put 0x98 "$4"
}

if grep -q hold /proc/cmdline; then
    # what runs on here is told by `busy`
    while true; do
        put 0x20 0x80
        put 0x08 12
        transfer $buffer 0x40000 4096 1
        transfer 0x40000 $((buffer + 4096)) 4096 3
        tell busy "$(get 0x08)"
    done
fi

tell identification "$(get 0x00)"
put 0x04 0x12345678
tell liveness "$(get 0x04)"
put 0x08 5
tell factorial "$(get 0x08)"

devmem $buffer 32 0xdeadbeef
devmem $((buffer + 4092)) 32 0x0badcafe
devmem $((buffer + 4096)) 32 0
devmem $((buffer + 8188)) 32 0
transfer $buffer 0x40000 4096 1
transfer 0x40000 $((buffer + 4096)) 4096 3
tell dma-first "$(devmem $((buffer + 4096)) 32)"
tell dma-last "$(devmem $((buffer + 8188)) 32)"

echo 1234 11e8 >/sys/bus/pci/drivers/uio_pci_generic/new_id
tell driver "$(basename "$(readlink $device/driver)")"
exec 3</dev/uio0
put 0x60 0x100
tell interrupts "$(timeout 10 dd bs=4 count=1 2>/dev/null <&3 | hexdump -v -e '1/4 "%d"')"
tell interrupt-cause "$(get 0x24)"
put 0x64 0x100
tell interrupt-acknowledged "$(get 0x24)"
exec 3<&-
tell end 0
poweroff -f
