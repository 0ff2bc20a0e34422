"""udrv's commands in lldb; `help udrv` lists them. `udrv debug --lldb` loads this."""

import shlex
import threading
import time

import lldb

import udrv_commands as commands
import udrv_page
import udrv_printers
from udrv_commands import Failed
from udrv_page import clock, page_of

# Seconds between two looks whether the driver stands: by so much its clock may be off when it goes on.
PERIOD = 0.005
THIS = __name__
# Ours, by number: what a breakpoint waits for, and what there is to say at the stop that is coming.
watches = {}
to_say = []


def pid_of(process):
    return process.GetProcessID() if process.IsValid() and process.is_alive else 0


class Command:
    """A command of lldb; each has a class of its own, made by `add_command`."""

    def __init__(self, _debugger, _internal):
        pass

    def __call__(self, debugger, line, context, result):
        try:
            said = self.run(context.GetTarget(), shlex.split(line))
        except (Failed, ValueError) as error:
            return result.SetError(str(error))
        if said:
            result.PutCString(said.rstrip("\n"))

    def get_short_help(self):
        return self.doc.replace("\n", " ")

    def get_long_help(self):
        return self.doc


def add_command(debugger, name, doc, run):
    kind = "Command_" + name.replace("-", "_")
    globals()[kind] = type(kind, (Command,), {"doc": doc, "run": staticmethod(run)})
    debugger.HandleCommand("command script add -c %s.%s udrv %s" % (THIS, kind, name))


def set_breakpoint(target, function, watch):
    # A name may end with a hash that tells builds apart.
    breakpoint = target.BreakpointCreateByRegex("^%s(::h[0-9a-f]+)?$" % function)
    if breakpoint.GetNumLocations() == 0:
        target.BreakpointDelete(breakpoint.GetID())
        raise Failed("there is no function %s in this program: it must be built on udrv's runtime, with symbols" % function)
    watches[breakpoint.GetID()] = watch
    breakpoint.SetScriptCallbackFunction(THIS + ".on_breakpoint")


def on_breakpoint(frame, location, _internal):
    """Whether to stop."""
    process = frame.GetThread().GetProcess()
    watch = watches[location.GetBreakpoint().GetID()]
    names = commands.argument_registers(process.GetTarget().GetTriple())
    values = [frame.FindRegister(name).GetValueAsUnsigned() for name in names]
    said = commands.told(watch, process.GetProcessID(), values)
    if said is not None:
        to_say.append((said, isinstance(watch, commands.Access)))
    return said is not None


def driver_frame(thread):
    """The innermost frame that is not the runtime's."""
    return next((it for it in thread if not commands.RUNTIME.match(it.GetFunctionName() or "")), None)


def location(frame):
    entry = frame.GetLineEntry()
    return "%s:%d" % (entry.GetFileSpec().fullpath or "?", entry.GetLine())


class Stop:
    """What is done at each stop."""

    def __init__(self, _target, _arguments, _internal):
        pass

    def handle_stop(self, context, stream):
        learn_flags(context.GetTarget().GetDebugger(), page_of(context.GetProcess().GetProcessID()))
        while to_say:
            said, is_access = to_say.pop(0)
            frame = driver_frame(context.GetThread()) if is_access else None
            if frame is not None:
                context.GetThread().SetSelectedFrame(frame.GetFrameID())
                said += " at " + location(frame)
            stream.Print("udrv: %s\n" % said)
        return True


def on_start(frame, _location, _internal):
    """The driver begins. lldb 14 takes no word on signals before there is a process."""
    process = frame.GetThread().GetProcess()
    signals = process.GetUnixSignals()
    sigio = signals.GetSignalNumberFromName("SIGIO")
    signals.SetShouldStop(sigio, False)
    signals.SetShouldNotify(sigio, False)
    signals.SetShouldSuppress(sigio, False)
    threading.Thread(target=follow, args=(process.GetProcessID(),), daemon=True).start()
    return False


def standing(pid):
    """Whether a process stands, and how long its first thread has run; None once it has ended."""
    try:
        with open("/proc/%d/stat" % pid) as stat:
            # The name before it may contain anything, parentheses too (proc(5)).
            state = stat.read().rpartition(") ")[2][:1]
    except OSError:
        return None
    if state in "ZX":
        return None
    try:
        with open("/proc/%d/schedstat" % pid) as ran:
            return (state in "tT", ran.read())
    except OSError:
        # Not every kernel has it.
        return (state in "tT", "")


