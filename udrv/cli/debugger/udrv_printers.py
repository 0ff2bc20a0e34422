"""How values of the runtime's types are shown, in whichever debugger. What is not in a value itself is in the inspection page.

A value is what the debugger's adapter makes of it: `value["field"]`, `value.fields()`, `value.target()` of a pointer,
`int(value)`, `value.text()` of a &str, `value.type`.
"""

import re

import udrv_layout as layout
from udrv_commands import decode, irq_name


def number(value):
    """Of an integer, or of what wraps one: an atomic, a NonZero, a NonNull, a struct of one field."""
    fields = value.fields()
    while fields:
        value = value[fields[0]]
        fields = value.fields()
    return int(value)


def behind(arc):
    return arc["ptr"]["pointer"].target()["data"]


def region(value):
    index = number(value)
    return {6: "ROM", 7: "config", 8: "VGA"}.get(index, "BAR%d" % index if index < 6 else "region %d" % index)


def source_text(page, slot):
    """As `udrv irqs` has it."""
    if not page.is_slot(layout.SOURCES, slot):
        return "an interrupt that is not shown"

    def get(word):
        return page.word(slot + word)

    device, mark, handler = get(layout.SOURCE_DEVICE), get(layout.SOURCE_MARK), get(layout.SOURCE_HANDLER)
    name = "timer"
    if device:
        address = page.device(layout.DEVICES[0] + (device - 1) * layout.DEVICES[1])
        name = "%s vector %d of %s" % (irq_name(get(layout.SOURCE_INDEX)), get(layout.SOURCE_VECTOR), address)
    disabled, pending = mark >> 48, mark & ((1 << 48) - 1)
    state = ["disabled %d deep" % disabled if disabled else "enabled"]
    if get(layout.SOURCE_STORMED):
        state.append("masked after a storm")
    if pending:
        state.append("%d pending" % pending)
    if handler:
        state.append("in its handler on thread %d" % handler)
    counts = (get(layout.SOURCE_TAKEN) + pending, get(layout.SOURCE_DELIVERED))
    return "%s: %s; %d raised, %d delivered" % (name, ", ".join(state), *counts)


def domain_text(page, slot):
    if not page.is_slot(layout.DOMAINS, slot):
        return "a domain that is not shown"
    of_it = (slot - layout.DOMAINS[0]) // layout.DOMAINS[1]
    sources = [it for it in page.slots(layout.SOURCES) if page.word(it + layout.SOURCE_DOMAIN) == of_it]
    delivery = {0: "thread", 1: "signal", 2: "poll"}.get(page.word(slot + layout.DOMAIN_DELIVERY), "unknown")
    words = ["%s delivery" % delivery, "%d source%s" % (len(sources), "" if len(sources) == 1 else "s")]
    for it in page.slots(layout.SECTIONS):
        if page.word(it + layout.SECTION_DOMAIN) == of_it:
            file = page.text(it + layout.SECTION_FILE, layout.SECTION_FILE_ROOM)
            place = (page.word(it + layout.SECTION_THREAD), file, page.word(it + layout.SECTION_LINE))
            words.append("off by thread %d, entered at %s:%d" % place)
    return ", ".join(words)


def show_source(value, page):
    return source_text(page, number(value["mark"]["page"]["slot"]))


def show_registration(value, page):
    return show_source(behind(value["source"]), page)


def show_timer(value, page):
    return show_registration(value["registration"], page)


def show_domain(value, page):
    return domain_text(page, number(behind(value["shared"])["shown"]))


def show_lock(value, page):
    # std's mutex on Linux: 0 is unlocked.
    locked = number(value["data"]["inner"]["futex"])
    return "%s; %s" % ("locked" if locked else "unlocked", show_domain(value, page))


def show_register(value, _page):
    return "%s (offset %#x)" % (value["name"].text(), int(value["offset"]))


def block_text(block, owner):
    return "%d bytes at bus address %#x, %s" % (int(block["length"]), int(block["iova"]), owner)


def show_buffer(value, _page):
    block = value["block"]
    return block_text(block, "the device's" if int(block["with_device"]) else "the driver's")


def show_coherent(value, _page):
    return block_text(value["block"], "both's")


def show_flight(value, page):
    return show_buffer(value["buffer"], page)


def region_text(seen, page):
    return "%s of %s" % (region(seen["region"]), page.device(number(seen["device"]["slot"])))


def show_mapped(value, page):
    return "%s, mapped at %#x" % (region_text(value["seen"], page), number(value["base"]))


def show_by_message(value, page):
    return "%s, by message" % region_text(value["seen"], page)


PRINTERS = [
    (r"^udrv_backend::register::Register<", show_register),
    (r"^udrv::dma::buffer::Buffer<", show_buffer),
    (r"^udrv::dma::buffer::InFlight<", show_flight),
    (r"^udrv::dma::buffer::Coherent$", show_coherent),
    (r"^udrv::mmio::mapped::Mapped<", show_mapped),
    (r"^udrv::mmio::ByMessage<", show_by_message),
    (r"^udrv::irq::domain::IrqDomain$", show_domain),
    (r"^udrv::irq::lock::IrqLock<", show_lock),
    (r"^udrv::irq::(\w+::)*Source$", show_source),
    (r"^udrv::irq::registration::(Registration|Raiser)$", show_registration),
    (r"^udrv::irq::timer::Timer$", show_timer),
]


def flags(page):
    """The types of registers whose bits have names, and those."""
    registers = [it for of in page.registers() for it in of["registers"]] if page else []
    return {it["type"]: it["bits"] for it in registers if it.get("type") and it["bits"]}


def show(value, page):
    """How a value is shown; None if that is not ours to say."""
    name = value.type
    for pattern, printer in PRINTERS:
        if re.match(pattern, name):
            return printer(value, page) if page else None
    bits = flags(page).get(name)
    return decode(bits, number(value)) if bits else None
