#!/bin/bash
# A disk pulled out 50 times at random moments under load: every transfer ends with "gone", nothing hangs, and the process holds
# as much afterwards as before.
# deadline: 900
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib-usb.sh"

rounds=${ROUNDS:-50}
load_usb
monitor device_del usbdisk
disk_is_gone() { ! usb_port_of 46f4:0001 >/dev/null; }
within 60 disk_is_gone

coproc SOAK { "$UDRV_BIN/examples/usb_unplugged" "$rounds" 2>/tmp/soak.log; }
soak=$SOAK_PID
descriptors=()
memory=()
# a round that takes longer than this hangs
while read -r -t 90 -u "${SOAK[0]}" word round fds kib; do
    case $word in
    pull) monitor device_del usbdisk ;;
    ready) plug_disk ;;
    gone)
        descriptors[round]=$fds
        memory[round]=$kib
        plug_disk
        [ "$round" -lt "$rounds" ] || break
        ;;
    esac
done
[ "${#descriptors[@]}" -eq "$rounds" ] || fail "after ${#descriptors[@]} rounds: $(cat /tmp/soak.log)"
wait "$soak" || fail "exit status $?: $(cat /tmp/soak.log)"
[ ! -s /tmp/soak.log ] || fail "$(cat /tmp/soak.log)"

# The least of ten rounds: the last user of a device may be closing it on another thread just then, which is no leak; what
# leaks is there in every later round.
least() { printf '%s\n' "$@" | sort -n | head -1; }
first=("${descriptors[@]:$((rounds / 5)):10}") last=("${descriptors[@]: -10}")
early=$(least "${first[@]}") late=$(least "${last[@]}")
echo "descriptors: $early after round $((rounds / 5 + 1)), $late after round $rounds"
[ "$early" -eq "$late" ] || fail "descriptors leak: ${descriptors[*]}"
first=("${memory[@]:$((rounds / 5)):10}") last=("${memory[@]: -10}")
early=$(least "${first[@]}") late=$(least "${last[@]}")
echo "memory: $early KiB after round $((rounds / 5 + 1)), $late KiB after round $rounds"
[ "$late" -le $((early + 1024)) ] || fail "memory leaks: ${memory[*]}"
# nobody holds its interface any more
within 90 disk_is_back
