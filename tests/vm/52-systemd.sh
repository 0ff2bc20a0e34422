#!/bin/sh
# deadline: 300
# The systemd unit, its tmpfiles entry and its configuration file, as shipped, under a real systemd: at boot it takes the device that
# the file lists, serves it to the user the file names, starts again after a crash, and gives the device back when it is stopped.
. "$(dirname "$0")/lib.sh"
systemd=/lib/systemd/systemd
[ -x $systemd ] || skip "there is no systemd here"
nvme=$(bdf_of 1b36:0010)
dist=$PWD/stub-driver/dist

cp "$UDRV_BIN/stub-driver" /usr/bin/stub-driver
cp "$dist/udrv-stub.service" /etc/systemd/system/
mkdir -p /etc/udrv
{
    echo 'owner = "nobody"'
    cat "$dist/stub-driver.toml"
    printf '[[device]]\naddress = "pci:%s"\n' "$nvme"
} >/etc/udrv/stub-driver.toml
cp "$dist/udrv.conf" /usr/lib/tmpfiles.d/
systemd-tmpfiles --create /usr/lib/tmpfiles.d/udrv.conf
[ "$(stat -c %U:%a /run/udrv)" = root:755 ] || fail "tmpfiles made /run/udrv $(stat -c %U:%a /run/udrv)"

# nothing but what the unit needs is started beside it (the guest's root is an overlay: this removes nothing of the host's)
rm -rf /lib/systemd/system/*.target.wants /etc/systemd/system/*.target.wants
cat >/etc/systemd/system/only-udrv.target <<'UNIT'
[Unit]
Requires=udrv-stub.service
DefaultDependencies=no
AllowIsolate=yes
UNIT
mount -t cgroup2 cgroup /sys/fs/cgroup
container=other unshare --pid --fork --mount --mount-proc --cgroup --kill-child \
    $systemd --unit=only-udrv.target --log-target=console --show-status=no </dev/null &
unshare=$!
children() { # the file has no end of line, which `read` calls a failure
    read -r systemd_pid _ <"/proc/$unshare/task/$unshare/children" || [ -n "$systemd_pid" ]
}
within 10 children
# systemd takes commands from its own namespaces only; what it has to say is in the kernel's log
systemctl() { nsenter --target "$systemd_pid" --pid --mount --root --wd=/ systemctl "$@" 2>/dev/null; }

active() { systemctl is-active --quiet udrv-stub.service; }
within 60 active
[ "$(driver_of "$nvme")" = vfio-pci ] || fail "the service did not take the device"
as_nobody_info() { $AS_NOBODY "$UDRV_BIN/udrv" info "unix:/run/udrv/$1.sock" >/dev/null 2>&1; }
within 20 as_nobody_info "$nvme"
within 20 as_nobody_info edu

# a crash: it is started again, and serves again
pid=$(systemctl show --property MainPID --value udrv-stub.service)
systemctl kill --kill-whom=main --signal=KILL udrv-stub.service
again() { active && [ "$(systemctl show --property MainPID --value udrv-stub.service)" != "$pid" ]; }
within 60 again
within 20 as_nobody_info "$nvme"

systemctl stop udrv-stub.service
[ "$(driver_of "$nvme")" = nvme ] || fail "after the stop the device is bound to $(driver_of "$nvme")"
[ "$(systemctl show --property Result --value udrv-stub.service)" = success ] || fail "the stop was no success"
