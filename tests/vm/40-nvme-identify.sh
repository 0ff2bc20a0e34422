#!/bin/sh
# deadline: 120
# A real device class through the runtime's API: the NVMe controller says who it is, by pci: and through the stub.
. "$(dirname "$0")/lib.sh"
stub=$UDRV_BIN/stub-driver
example=$UDRV_BIN/nvme_identify
nvme=$(bdf_of 1b36:0010)
sockets=/tmp/nvme-identify

# What the kernel's own driver says of it.
within 20 test -e /sys/class/nvme/nvme0/model
read -r model </sys/class/nvme/nvme0/model
read -r serial </sys/class/nvme/nvme0/serial
read -r firmware </sys/class/nvme/nvme0/firmware_rev

# identify ADDRESS: the example's words are the kernel's
identify() {
    said=$("$example" "$1") || fail "nvme_identify $1 failed"
    echo "$said"
    for line in "serial:   $serial" "model:    $model" "firmware: $firmware"; do
        case $said in
        *"$line"*) ;;
        *) fail "$1: no \`$line\`" ;;
        esac
    done
}

"$stub" bind "$nvme"
identify "pci:$nvme"
# Again: the first run left it quiet and usable.
identify "pci:$nvme"

for mmap in "" --mmap; do
    "$stub" serve "pci:$nvme" --socket-dir "$sockets" $mmap &
    server=$!
    within 10 test -S "$sockets/$nvme.sock"
    identify "unix:$sockets/$nvme.sock"
    # The next lease finds it usable too.
    identify "unix:$sockets/$nvme.sock"
    kill "$server"
    wait "$server" || fail "the stub ended with $?"
done

"$UDRV_BIN/udrv" info "pci:$nvme"
"$stub" release "$nvme"
[ "$(driver_of "$nvme")" = nvme ] || fail "the NVMe controller did not get its driver back"
