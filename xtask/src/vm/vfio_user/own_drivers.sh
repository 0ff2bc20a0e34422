#!/bin/busybox sh
# The first and only process of the machine in which a stock kernel's own drivers have our models, through QEMU's vfio-user client. It
# tells what it finds on ttyS1, a line each, `NAME VALUE`; the host judges. The file system on the disk says which boot this is:
# without one it is made (`new`), and the machine is reset; with what `new` left there, this is after that (`reset`); then `next`.
export PATH=/bin
/bin/busybox --install -s /bin

mkdir -p /proc /sys /dev /mnt
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
while read -r module; do
    insmod "/modules/$module"
done </modules.order

tell() {
    echo "$stage-$*" >/dev/ttyS1
}

# within SECONDS COMMAND...: retries it until it succeeds, without sleeping (time passes by itself here)
within() {
    limit=$1
    shift
    read -r up _ </proc/uptime
    end=$((${up%.*} + limit))
    until "$@"; do
        read -r up _ </proc/uptime
        [ "${up%.*}" -lt "$end" ] || return 1
    done
}

# interrupts NAME: how many those have had, all together, whose line in /proc/interrupts has NAME
interrupts() {
    awk -v name="$1" '$0 ~ name { for (i = 2; $i ~ /^[0-9]+$/; i++) n += $i } END { print n + 0 }' /proc/interrupts
}
# more_than BEFORE NOW
more_than() {
    if [ "$2" -gt "$1" ]; then echo some; else echo none; fi
}

disk=/sys/bus/pci/devices/0000:00:04.0
line=/sys/bus/pci/devices/0000:00:05.0
within 30 [ -b /dev/nvme0n1 ]
if mount -t ext4 /dev/nvme0n1 /mnt 2>/dev/null; then
    if [ -e /mnt/was-reset ]; then stage=next; else stage=reset; fi
else
    stage=new
    mke2fs -F /dev/nvme0n1
    mount -t ext4 /dev/nvme0n1 /mnt
    dd if=/dev/urandom of=/mnt/file bs=64k count=128
    mkdir /mnt/folder
    cp /proc/kallsyms /mnt/folder/symbols
    (cd /mnt && sha256sum file folder/symbols >sums)
fi
tell disk-driver "$(basename "$(readlink $disk/driver)")"
tell disk-sectors "$(cat /sys/class/block/nvme0n1/size)"
if [ -d $disk/msi_irqs ] && grep -qx msix $disk/msi_irqs/*; then tell disk-msix enabled; else tell disk-msix disabled; fi

# what the disk has, not what memory remembers
umount /mnt
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 /dev/nvme0n1 /mnt
if (cd /mnt && sha256sum -c sums); then tell files same; else tell files differ; fi
tell disk-interrupts "$(more_than 0 "$(interrupts nvme0q)")"
[ $stage = new ] || : >/mnt/was-reset
sync
umount /mnt

tty=$(basename $line/tty/ttyS*)
tell line-driver "$(basename "$(readlink $line/driver)")"
# 4: a 16550A, as the driver has found out by itself
tell line-type "$(cat $line/tty/"$tty"/type)"
stty -F /dev/"$tty" 115200 raw -echo
before=$(interrupts "$tty")
dd if=/dev/urandom of=/sent bs=4096 count=2
: >/came
# opened before anything is sent, and while it is
exec 3<>/dev/"$tty"
timeout 60 head -c 8192 <&3 >/came &
cat /sent >&3
wait $!
# it is shown only for an open port
tell line-interrupts "$(more_than "$before" "$(interrupts "$tty")")"
if cmp /sent /came; then tell line-bytes same; else tell line-bytes differ; fi
if grep "^${tty#ttyS}:" /proc/tty/driver/serial | grep -q 'oe:'; then tell line-overruns some; else tell line-overruns none; fi
exec 3<&-

if [ $stage = new ]; then reboot -f; else poweroff -f; fi
