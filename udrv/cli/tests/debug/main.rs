//! `udrv debug`: a real gdb and a real lldb, on a driver whose device is served from here, so that it goes on meanwhile.

mod held;
mod machine_interface;
mod printers;
mod served;

use served::{Debugger, Served};
use udrv_backend::Width;
use udrv_edu::registers::MAP;

/// Each of these tests, in both debuggers.
macro_rules! in_both {
    ($($name:ident),* $(,)?) => {
        mod gdb {
            $(#[test]
            fn $name() {
                super::$name(super::Debugger::Gdb);
            })*
        }
        mod lldb {
            $(#[test]
            fn $name() {
                super::$name(super::Debugger::Lldb);
            })*
        }
    };
}
use in_both;

in_both!(
    break_on_write_stops_at_the_drivers_line_with_its_value,
    break_on_read_stops_behind_the_read,
    regs_are_what_the_device_holds,
    break_on_irq_stops_before_the_handler_and_raise_makes_one,
    devices_and_dma_are_those_of_the_driver,
    unknown_register_is_refused_with_those_there_are,
    commands_need_a_driver_that_runs,
);

/// Number of the line of the edu driver that has this text.
fn line_of(text: &str) -> usize {
    let source = include_str!("../../../../devices/edu/src/driver.rs");
    let mut lines = source.lines().zip(1..).filter(|(line, _)| line.contains(text));
    let (_, number) = lines.next().expect("a line of the driver");
    assert!(lines.next().is_none(), "`{text}` is on more than one line");
    number
}

fn break_on_write_stops_at_the_drivers_line_with_its_value(debugger: Debugger) {
    let Some(served) = Served::start(debugger) else { return };
    let said =
        served.debug_edu(&["udrv break-on-write factorial 10", "run", debugger.locals(), "udrv trace 2", "kill"]);
    let line = line_of("self.io.write(FACTORIAL, n)?");
    let stopped = "udrv: factorial computation is to be written with 0xa at ";
    let place = said.lines().find_map(|line| line.strip_prefix(stopped)).unwrap_or_else(|| panic!("no stop: {said}"));
    assert!(place.ends_with(&format!("devices/edu/src/driver.rs:{line}")), "{place}");
    assert!(said.contains("write BAR0 status                   0x00000080  IRQ_ON_FACTORIAL\n"), "{said}");
    assert!(said.contains("write BAR0 factorial computation    0x0000000a\n"), "{said}");
    // Stopped before the write: the device still has the result for 5.
    assert_eq!(served.register(0x08, Width::Bits32), 120);
}

fn break_on_read_stops_behind_the_read(debugger: Debugger) {
    let Some(served) = Served::start(debugger) else { return };
    let said = served.debug_edu(&["udrv break-on-read 0x08 3628800", "run", "bt 3", "kill"]);
    let line = line_of("self.io.read(FACTORIAL)\n".trim_end());
    let stopped = "udrv: factorial computation was read as 0x375f00 at ";
    let place = said.lines().find_map(|line| line.strip_prefix(stopped)).unwrap_or_else(|| panic!("no stop: {said}"));
    assert!(place.ends_with(&format!("devices/edu/src/driver.rs:{line}")), "{place}");
}

fn regs_are_what_the_device_holds(debugger: Debugger) {
    let Some(served) = Served::start(debugger) else { return };
    let said = served.debug_edu(&["udrv break-on-write 0x60", "run", "udrv poke liveness 0x1234", "udrv regs", "kill"]);
    for register in MAP.registers {
        let line = said.lines().find(|line| line.starts_with(&format!("{:<26} ", register.name)));
        let line = line.unwrap_or_else(|| panic!("no {} in {said}", register.name));
        if register.kind.is_readable() {
            let value = served.register(register.offset, register.width);
            let digits = 2 + 2 * register.width.bytes() as usize;
            assert!(line.contains(&format!("{:#06x}  {value:#0digits$x}", register.offset)), "{line}: not {value:#x}");
        } else {
            assert!(line.ends_with("write only"), "{line}");
        }
    }
    assert!(said.contains("0xffffedcb"), "the complement of what was poked: {said}");
}

fn break_on_irq_stops_before_the_handler_and_raise_makes_one(debugger: Debugger) {
    let Some(served) = Served::start(debugger) else { return };
    let said = served.debug_edu(&[
        "udrv break-on-irq 0",
        "run",
        "udrv irqs",
        debugger.delete(),
        "udrv break-on-write 0x64 0x10",
        "continue",
        "udrv raise 0",
        debugger.delete(),
        "continue",
    ]);
    assert!(said.contains("udrv: MSI vector 0 is about to be delivered, for 1 signals\n"), "{said}");
    assert!(said.contains("(thread; enabled, in its handler on thread "), "{said}");
    // 3 factorials, 2 transfers, 1 in the section, 5 timed, and the one that was not the device's.
    let last = said.lines().find(|line| line.starts_with("irqs ")).unwrap_or_else(|| panic!("no end: {said}"));
    assert!(last.contains("12 raised"), "{last}");
}

fn devices_and_dma_are_those_of_the_driver(debugger: Debugger) {
    let Some(served) = Served::start(debugger) else { return };
    let said = served.debug_edu(&["udrv break-on-write \"DMA command\"", "run", "udrv devices", "udrv dma", "kill"]);
    let device = format!("{}  edu, process ", served.address());
    let line = said.lines().find(|line| line.starts_with(&device)).unwrap_or_else(|| panic!("no device: {said}"));
    assert!(line.ends_with(", 1 interrupts, 1 DMA buffers"), "{line}");
    let buffer = said.lines().find(|line| line.ends_with("reads                    device"));
    assert!(buffer.is_some_and(|line| line.contains("+0x1000 ") && line.contains(" 4095 ")), "{said}");
}

fn unknown_register_is_refused_with_those_there_are(debugger: Debugger) {
    let Some(served) = Served::start(debugger) else { return };
    let said = served.debug_edu_badly(&["udrv break-on-write 0x60", "run", "udrv regs dma", "kill"]);
    assert!(said.contains("edu has several registers like `dma`: DMA source address (0x80), "), "{said}");
    let said = served.debug_edu(&["udrv break-on-write dma", "run", "kill"]);
    assert!(said.contains("udrv: `dma` is more than one: expected one of identification,"), "{said}");
}

fn commands_need_a_driver_that_runs(debugger: Debugger) {
    let Some(served) = Served::start(debugger) else { return };
    let said = served.debug_edu_badly(&["udrv irqs"]);
    assert!(said.contains("the driver does not run yet: start it with `run`"), "{said}");
    let said = served.debug_edu_badly(&["udrv break-on-irq soon"]);
    assert!(said.contains("which vector? A number"), "{said}");
}
