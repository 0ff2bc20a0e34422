"""The inspection page of a driver's process (docs/inspection.md), read from outside, and the driver's clock, which is in it.

Nothing of a page is believed: it is another process's memory, and may be anything.
"""

import fcntl
import json
import os
import time

import udrv_layout as layout

# In HELD_SINCE: the process is held, and its clock goes on all the same.
GOES_ON = (1 << 64) - 1
# State of a slot that is being filled.
FILLING = (1 << 64) - 1
# linux/fcntl.h; Python 3.11 has no names for them.
F_GET_SEALS, F_SEAL_SHRINK = 1034, 2

_found = None


def page_of(pid):
    """The page of a process; None if it has none (yet)."""
    global _found
    if _found is None or _found.pid != pid:
        _found = _find(pid)
    return _found


def _find(pid):
    folder = "/proc/%d/fd" % pid
    try:
        names = os.listdir(folder)
    except OSError:
        return None
    for name in names:
        path = os.path.join(folder, name)
        try:
            if not os.readlink(path).startswith("/memfd:" + layout.NAME):
                continue
            page = Page(pid, os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
        except OSError:
            continue
        if page.is_its_own():
            return page
    return None


class Page:
    def __init__(self, pid, file):
        self.pid = pid
        self.file = file
        self.maps = {}

    def __del__(self):
        os.close(self.file)

    def is_its_own(self):
        """Whether this is a page, of our version, and of this process: it may have another's open."""
        try:
            if not fcntl.fcntl(self.file, F_GET_SEALS) & F_SEAL_SHRINK:
                return False
            with open("/proc/%d/status" % self.pid) as status:
                number = next(line for line in status if line.startswith("NSpid:")).split()[-1]
        except (OSError, StopIteration):
            return False
        told = [self.word(word) for word in (layout.MAGIC[0], layout.VERSION[0], layout.PID)]
        return told == [layout.MAGIC[1], layout.VERSION[1], int(number)]

    def word(self, number):
        return int.from_bytes(os.pread(self.file, 8, number * 8), "little")

    def set(self, number, value):
        os.pwrite(self.file, value.to_bytes(8, "little"), number * 8)

    def text(self, word, room):
        length = min(self.word(word), room)
        return os.pread(self.file, length, (word + 1) * 8).decode("utf-8", "replace")

    def slots(self, table):
        """First word of each slot that is in use."""
        base, words, count = table
        raw = os.pread(self.file, words * count * 8, base * 8)
        for start in range(0, len(raw), words * 8):
            if int.from_bytes(raw[start : start + 8], "little") not in (0, FILLING):
                yield base + start // 8

    def is_slot(self, table, base):
        start, words, count = table
        return start <= base < start + words * count and (base - start) % words == 0

    def registers(self):
        """The register maps that drivers have told of (`Registers` in udrv/inspect/src/registers.rs)."""
        found = []
        for device in self.slots(layout.DEVICES):
            place = (self.word(device + layout.DEVICE_MAP), self.word(device + layout.DEVICE_MAP_LENGTH))
            if place[1] == 0 or place[1] > layout.SIZE:
                continue
            if place not in self.maps:
                try:
                    self.maps[place] = json.loads(os.pread(self.file, place[1], place[0]))
                except (OSError, ValueError, OverflowError):
                    continue
            found.append(self.maps[place])
        return found

    def device(self, base):
        if not self.is_slot(layout.DEVICES, base):
            return "a device that is not shown"
        return self.text(base + layout.DEVICE_ADDRESS, layout.DEVICE_ADDRESS_ROOM)


class Clock:
    """The driver's clock: it stands still while the driver does, unless it is not to."""

    def __init__(self):
        self.is_held = True

    def stands(self, page, now):
        """The process stands since now."""
        if page.word(layout.HELD_SINCE) == 0:
            page.set(layout.HELD_SINCE, now if self.is_held else GOES_ON)

    def still_stands(self, page, now):
        """It has stood until now."""
        since = page.word(layout.HELD_SINCE)
        if since not in (0, GOES_ON):
            page.set(layout.HELD, page.word(layout.HELD) + max(0, now - since))
            page.set(layout.HELD_SINCE, now)

    def goes_on(self, page):
        page.set(layout.HELD_SINCE, 0)


clock = Clock()


def now():
    return time.monotonic_ns()
