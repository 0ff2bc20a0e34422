#!/bin/sh
# deadline: 180
# Each bad input to bind, release, list and doctor: the exit status, one line that names the thing, and nothing changed.
. "$(dirname "$0")/lib.sh"
stub=$UDRV_BIN/stub-driver
nvme=$(bdf_of 1b36:0010)
edu=$(bdf_of 1234:11e8)
nic=$(bdf_of 8086:100e)
cd /tmp

# state: what binding could change (starts no process, which costs much under emulation)
state() {
    for dev in /sys/bus/pci/devices/*; do
        driver=
        while read -r line; do
            case $line in DRIVER=*) driver=$line ;; esac
        done <"$dev/uevent"
        read -r only <"$dev/driver_override"
        echo "$dev $driver $only"
    done
    echo /run/udrv/taken/*
}

# refused STATUS "what the line has (a shell pattern)" COMMAND...
refused() {
    expected=$1
    pattern=$2
    shift 2
    before=$(state)
    status=0
    "$@" >out 2>error || status=$?
    error=$(cat error)
    [ "$status" -eq "$expected" ] || fail "exit status $status, not $expected: $*: $error"
    case $error in
    "") fail "says nothing: $*" ;;
    *"
"*) fail "not one line: $*: $error" ;;
    "stub-driver: "*$pattern*) ;;
    *) fail "$*: no '$pattern' in: $error" ;;
    esac
    [ ! -s out ] || fail "$*: says something on stdout: $(cat out)"
    [ "$(state)" = "$before" ] || fail "$*: changed something: $before -> $(state)"
    echo "$error"
}


for command in bind release doctor; do
    refused 2 "nvme0*expected a PCI address such as 0000:03:00.0" "$stub" $command nvme0
    refused 2 "0000:00:20.0*expected a PCI address" "$stub" $command 0000:00:20.0
done
refused 1 "0000:77:00.0: there is no such PCI device; *stub-driver list*" "$stub" bind 0000:77:00.0
refused 1 "0000:77:00.0: there is no such PCI device; *stub-driver list*" "$stub" release 0000:77:00.0
refused 1 "$edu: it was not taken by stub-driver" "$stub" release "$edu"
refused 1 "$edu: only root may*sudo stub-driver bind $edu" $AS_NOBODY "$stub" bind "$edu"
refused 1 "0000:00:00.0: it is a bridge (host bridge)" "$stub" bind 0000:00:00.0

# not root, and it is taken
"$stub" bind "$edu"
refused 1 "$edu: only root may*sudo stub-driver release $edu" $AS_NOBODY "$stub" release "$edu"
"$stub" release "$edu"

# in use by the host
modprobe ext4
mkfs.ext4 -q /dev/nvme0n1
mkdir -p disk
mount /dev/nvme0n1 disk
refused 1 "$nvme: the host uses it: /dev/nvme0n1 is mounted on /tmp/disk; *umount /tmp/disk*--force" \
    "$stub" bind "$nvme"
echo still here >disk/file
umount disk
# a mount that only another mount namespace has
unshare --mount sh -c 'mount /dev/nvme0n1 disk; echo ready >ready; exec sleep 1000' &
holder=$!
within 10 test -s ready
refused 1 "$nvme: the host uses it: /dev/nvme0n1 is claimed" "$stub" bind "$nvme"
kill $holder
within 10 sh -c "mkswap /dev/nvme0n1 >/dev/null 2>&1"
swapon /dev/nvme0n1
refused 1 "$nvme: the host uses it: /dev/nvme0n1 is swap space; *swapoff /dev/nvme0n1*" "$stub" bind "$nvme"
swapoff /dev/nvme0n1
interface=$(ls "/sys/bus/pci/devices/$nic/net")
ip link set "$interface" up
refused 1 "$nic: the host uses it: network interface $interface is up; *ip link set $interface down*" "$stub" bind "$nic"
"$stub" bind --force "$nic"
[ "$(driver_of "$nic")" = vfio-pci ] || fail "--force does not take it"
"$stub" release "$nic"
[ "$(driver_of "$nic")" = e1000 ] || fail "$nic is bound to $(driver_of "$nic")"

# a record that cannot be one, and a folder of records that others could write
"$stub" bind "$edu"
cp "/run/udrv/taken/$edu" record
sed 's/null/"..\/..\/x"/' record >"/run/udrv/taken/$edu"
refused 1 "/run/udrv/taken/$edu: it is no record of a taken device" "$stub" release "$edu"
cp record "/run/udrv/taken/$edu"
chmod 777 /run/udrv/taken
refused 1 "/run/udrv/taken: it can be written by others (owner 0, mode 777)" "$stub" release "$edu"
chmod 755 /run/udrv/taken
"$stub" release "$edu"

# a driver that is not there
modprobe -r vfio-pci
"$stub" bind "$edu"
[ "$(driver_of "$edu")" = vfio-pci ] || fail "vfio-pci was not loaded by bind"
"$stub" release "$edu"
modprobe -r vfio-pci
echo "install vfio-pci /bin/false" >/etc/modprobe.d/udrv-test.conf
refused 1 "driver vfio-pci: it is not loaded, and modprobe did not load it" "$stub" bind "$edu"
rm /etc/modprobe.d/udrv-test.conf
modprobe vfio-pci
