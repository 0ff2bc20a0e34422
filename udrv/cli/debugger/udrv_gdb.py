"""udrv's commands in gdb; `help udrv` lists them. `udrv debug` loads this."""

import gdb

import udrv_commands as commands
import udrv_page
import udrv_printers
from udrv_commands import Failed
from udrv_page import clock, page_of


def pid():
    return gdb.selected_inferior().pid


class Udrv(gdb.Command):
    """Devices, registers, interrupts and DMA of a udrv driver."""

    def __init__(self):
        super().__init__("udrv", gdb.COMMAND_DATA, prefix=True)


class Command(gdb.Command):
    def __init__(self, name, doc, kind, run):
        self.__doc__ = doc
        self.run = run
        super().__init__("udrv " + name, kind)

    def invoke(self, argument, from_tty):
        try:
            said = self.run(gdb.string_to_argv(argument))
        except Failed as error:
            raise gdb.GdbError(str(error))
        if said:
            gdb.write(said)


def arguments():
    """The arguments of the C function that was just entered."""
    frame = gdb.newest_frame()
    names = commands.argument_registers(frame.architecture().name())
    return [int(frame.read_register(name)) & ((1 << 64) - 1) for name in names]


class Breakpoint(gdb.Breakpoint):
    def __init__(self, function, watch):
        self.watch = watch
        self.said = None
        super().__init__(function, type=gdb.BP_BREAKPOINT)

    def stop(self):
        self.said = commands.told(self.watch, pid(), arguments())
        return self.said is not None


def driver_frame():
    """The innermost frame that is not the runtime's."""
    frame = gdb.newest_frame()
    while frame is not None and commands.RUNTIME.match(frame.name() or ""):
        frame = frame.older()
    return frame


def location(frame):
    found = frame.find_sal()
    name = found.symtab.filename if found.symtab else "?"
    return "%s:%d" % (name, found.line)


def on_stop(event):
    page = page_of(pid()) if pid() else None
    if page:
        clock.stands(page, udrv_page.now())
    for breakpoint in getattr(event, "breakpoints", []):
        said = getattr(breakpoint, "said", None)
        if said:
            frame = driver_frame()
            if frame is not None and isinstance(breakpoint.watch, commands.Access):
                frame.select()
                said += " at " + location(frame)
            gdb.write("udrv: %s\n" % said)


def on_continue(_event):
    page = page_of(pid()) if pid() else None
    if page:
        clock.still_stands(page, udrv_page.now())
        clock.goes_on(page)


class Value:
    """As udrv_printers wants it."""

    def __init__(self, value):
        self.value = value

    @property
    def type(self):
        return self.value.type.strip_typedefs().name or ""

    def __getitem__(self, name):
        return Value(self.value[name])

    def __int__(self):
        return int(self.value)

    def fields(self):
        kind = self.value.type.strip_typedefs()
        return [field.name for field in kind.fields()] if kind.code == gdb.TYPE_CODE_STRUCT else []

    def target(self):
        return Value(self.value.dereference())

    def text(self):
        return self.value["data_ptr"].string(length=int(self.value["length"]))


class Printer:
    def __init__(self, text):
        self.text = text

    def to_string(self):
        return self.text


def printer(value):
    """Of one of our types, or of a pointer to one."""
    kind = value.type.strip_typedefs()
    before = ""
    try:
        if kind.code == gdb.TYPE_CODE_PTR and kind.target().code == gdb.TYPE_CODE_STRUCT:
            before = "%#x: " % int(value)
            value = value.dereference()
        shown = udrv_printers.show(Value(value), page_of(pid()) if pid() else None)
    except (gdb.error, gdb.MemoryError, OSError, KeyError, ValueError):
        return None
    return Printer(before + shown) if shown else None


def load():
    gdb.pretty_printers.append(printer)
    gdb.events.stop.connect(on_stop)
    gdb.events.cont.connect(on_continue)
    gdb.execute("handle SIGIO nostop noprint pass", to_string=True)
    Udrv()
    for name, command, doc in commands.ASKED:
        Command(name, doc, gdb.COMMAND_DATA, lambda words, command=command: commands.ask(pid(), command, words))
    for name, function, watch, doc in commands.BREAKS:

        def set_breakpoint(words, function=function, watch=watch):
            Breakpoint(function, watch(words))

        Command(name, doc, gdb.COMMAND_BREAKPOINTS, set_breakpoint)
    Command("hold", commands.HOLD, gdb.COMMAND_RUNNING, commands.hold)


load()
