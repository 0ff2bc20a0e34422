#!/bin/sh
# deadline: 420
# The 16550 driver on QEMU's pci-serial, with the kernel's own driver at the other end of the line: bytes both ways at once, in this
# process and through the stub; the kernel's driver back afterwards; and beside the NVMe driver in one host.
. "$(dirname "$0")/lib.sh"
stub=$UDRV_BIN/stub-driver
udrv=$UDRV_BIN/udrv
uart=$(bdf_of 1b36:0002 1)
far=$(bdf_of 1b36:0002 4)
work=/tmp/uart16550
mkdir -p "$work"
cd "$work"
# new_bytes COUNT: as many for each direction
new_bytes() {
    bytes=$1
    head -c "$bytes" /dev/urandom >to-far
    head -c "$bytes" /dev/urandom >to-near
}

# tty_of BDF: the kernel's terminal of a serial port
tty_of() {
    for tty in "/sys/bus/pci/devices/$1/tty/ttyS"*; do
        [ -e "$tty" ] || fail "the kernel has no terminal for $1"
        echo "/dev/${tty##*/}"
    done
}

# both_ways NEAR FAR: bytes in both directions at once, compared
both_ways() {
    stty -F "$2" raw -echo 115200
    stty -F "$1" raw -echo 115200
    exec 3<>"$1" 4<>"$2"
    rm -f far-came near-came
    timeout 120 head -c $bytes <&4 >far-came &
    far_reader=$!
    timeout 120 head -c $bytes <&3 >near-came &
    near_reader=$!
    cat to-near >&4 &
    far_writer=$!
    cat to-far >&3
    wait $far_writer && wait $far_reader && wait $near_reader || fail "$1: not all bytes came: $(wc -c far-came near-came)"
    exec 3<&- 4<&-
    cmp to-far far-came || fail "$1: other bytes came at the far end"
    cmp to-near near-came || fail "$1: other bytes came at the near end"
}

# run ADDRESS WHO...: the driver in the background; its terminal is at $work/tty
run() {
    address=$1
    shift
    "$@" "$udrv" run uart16550 --device "$address" --link "$work/tty" >said 2>complained &
    driver=$!
    within 60 has_terminal
}
has_terminal() {
    kill -0 $driver 2>/dev/null || fail "the driver ended: $(cat said complained)"
    [ -c "$work/tty" ]
}
# ended: ends the driver in the orderly way, and looks at what it counted
ended() {
    kill -TERM $driver
    wait $driver || fail "the driver's exit status is $?: $(cat said complained)"
    cat said
    grep -q "^received $bytes, sent $bytes; overruns 0, parity errors 0, framing errors 0" said || fail "other counts"
    [ ! -e "$work/tty" ] || fail "the link to the terminal is left"
}

within 20 [ -e "/sys/bus/pci/devices/$far/tty" ]
far_tty=$(tty_of "$far")

new_bytes 16384
"$stub" bind "$uart"
run "pci:$uart" env
both_ways "$work/tty" "$far_tty"
ended
if grep -q 'vfio-intx' /proc/interrupts; then fail "an interrupt stayed armed: $(grep vfio- /proc/interrupts)"; fi
if "$udrv" run uart16550 --device "pci:$(bdf_of 1b36:0010)" 2>error; then fail "it drives an NVMe controller"; fi
[ "$(wc -l <error)" -eq 1 ] || fail "not one line: $(cat error)"

# In one host with the NVMe driver; the far end sends back what it gets.
nvme=$(bdf_of 1b36:0010)
"$stub" bind "$nvme"
"$UDRV_BIN/nvme_hello" "pci:$nvme" | tee hello
grep -q '^namespace 1: 131072 blocks of 512 bytes' hello || fail "nvme_hello says something else"
stty -F "$far_tty" raw -echo 115200
cat <"$far_tty" >"$far_tty" &
echo=$!
"$UDRV_BIN/two-drivers" "pci:$nvme" "pci:$uart" | tee two
kill $echo
grep -q '^ok' two || fail "two drivers in one host"
"$stub" release "$nvme"

# The kernel's driver has it back, and works.
"$stub" release "$uart"
check_released "$uart" serial
within 20 [ -e "/sys/bus/pci/devices/$uart/tty" ]
both_ways "$(tty_of "$uart")" "$far_tty"

# Through the stub, as a user who owns nothing but the socket. Each of three accesses a byte is then a message there and back, which
# takes the emulated machine milliseconds: this is also a driver that is slower than its line, and has to send all the same.
new_bytes 384
chmod 777 "$work"
serve "pci:$uart" --owner nobody
run "unix:$SOCKETS/$uart.sock" $AS_NOBODY
both_ways "$work/tty" "$far_tty"
ended
stop_stub
check_released "$uart" serial
