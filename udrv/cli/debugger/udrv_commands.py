"""udrv's commands, whichever debugger they are typed into.

Nothing here calls a function of the stopped program, which would be unsafe in the middle of whatever it does: what is shown is
read by the command `udrv`, from outside, out of the inspection page of the process and from the device itself.
"""

import os
import re
import subprocess

from udrv_page import clock, page_of

WRITTEN = "udrv::mmio::seen::register_is_written"
READ = "udrv::mmio::seen::register_is_read"
DELIVERED = "udrv::irq::accounts::irq_is_delivered"
# The runtime's own frames, between the place where we stop and the driver; as lldb writes names, too.
RUNTIME = re.compile(r"(<|_\$LT\$)?(udrv(::|\.\.)(mmio|irq)|core|alloc|std)(::|\.\.)")


class Failed(Exception):
    """What is said instead of an answer."""


# Name, the command of `udrv` that has the answer, what it is about.
ASKED = [
    ("devices", "devices", "udrv devices: the devices that the driver has open."),
    (
        "regs",
        "regs",
        "udrv regs [ADDR] [NAME | OFFSET] [--force]: registers and their bits, as the device holds them now.\n"
        "Registers whose reading changes the device are read only with --force.",
    ),
    ("irqs", "irqs", "udrv irqs [ADDR]: what each interrupt has seen, its state, and which sections hold them back."),
    ("dma", "dma", "udrv dma [ADDR]: DMA buffers, where they are mapped, and whose they are."),
    ("trace", "accesses", "udrv trace [ADDR] [N]: the driver's last N register accesses."),
    ("poke", "poke", "udrv poke [ADDR] NAME|OFFSET VALUE: writes a register behind the driver's back."),
    (
        "raise",
        "raise",
        "udrv raise [ADDR] VECTOR: an interrupt that the device did not raise; it is delivered when the driver goes on.",
    ),
]


def ask(pid, command, words):
    """What the command says; its error is ours."""
    if not pid:
        raise Failed("the driver does not run yet: start it with `run`")
    line = [os.environ.get("UDRV_EXE", "udrv"), command, *words, "--pid", str(pid)]
    done = subprocess.run(line, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    if done.returncode != 0:
        raise Failed(done.stderr.strip())
    return done.stdout


HOLD = (
    "udrv hold on|off: whether the driver's clock stands still while the driver is stopped, so that no deadline passes because\n"
    "you read. From the next stop on."
)


def hold(words):
    if words not in (["on"], ["off"]):
        raise Failed("is the clock to stand still? `udrv hold on` or `udrv hold off`")
    clock.is_held = words == ["on"]


def number(text):
    try:
        return int(text, 0)
    except ValueError:
        return None


def argument_registers(architecture):
    """Where the first three arguments of a C function are when it is entered."""
    if architecture.startswith(("i386:x86-64", "x86_64")):
        return ("rdi", "rsi", "rdx")
    if architecture.startswith(("aarch64", "arm64")):
        return ("x0", "x1", "x2")
    raise Failed("this needs x86-64 or aarch64")


def decode(bits, value):
    """A value with the names of its bits: `0x81 (A | B)`."""
    left, names = value, []
    for it in bits:
        if it["mask"] and left & it["mask"] == it["mask"]:
            names.append(it["name"])
            left &= ~it["mask"]
    if names and left:
        names.append("%#x" % left)
    return "%#x%s" % (value, " (%s)" % " | ".join(names) if names else "")


class Access:
    """An access to wait for: to a register by name, a part of one, or offset; perhaps with a value."""

    def __init__(self, words, verb):
        if not words:
            raise Failed("which register? By name, a part of it, or offset")
        self.value = number(words[-1]) if len(words) > 1 else None
        self.wanted = " ".join(words if self.value is None else words[:-1])
        self.verb = verb

    def told(self, pid, arguments):
        """What there is to say of an access; None if it is not the one."""
        region, offset, value = arguments
        region &= 0xFFFFFFFF
        page = page_of(pid)
        maps = page.registers() if page else []
        if not maps:
            # A driver that has told of no registers: they have offsets only, in whichever region.
            found = {"name": self.wanted, "offset": number(self.wanted), "bits": []}
            region = None
        else:
            found = self.among([it for of in maps if of["region"] == region for it in of["registers"]], maps)
        if found is None or offset != found["offset"] or self.value not in (None, value):
            return None
        return "%s %s %s" % (found["name"], self.verb, decode(found["bits"], value))

    def among(self, here, maps):
        """The register meant, if it is in this region."""
        offset = number(self.wanted)
        if offset is not None:
            # One that the map leaves out is still one.
            unnamed = {"name": "%#x" % offset, "offset": offset, "bits": []} if here else None
            return next((it for it in here if it["offset"] == offset), unnamed)
        wanted = self.wanted.lower()
        everything = [it for of in maps for it in of["registers"]]
        same = [it for it in everything if it["name"].lower() == wanted]
        same = same or [it for it in everything if wanted in it["name"].lower()]
        # Two devices of a kind have the same registers.
        if len({it["name"] for it in same}) != 1:
            what = "no register" if not same else "more than one"
            raise Failed("`%s` is %s: expected one of %s" % (self.wanted, what, ", ".join(it["name"] for it in everything)))
        return same[0] if same[0] in here else None


class Irq:
    """A delivery to wait for."""

    def __init__(self, words):
        self.vector = number(words[0]) if len(words) == 1 else None
        if self.vector is None:
            raise Failed("which vector? A number")

    def told(self, _pid, arguments):
        index, vector, merged = arguments[0] & 0xFFFFFFFF, arguments[1] & 0xFFFFFFFF, arguments[2]
        if vector != self.vector:
            return None
        return "%s vector %d is about to be delivered, for %d signals" % (irq_name(index), vector, merged)


def irq_name(index):
    return {0: "INTx", 1: "MSI", 2: "MSI-X", 3: "ERR", 4: "REQ"}.get(index, "timer")


# Name, where to stop, what to wait for there, what it is about.
BREAKS = [
    (
        "break-on-write",
        WRITTEN,
        lambda words: Access(words, "is to be written with"),
        "udrv break-on-write NAME|OFFSET [VALUE]: stop at the driver's line that writes this register (this value into it),\n"
        "before it is written.",
    ),
    (
        "break-on-read",
        READ,
        lambda words: Access(words, "was read as"),
        "udrv break-on-read NAME|OFFSET [VALUE]: stop at the driver's line that has just read this register (this value from it).",
    ),
    (
        "break-on-irq",
        DELIVERED,
        Irq,
        "udrv break-on-irq VECTOR: stop when an interrupt of this vector is about to be delivered to its handlers.",
    ),
]


def told(watch, pid, arguments):
    """What there is to say at a stop; None to go on. What goes wrong is said, too: the driver does not run past it."""
    try:
        return watch.told(pid, arguments)
    except (Failed, OSError, KeyError, TypeError) as error:
        return str(error) or repr(error)
