"""A driver that keeps its device's descriptor after its lease: kept.py SOCKET DRIVER-LINK. Run by 61-usb-stub.sh, by nobody.

It prints what it could do then, by name."""

import array
import fcntl
import os
import socket
import struct
import sys
import time

CLAIM, RELEASE, SETCONFIGURATION, RESET = 0x8004550F, 0x80045510, 0x80045505, 0x5514
CONTROL, IOCTL, DISCONNECT_CLAIM, DISCONNECT = 0xC0185500, 0xC0105512, 0x8108551B, 0x5516


def driver():
    try:
        return os.path.basename(os.readlink(sys.argv[2]))
    except FileNotFoundError:
        return None


def done(request, argument=0):
    try:
        fcntl.ioctl(node, request, argument)
        return True
    except OSError:
        return False


lease = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
lease.connect(sys.argv[1])
line, fds, _, _ = socket.recv_fds(lease, 1024, 1)
assert line.startswith(b"usb "), line
node = fds[0]
number = struct.pack("I", 0)
assert done(CLAIM, number), "not even with the lease"
lease.close()
deadline = time.monotonic() + 60
while driver() != "usb-storage":
    assert time.monotonic() < deadline, "the kernel's driver is not back"

buffer = array.array("B", bytes(18))
address, _ = buffer.buffer_info()
get_device_descriptor = struct.pack("BBHHHIP", 0x80, 6, 0x0100, 0, 18, 5000, address)
tried = {
    "claim": done(CLAIM, number),
    "disconnect": done(IOCTL, struct.pack("iiP", 0, DISCONNECT, 0)),
    "disconnect and claim": done(DISCONNECT_CLAIM, struct.pack("II256s", 0, 0, b"")),
    "set the configuration": done(SETCONFIGURATION, struct.pack("I", 1)),
    "reset": done(RESET),
    "ask for a descriptor": done(CONTROL, get_device_descriptor),
}
print(*(name for name, could in tried.items() if could), sep="\n")
