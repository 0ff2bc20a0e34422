"""udrv's commands in gdb; `help udrv` lists them. `udrv debug` loads this.

Nothing here calls a function of the stopped program, which would be unsafe in the middle of whatever it does: what is shown is
read by the command `udrv`, from outside, out of the inspection page of the process and from the device itself.
"""

import json
import os
import re
import subprocess
import time

import gdb

# Words of the inspection page, from udrv/inspect/src/layout.rs.
HELD, HELD_SINCE = 3, 4
# In HELD_SINCE: the process is held, and its clock goes on all the same.
GOES_ON = (1 << 64) - 1
WRITTEN = "udrv::mmio::seen::register_is_written"
READ = "udrv::mmio::seen::register_is_read"
DELIVERED = "udrv::irq::accounts::irq_is_delivered"
# The runtime's own frames, between the place where we stop and the driver.
RUNTIME = re.compile(r"<?(udrv::mmio::|udrv::irq::|core::|alloc::|std::)")


def pid():
    number = gdb.selected_inferior().pid
    if number == 0:
        raise gdb.GdbError("the driver does not run yet: start it with `run`")
    return number


def udrv(*words):
    """What the command says; its error is ours."""
    command = [os.environ.get("UDRV_EXE", "udrv"), *words, "--pid", str(pid())]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    if done.returncode != 0:
        raise gdb.GdbError(done.stderr.strip())
    return done.stdout


class Udrv(gdb.Command):
    """Devices, registers, interrupts and DMA of a udrv driver."""

    def __init__(self):
        super().__init__("udrv", gdb.COMMAND_DATA, prefix=True)


class Asked(gdb.Command):
    """A command whose answer `udrv` has."""

    def __init__(self, name, command, doc):
        self.__doc__ = doc
        self.command = command
        super().__init__("udrv " + name, gdb.COMMAND_DATA)

    def invoke(self, argument, from_tty):
        gdb.write(udrv(self.command, *gdb.string_to_argv(argument)))


def number(text):
    try:
        return int(text, 0)
    except ValueError:
        return None


def arguments(count):
    """The arguments of the C function that was just entered."""
    frame = gdb.newest_frame()
    names = {"i386:x86-64": ("rdi", "rsi", "rdx"), "aarch64": ("x0", "x1", "x2")}.get(frame.architecture().name())
    if names is None:
        raise gdb.GdbError("this needs x86-64 or aarch64")
    mask = (1 << 64) - 1
    return [int(frame.read_register(name)) & mask for name in names[:count]]


def location(frame):
    found = frame.find_sal()
    name = found.symtab.filename if found.symtab else "?"
    return "%s:%d" % (name, found.line)


def driver_frame():
    """The innermost frame that is not the runtime's."""
    frame = gdb.newest_frame()
    while frame is not None and RUNTIME.match(frame.name() or ""):
        frame = frame.older()
    return frame


class Register:
    """A register as it was asked for; known once a driver has told of its registers."""

    def __init__(self, wanted):
        self.wanted = wanted
        self.name = wanted
        self.offset = number(wanted)
        self.region = None
        self.bits = []

    def learn(self):
        if self.region is not None:
            return True
        for device in json.loads(udrv("devices", "--json"))["devices"]:
            registers = device["registers"]
            if registers:
                found = self.among(registers["registers"])
                self.name, self.offset, self.bits = found["name"], found["offset"], found["bits"]
                self.region = registers["region"]
                return True
        return False

    def among(self, registers):
        if self.offset is not None:
            same = [it for it in registers if it["offset"] == self.offset]
            return same[0] if same else {"name": hex(self.offset), "offset": self.offset, "bits": []}
        wanted = self.wanted.lower()
        same = [it for it in registers if it["name"].lower() == wanted]
        same = same or [it for it in registers if wanted in it["name"].lower()]
        if len(same) != 1:
            names = ", ".join(it["name"] for it in registers)
            raise gdb.GdbError("`%s` is %s: expected one of %s" % (wanted, "no register" if not same else "more than one", names))
        return same[0]

    def decode(self, value):
        names = [it["name"] for it in self.bits if it["mask"] and value & it["mask"] == it["mask"]]
        return "%#x%s" % (value, " (%s)" % " | ".join(names) if names else "")


