#!/bin/busybox sh
# The first process of the virtual machine. It puts the host's root file system (read-only, by 9p) under a tmpfs overlay, makes
# the kernel's file systems appear inside, runs `main.sh` of the run folder there, and leaves its exit status in that folder.
# Nothing the guest writes reaches the host, except what it writes to the run folder.
# `config` in the run folder names: repo, run, target, kernel (all paths as on the host).
export PATH=/bin
/bin/busybox --install -s /bin

give_up() {
    echo "vm init: $*" >/dev/console
    poweroff -f
}

mkdir -p /proc /sys /dev /host /share /layers /root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1

while read -r module; do
    insmod "/modules/$module" || give_up "cannot load $module"
done </modules.order

nine=trans=virtio,version=9p2000.L,msize=262144
mount -t 9p -o "$nine,access=any,cache=loose,ro" host /host || give_up "cannot mount the host's root"
mount -t 9p -o "$nine,access=any,cache=none" share /share || give_up "cannot mount the run folder"
. /share/config || give_up "cannot read config"

mount -t tmpfs layers /layers
mkdir /layers/upper /layers/work /layers/whole
mount -t overlay -o lowerdir=/host,upperdir=/layers/upper,workdir=/layers/work root /layers/whole ||
    give_up "cannot lay the overlay over the host's root"
mount --bind /layers/whole /root

mkdir -p /root/proc /root/sys /root/dev /root/run /root/tmp /root/lib/modules /root/mnt/host
mount -t proc proc /root/proc
mount -t sysfs sys /root/sys
mount --bind /dev /root/dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /root/dev/pts
mount -t tmpfs -o mode=1777 shm /root/dev/shm
mount -t tmpfs -o mode=755 run /root/run
mount -t tmpfs -o mode=1777 tmp /root/tmp
mount --bind /host /root/mnt/host
mount --bind "/layers/whole$kernel/lib/modules" /root/lib/modules
# a repository or target folder below /tmp or /run would be hidden by the new file systems there
for folder in "$repo" "$target"; do
    if [ ! -e "/root$folder" ]; then
        mkdir -p "/root$folder"
        mount --bind "/layers/whole$folder" "/root$folder"
    fi
done
mkdir -p "/root$run"
mount --bind /share "/root$run" || give_up "cannot show the run folder"
hostname udrv-vm
ip link set lo up

chroot /root /bin/sh "$run/main.sh"
echo $? >/share/status
sync
poweroff -f
