# Helpers for the USB scenarios, after lib.sh.

# load_usb: loads the host controller's driver and those of QEMU's devices, and waits until the disk is there and the kernel's
# driver has it. What an earlier scenario may have left when it fell is put right: a disk that is unplugged, or has no driver.
load_usb() {
    modprobe -a xhci_pci usb-storage sd_mod ext4 usbhid || fail "cannot load the USB drivers"
    within 60 usb_port_of 0627:0001 >/dev/null # the keyboard is never unplugged: the bus is up
    usb_port_of 46f4:0001 >/dev/null || plug_disk
    within 60 usb_port_of 46f4:0001 >/dev/null
    port=$(usb_port_of 46f4:0001)
    [ -e "/sys/bus/usb/devices/$port:1.0/driver" ] || echo "$port:1.0" >/sys/bus/usb/drivers/usb-storage/bind || true
    within 90 disk_is_back
}

# plug_disk: plugs the disk in, or back in
plug_disk() {
    monitor device_add usb-storage,bus=xhci.0,port=1,drive=usb,serial=udrv,id=usbdisk
}

# usb_port_of VENDOR:PRODUCT: where the first such device is plugged in (1-2)
usb_port_of() {
    for dev in /sys/bus/usb/devices/*; do
        if [ -r "$dev/idVendor" ]; then
            read -r vendor <"$dev/idVendor"
            read -r product <"$dev/idProduct"
            if [ "$vendor:$product" = "$1" ]; then
                echo "${dev##*/}"
                return 0
            fi
        fi
    done
    return 1
}

# disk_of PORT: the block device that the kernel's driver made of it
disk_of() {
    for block in /sys/block/sd*; do
        case $(readlink -f "$block") in */"$1":*) echo "/dev/${block##*/}" && return 0 ;; esac
    done
    return 1
}

# disk_is_back: the kernel's driver has the USB disk, with its medium
disk_is_back() {
    port=$(usb_port_of 46f4:0001) || return 1
    disk=$(disk_of "$port") || return 1
    [ -b "$disk" ] && [ "$(cat "/sys/block/${disk##*/}/size")" -eq 131072 ]
}

# monitor COMMAND: tells QEMU's monitor, from the guest
monitor() {
    for tty in /sys/class/tty/ttyS*; do
        case $(readlink -f "$tty/device") in
        */0000:00:09.0*)
            # what the monitor answers must not be echoed: it would be the next command
            stty -F "/dev/${tty##*/}" raw -echo
            # What came before that was echoed (the greeting): the first line ends whatever QEMU makes of it.
            printf '\n\n%s\n' "$*" >"/dev/${tty##*/}"
            return 0
            ;;
        esac
    done
    fail "no way to QEMU's monitor"
}