class AccessBreakpoint(gdb.Breakpoint):
    def __init__(self, function, verb, words):
        value = number(words[-1]) if len(words) > 1 else None
        self.register = Register(" ".join(words if value is None else words[:-1]))
        self.value = value
        self.verb = verb
        self.said = None
        super().__init__(function, type=gdb.BP_BREAKPOINT)

    def stop(self):
        if not self.register.learn():
            return False
        region, offset, value = arguments(3)
        if (region & 0xFFFFFFFF, offset) != (self.register.region, self.register.offset):
            return False
        if self.value is not None and value != self.value:
            return False
        self.said = "%s %s %s" % (self.register.name, self.verb, self.register.decode(value))
        return True


class IrqBreakpoint(gdb.Breakpoint):
    def __init__(self, vector):
        self.vector = vector
        self.said = None
        super().__init__(DELIVERED, type=gdb.BP_BREAKPOINT)

    def stop(self):
        index, vector, merged = arguments(3)
        index, vector = index & 0xFFFFFFFF, vector & 0xFFFFFFFF
        if vector != self.vector:
            return False
        name = {0: "INTx", 1: "MSI", 2: "MSI-X", 3: "ERR", 4: "REQ"}.get(index, "timer")
        self.said = "%s vector %d is about to be delivered, for %d signals" % (name, vector, merged)
        return True


class BreakOnAccess(gdb.Command):
    def __init__(self, name, function, verb, doc):
        self.__doc__ = doc
        self.function, self.verb = function, verb
        super().__init__("udrv " + name, gdb.COMMAND_BREAKPOINTS)

    def invoke(self, argument, from_tty):
        words = gdb.string_to_argv(argument)
        if not words:
            raise gdb.GdbError("which register? By name, a part of it, or offset")
        AccessBreakpoint(self.function, self.verb, words)


class BreakOnIrq(gdb.Command):
    """udrv break-on-irq VECTOR: stop when an interrupt of this vector is about to be delivered to its handlers."""

    def __init__(self):
        super().__init__("udrv break-on-irq", gdb.COMMAND_BREAKPOINTS)

    def invoke(self, argument, from_tty):
        vector = number(argument.strip())
        if vector is None:
            raise gdb.GdbError("which vector? A number")
        IrqBreakpoint(vector)


class Hold(gdb.Parameter):
    """Whether the driver's clock stands still while it is stopped, so that no deadline passes because you read."""

    set_doc = show_doc = __doc__

    def __init__(self):
        super().__init__("udrv-hold", gdb.COMMAND_RUNNING, gdb.PARAM_BOOLEAN)
        self.value = True

    def get_set_string(self):
        return ""

    def get_show_string(self, value):
        return "The driver's clock %s while it is stopped." % ("stands still" if self.value else "goes on")


class Clock:
    """The driver's clock: held from each stop until it goes on again."""

    def __init__(self, hold):
        self.hold = hold
        self.pid = 0
        self.page = None

    def open(self, process):
        if self.pid == process and self.page is not None:
            return self.page
        if self.page is not None:
            os.close(self.page)
        self.pid, self.page = process, None
        folder = "/proc/%d/fd" % process
        try:
            for name in os.listdir(folder):
                path = os.path.join(folder, name)
                try:
                    if os.readlink(path).startswith("/memfd:udrv-inspect"):
                        self.page = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                        break
                except OSError:
                    continue
        except OSError:
            pass
        return self.page

    def get(self, word):
        return int.from_bytes(os.pread(self.page, 8, word * 8), "little")

    def set(self, word, value):
        os.pwrite(self.page, value.to_bytes(8, "little"), word * 8)

    def stopped(self):
        process = gdb.selected_inferior().pid
        if process and self.open(process) is not None and self.get(HELD_SINCE) == 0:
            self.set(HELD_SINCE, time.monotonic_ns() if self.hold.value else GOES_ON)

    def goes_on(self):
        process = gdb.selected_inferior().pid
        if process and self.pid == process and self.page is not None:
            since = self.get(HELD_SINCE)
            if since not in (0, GOES_ON):
                self.set(HELD, self.get(HELD) + max(0, time.monotonic_ns() - since))
            self.set(HELD_SINCE, 0)

    def ended(self):
        if self.page is not None:
            os.close(self.page)
        self.pid, self.page = 0, None


