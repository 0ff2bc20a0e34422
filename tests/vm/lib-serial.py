"""lib-serial.py NEAR FAR SPEED LENGTH: sends a pattern both ways between two terminals at the same time, and compares.

With FAR as `-`, NEAR is one that sends back what it is sent."""
import os
import select
import sys
import termios
import time
import tty

near, far, speed, length = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])


def open_port(path):
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    tty.setraw(fd)
    settings = termios.tcgetattr(fd)
    settings[4] = settings[5] = getattr(termios, "B" + speed)
    settings[2] |= termios.CLOCAL | termios.CREAD
    termios.tcsetattr(fd, termios.TCSANOW, settings)
    return fd


def pattern(seed):
    return bytes((at * 2654435761 + seed * 97 >> 13) & 0xFF for at in range(length))


class Side:
    def __init__(self, path, sends, expects):
        self.path, self.fd, self.sends, self.expects, self.got = path, open_port(path), sends, expects, b""

    def step(self, readable, writable):
        if self.fd in readable:
            self.got += os.read(self.fd, 4096)
            assert self.got == self.expects[: len(self.got)], f"{self.path}: other bytes by {len(self.got)}"
        if self.fd in writable and self.sends:
            self.sends = self.sends[os.write(self.fd, self.sends[:1024]) :]


there, back = pattern(1), pattern(2)
if far == "-":
    sides = [Side(near, there, there)]
else:
    # the far one first: it must be raw before anything comes
    sides = [Side(far, back, there), Side(near, there, back)]
end = time.monotonic() + 60
while any(side.got != side.expects for side in sides):
    left = end - time.monotonic()
    state = [(side.path, len(side.got), len(side.sends)) for side in sides]
    assert left > 0, f"not in time: {state}"
    writers = [side.fd for side in sides if side.sends]
    readable, writable, _ = select.select([side.fd for side in sides], writers, [], left)
    for side in sides:
        side.step(readable, writable)
print(f"{length} bytes, {' and '.join(side.path for side in sides)}")