def follow(pid):
    """Keeps the driver's clock: lldb tells nobody that a process is about to go on, so its state is looked at."""
    before = None
    while True:
        now, state = udrv_page.now(), standing(pid)
        if state is None:
            return
        page = page_of(pid) if state[0] or (before and before[0]) else None
        if page:
            keep_clock(page, now, state, before)
        before = state
        time.sleep(PERIOD)


def keep_clock(page, now, state, before):
    if state == before:
        clock.stands(page, now)
        clock.still_stands(page, now)
    else:
        clock.goes_on(page)
        if state[0]:
            clock.stands(page, now)


class Value:
    """As udrv_printers wants it."""

    def __init__(self, value):
        self.value = value.GetNonSyntheticValue()

    @property
    def type(self):
        return self.value.GetType().GetCanonicalType().GetName() or ""

    def __getitem__(self, name):
        child = self.value.GetChildMemberWithName(name)
        if not child.IsValid():
            raise KeyError(name)
        return Value(child)

    def __int__(self):
        error = lldb.SBError()
        found = self.value.GetValueAsUnsigned(error)
        if error.Fail():
            raise ValueError(error.GetCString())
        return found

    def fields(self):
        kind = self.value.GetType()
        return [] if kind.IsPointerType() else [field.GetName() for field in kind.get_fields_array()]

    def target(self):
        return Value(self.value.Dereference())

    def text(self):
        error = lldb.SBError()
        length = int(self["length"])
        raw = self.value.GetProcess().ReadMemory(int(self["data_ptr"]), length, error) if length else b""
        if error.Fail():
            raise ValueError(error.GetCString())
        return raw.decode("utf-8", "replace")


def summary(value, _internal):
    """Of one of our types, or of a pointer to one."""
    try:
        if value.GetType().IsPointerType():
            value = value.Dereference()
        return udrv_printers.show(Value(value), page_of(pid_of(value.GetProcess())))
    except (OSError, KeyError, ValueError):
        return None


def learn_flags(debugger, page):
    """Types of registers are known once a driver has told of its registers."""
    category = debugger.GetCategory("udrv")
    known = {category.GetTypeNameSpecifierForSummaryAtIndex(it).GetName() for it in range(category.GetNumSummaries())}
    for name in udrv_printers.flags(page):
        if name not in known:
            add_summary(category, name, False)


def add_summary(category, name, is_regex):
    summary_of = lldb.SBTypeSummary.CreateWithFunctionName(THIS + ".summary", lldb.eTypeOptionHideChildren)
    category.AddTypeSummary(lldb.SBTypeNameSpecifier(name, is_regex), summary_of)


def load(debugger):
    target = debugger.GetSelectedTarget()
    # Seconds that lldb waits for its own server: an emulated machine takes longer than the 5 it has otherwise.
    debugger.HandleCommand("settings set plugin.process.gdb-remote.packet-timeout 60")
    debugger.HandleCommand('command container add -h "Devices, registers, interrupts and DMA of a udrv driver." udrv')
    for name, command, doc in commands.ASKED:
        run = lambda target, words, command=command: commands.ask(pid_of(target.GetProcess()), command, words)
        add_command(debugger, name, doc, run)
    for name, function, watch, doc in commands.BREAKS:
        run = lambda target, words, function=function, watch=watch: set_breakpoint(target, function, watch(words))
        add_command(debugger, name, doc, run)
    add_command(debugger, "hold", commands.HOLD, lambda _target, words: commands.hold(words))
    category = debugger.CreateCategory("udrv")
    for pattern, _printer in udrv_printers.PRINTERS:
        add_summary(category, pattern, True)
    category.SetEnabled(True)
    begin = target.BreakpointCreateByName("main", lldb.eFunctionNameTypeFull, lldb.SBFileSpecList(), lldb.SBFileSpecList())
    begin.SetOneShot(True)
    begin.SetScriptCallbackFunction(THIS + ".on_start")
    debugger.HandleCommand("target stop-hook add -P %s.Stop" % THIS)