clock = Clock(Hold())


def on_stop(event):
    clock.stopped()
    for breakpoint in getattr(event, "breakpoints", []):
        said = getattr(breakpoint, "said", None)
        if said:
            frame = driver_frame()
            if frame is not None and isinstance(breakpoint, AccessBreakpoint):
                frame.select()
                said += " at " + location(frame)
            gdb.write("udrv: %s\n" % said)


gdb.events.stop.connect(on_stop)
gdb.events.cont.connect(lambda event: clock.goes_on())
gdb.events.exited.connect(lambda event: clock.ended())


class Printed:
    def __init__(self, text):
        self.text = text

    def to_string(self):
        return self.text


def text(value):
    """A &str."""
    return value["data_ptr"].string(length=int(value["length"]))


def print_register(value):
    return "%s (offset %#x)" % (text(value["name"]), int(value["offset"]))


def print_buffer(value):
    block = value["block"]
    owner = "the device's" if int(block["with_device"]) else "the driver's"
    return "%d bytes at bus address %#x, %s" % (int(block["length"]), int(block["iova"]), owner)


def print_coherent(value):
    block = value["block"]
    return "%d bytes at bus address %#x, both's" % (int(block["length"]), int(block["iova"]))


def print_flight(value):
    return print_buffer(value["buffer"])


def print_mapped(value):
    return "region %d, mapped at %#x" % (int(value["region"]["__0"]), int(value["base"]["pointer"]))


def print_by_message(value):
    return "region %d, by message" % int(value["seen"]["region"]["__0"])


PRINTERS = [
    (re.compile(r"^udrv_backend::register::Register<"), print_register),
    (re.compile(r"^udrv::dma::buffer::Buffer<"), print_buffer),
    (re.compile(r"^udrv::dma::buffer::InFlight<"), print_flight),
    (re.compile(r"^udrv::dma::buffer::Coherent$"), print_coherent),
    (re.compile(r"^udrv::mmio::mapped::Mapped<"), print_mapped),
    (re.compile(r"^udrv::mmio::ByMessage<"), print_by_message),
]


def printer(value):
    name = value.type.strip_typedefs().name or ""
    for pattern, show in PRINTERS:
        if pattern.match(name):
            try:
                return Printed(show(value))
            except (gdb.error, gdb.MemoryError, KeyError):
                return None
    return None


gdb.pretty_printers.append(printer)
gdb.execute("handle SIGIO nostop noprint pass", to_string=True)

Udrv()
Asked("devices", "devices", "udrv devices: the devices that the driver has open.")
Asked("regs", "regs", """udrv regs [ADDR] [NAME | OFFSET] [--force]: registers and their bits, as the device holds them now.
Registers whose reading changes the device are read only with --force.""")
Asked("irqs", "irqs", "udrv irqs [ADDR]: what each interrupt has seen, its state, and which sections hold them back.")
Asked("dma", "dma", "udrv dma [ADDR]: DMA buffers, where they are mapped, and whose they are.")
Asked("trace", "accesses", "udrv trace [ADDR] [N]: the driver's last N register accesses.")
Asked("poke", "poke", "udrv poke [ADDR] NAME|OFFSET VALUE: writes a register behind the driver's back.")
Asked("raise", "raise", "udrv raise [ADDR] VECTOR: an interrupt that the device did not raise; it is delivered when the driver goes on.")
BreakOnAccess("break-on-write", WRITTEN, "is to be written with", """udrv break-on-write NAME|OFFSET [VALUE]: stop at the driver's line
that writes this register (this value into it), before it is written.""")
BreakOnAccess("break-on-read", READ, "was read as", """udrv break-on-read NAME|OFFSET [VALUE]: stop at the driver's line that has just
read this register (this value from it).""")
BreakOnIrq()
