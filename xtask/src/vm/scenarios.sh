# Runs inside the guest: every scenario of the `scenarios` list (`name deadline`), in its order. Each has its own PID and mount
# namespace, so that a process it leaves behind is dead, and its device free, before the next one starts.
# For each: the beginning of its output in NAME.out, a line `name status centiseconds` in `results`, and a line on ttyS1 to wake
# the host.

now() { # centiseconds since boot
    read -r up _ </proc/uptime
    echo "${up%.*}${up#*.}"
}

# keeps 4 MB of what comes, and takes the rest
keep() {
    head -c 4000000 >"$1"
    cat >/dev/null
}

while read -r name deadline; do
    start=$(now)
    rm -f /run/scenario-status
    {
        unshare --pid --fork --mount-proc --kill-child sh -c 'timeout --kill-after=5 "$1" "$2"; exit $?' \
            sh "$deadline" "tests/vm/$name.sh" </dev/null 2>&1
        echo $? >/run/scenario-status
    } | keep "$UDRV_VM_RUN/$name.out"
    status=$(cat /run/scenario-status)
    echo "$name ${status:-125} $(($(now) - start))" >>"$UDRV_VM_RUN/results"
    echo "$name" >/dev/ttyS1
done <"$UDRV_VM_RUN/scenarios"
