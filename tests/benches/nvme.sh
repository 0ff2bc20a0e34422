#!/bin/sh
# Run in the virtual machine by `cargo xtask bench nvme`: the driver and the kernel's, with fio, on the same device, in rounds that
# alternate. A line `MEASURE ours|theirs TRANSFERS-A-SECOND` for each; what is missing is not said.
#   tests/benches/nvme.sh UDRV ROUNDS SECONDS
set -eu
udrv=$1 rounds=$2 seconds=$3
stub=$UDRV_BIN/stub-driver
nvme=0000:00:06.0
disk=/dev/nvme0n1
# The namespace whose every command takes milliseconds.
slow=/dev/nvme0n2

wait_for_disk() {
    read -r up _ </proc/uptime
    end=$((${up%.*} + 60))
    until [ -b "$disk" ] && [ -b "$slow" ]; do
        read -r up _ </proc/uptime
        [ "${up%.*}" -lt "$end" ] || { echo "no $disk or no $slow" >&2; exit 1; }
    done
}

# ours MEASURE ARGS...
ours() {
    measure=$1 wait=$2
    shift 2
    said=$("$udrv" run nvme --device "pci:$nvme" --wait "$wait" bench --seconds "$seconds" "$@")
    echo "$measure ours ${said%% *}"
}

# theirs MEASURE ARGS...: fio's IOPS, both ways added (fields 8 and 49 of its terse form 3)
theirs() {
    measure=$1
    shift
    said=$(fio --name=it --filename="$disk" --direct=1 --ioengine=io_uring --time_based --runtime="$seconds" --minimal "$@")
    echo "$measure theirs $(echo "$said" | awk -F';' '{ print $8 + $49 }')"
}

# One queue of the kernel's that is polled, beside the others.
modprobe -r nvme
modprobe nvme poll_queues=1
wait_for_disk
round=0
while [ "$round" -lt "$rounds" ]; do
    round=$((round + 1))
    theirs randread-qd1-interrupt --rw=randread --bs=4k --iodepth=1
    theirs randread-qd1-polled --rw=randread --bs=4k --iodepth=1 --hipri
    theirs randread-qd32-interrupt --rw=randread --bs=4k --iodepth=32
    theirs randread-qd32-polled --rw=randread --bs=4k --iodepth=32 --hipri
    theirs read-128k --rw=read --bs=128k --iodepth=8
    theirs write-128k --rw=write --bs=128k --iodepth=8
    for queues in 1 2 4 8 32; do
        theirs growth-$queues --filename="$slow" --rw=randread --bs=4k --iodepth=1 --numjobs=$queues --group_reporting --thread
    done
    "$stub" bind "$nvme" >/dev/null
    ours randread-qd1-interrupt interrupt --depth 1
    ours randread-qd1-polled polled --depth 1
    ours randread-qd32-interrupt interrupt --depth 32
    ours randread-qd32-polled polled --depth 32
    ours read-128k interrupt --work read --size 131072 --depth 8
    ours write-128k interrupt --work write --size 131072 --depth 8
    for queues in 1 2 4 8 32; do
        ours growth-$queues interrupt --namespace 2 --depth 1 --queues $queues
    done
    "$stub" release "$nvme" >/dev/null
    wait_for_disk
done
