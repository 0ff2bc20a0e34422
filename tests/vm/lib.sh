# Helpers for the scenarios, which run as root inside the virtual machine (`cargo xtask vm`), each in a shell of its own:
#   . "$(dirname "$0")/lib.sh"
# A scenario passes by exit 0, is skipped by `skip REASON`, and fails by anything else. It may ask for another deadline than 60 s
# with a line `# deadline: SECONDS`. It must not wait by sleeping: `within` waits for a condition, with a deadline.
set -eu

# fail REASON: ends the scenario as failed
fail() {
    echo "FAIL: $*" >&2
    exit 1
}

# skip REASON: ends the scenario as skipped; before any other output
skip() {
    echo "SKIP: $*"
    exit 77
}

# bdfs_of VENDOR:DEVICE: the addresses (0000:00:04.0) of all such PCI devices, lowest first, one a line
# (a process costs much under emulation, so this starts none)
bdfs_of() {
    for dev in /sys/bus/pci/devices/*; do
        read -r vendor <"$dev/vendor"
        read -r device <"$dev/device"
        if [ "$vendor:$device" = "0x${1%:*}:0x${1#*:}" ]; then
            echo "${dev##*/}"
        fi
    done
}

# bdf_of VENDOR:DEVICE [N]: the address of the Nth such device, of the first without N
bdf_of() {
    bdf=$(bdfs_of "$1" | sed -n "${2:-1}p")
    [ -n "$bdf" ] || fail "no PCI device $1 (number ${2:-1})"
    echo "$bdf"
}

# driver_of BDF: the kernel driver bound to it, or "none"
driver_of() {
    if link=$(readlink "/sys/bus/pci/devices/$1/driver"); then echo "${link##*/}"; else echo none; fi
}

# group_of BDF: the number of its IOMMU group
group_of() {
    link=$(readlink "/sys/bus/pci/devices/$1/iommu_group") || fail "$1 has no IOMMU group"
    echo "${link##*/}"
}

# within SECONDS COMMAND...: retries the command until it succeeds; fails when it has not by then
within() {
    limit=$1
    shift
    read -r up _ </proc/uptime
    end=$((${up%.*} + limit))
    until "$@"; do
        read -r up _ </proc/uptime
        [ "${up%.*}" -lt "$end" ] || fail "not within $limit s: $*"
    done
}

# serve ARGS...: starts `stub-driver serve ARGS` in the background, with its sockets in $SOCKETS, and waits until it is ready.
# Its process is $STUB, its output $SOCKETS.log.
SOCKETS=/run/udrv
serve() {
    "$UDRV_BIN/stub-driver" serve "$@" --socket-dir "$SOCKETS" >"$SOCKETS.log" 2>&1 &
    STUB=$!
    within 20 serving
}
serving() {
    kill -0 "$STUB" 2>/dev/null || fail "the stub ended: $(cat "$SOCKETS.log")"
    grep -qx ready "$SOCKETS.log"
}

# stop_stub: ends the stub in the orderly way, and waits for it
stop_stub() {
    kill -TERM "$STUB"
    wait "$STUB" || fail "the stub's exit status is $?: $(cat "$SOCKETS.log")"
}

# $AS_NOBODY COMMAND...: as a user who owns nothing here but what he was given. No function: in the background, the process that
# a function runs in is not the command's, and a signal would miss it.
AS_NOBODY='setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --'

# bus_mastering BDF: whether the device may start transfers (bit 2 of the command register, PCI 3.0, 6.2.2)
bus_mastering() {
    byte=$(od -An -tu1 -j4 -N1 "/sys/bus/pci/devices/$1/config")
    [ $((byte & 4)) -ne 0 ]
}

# nothing_mapped PID: no memory of the process is pinned for a device, and no VFIO descriptor is open in it
nothing_mapped() {
    grep -q '^VmLck:[[:space:]]*0 kB' "/proc/$1/status" || return 1
    for fd in "/proc/$1/fd"/*; do
        case $(readlink "$fd") in /dev/vfio/* | anon_inode:*vfio*) return 1 ;; esac
    done
}
