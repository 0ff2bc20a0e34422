//! The model against the data sheet (National Semiconductor PC16550D, section 8.0). Every number is retyped from there, none
//! imported: driver and model share registers.rs, and could share an error.

use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::AsFd as _;
use udrv_backend::Width::{Bits8, Bits16, Bits32};
use udrv_backend::{Backend, IrqIndex, RegionIndex, Width};
use udrv_model::ModelBackend;
use udrv_uart16550::model::{Plug, UartModel, uart16550};
use udrv_uart16550::registers::{LineStatus, ModemStatus};

type Uart = ModelBackend<UartModel>;

const BUFFER: u64 = 0;
const IER: u64 = 1;
const IIR: u64 = 2;
const FCR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;

fn read(uart: &Uart, offset: u64) -> u64 {
    uart.read(RegionIndex(0), offset, Bits8).expect("a register")
}

fn write(uart: &Uart, offset: u64, value: u64) {
    uart.write(RegionIndex(0), offset, Bits8, value).expect("a register");
}

fn config(uart: &Uart, offset: u64, width: Width) -> u64 {
    uart.read(RegionIndex(7), offset, width).expect("configuration space")
}

/// With a line that the test is the other end of: 8 bits a character, FIFOs on with a trigger level of 1.
fn on_a_line() -> Uart {
    let uart = ModelBackend::new("uart", UartModel::new(Plug::Outside));
    write(&uart, LCR, 0x03);
    write(&uart, FCR, 0x01);
    uart
}

fn receive(uart: &Uart, bytes: &[u8]) {
    bytes.iter().for_each(|byte| receive_with(uart, *byte, 0));
}

fn receive_with(uart: &Uart, byte: u8, errors: u8) {
    uart.from_outside(|model| model.receive(byte, LineStatus::from_bits_retain(errors)));
}

fn sent(uart: &Uart) -> Vec<u8> {
    uart.from_outside(UartModel::take_sent)
}

fn armed(uart: &Uart) -> EventFd {
    let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd");
    uart.set_triggers(IrqIndex::INTX, 0, &[Some(event.as_fd())]).expect("armed");
    event
}

fn signals(event: &EventFd) -> u64 {
    event.read().unwrap_or(0)
}

#[test]
fn configuration_space_is_that_of_qemus_device() {
    let uart = uart16550();
    assert_eq!(config(&uart, 0x00, Bits32), 0x0002_1b36);
    assert_eq!(config(&uart, 0x08, Bits32), 0x0700_0201, "serial, 16550; revision 1");
    assert_eq!(config(&uart, 0x2c, Bits32), 0x1100_1af4);
    assert_eq!(config(&uart, 0x3d, Bits8), 1, "INTA");
    assert_eq!(config(&uart, 0x06, Bits16) & 0x10, 0, "no capabilities");
    assert_eq!(uart.region(RegionIndex(0)).expect("BAR 0").size, 8);
    assert_eq!([0, 1, 2].map(|index| uart.irq(IrqIndex(index)).expect("an interrupt").count), [1, 0, 0]);
}

#[test]
fn bar_written_with_ones_reads_eight_ports() {
    let uart = uart16550();
    uart.write(RegionIndex(7), 0x10, Bits32, 0xffff_ffff).expect("BAR 0");
    assert_eq!(config(&uart, 0x10, Bits32), 0xffff_fff9, "bit 0: I/O space");
}

#[test]
fn registers_after_a_master_reset_are_those_of_the_reset_table() {
    let uart = on_a_line();
    for (offset, value) in [(IER, 0x0f), (LCR, 0x1f), (MCR, 0x0f), (7, 0x5a)] {
        write(&uart, offset, value);
    }
    receive(&uart, b"left over");
    uart.resettable().expect("MR").reset().expect("reset");
    let now = [1, 2, 3, 4, 5, 6].map(|offset| read(&uart, offset));
    assert_eq!(now, [0x00, 0x01, 0x00, 0x00, 0x60, 0x00], "IER, IIR, LCR, MCR, LSR, MSR");
    assert_eq!(read(&uart, 7), 0x5a, "SCR is not reset");
}

#[test]
fn bits_that_are_always_zero_stay_so() {
    let uart = on_a_line();
    write(&uart, IER, 0xff);
    write(&uart, MCR, 0xef);
    assert_eq!((read(&uart, IER), read(&uart, MCR)), (0x0f, 0x0f));
}

#[test]
fn access_of_another_width_reads_ones_and_writes_nothing() {
    let uart = on_a_line();
    assert_eq!(uart.read(RegionIndex(0), 4, Bits16).expect("a read"), 0xffff);
    uart.write(RegionIndex(0), 4, Bits32, 0x0f0f_0f0f).expect("a write");
    assert_eq!(read(&uart, MCR), 0);
}

#[test]
fn divisor_latch_hides_buffer_and_interrupt_enable() {
    let uart = on_a_line();
    write(&uart, IER, 0x05);
    write(&uart, LCR, 0x83);
    write(&uart, 0, 0x80);
    write(&uart, 1, 0x01);
    assert_eq!((read(&uart, 0), read(&uart, 1)), (0x80, 0x01));
    write(&uart, LCR, 0x03);
    assert_eq!((read(&uart, IER), sent(&uart)), (0x05, Vec::<u8>::new()), "neither enabled nor sent");
    assert_eq!(uart.from_outside(|model| model.divisor()), 384, "300 baud of 1.8432 MHz");
}

#[test]
fn characters_go_out_and_come_in_in_order() {
    let uart = on_a_line();
    b"out".iter().for_each(|byte| write(&uart, BUFFER, u64::from(*byte)));
    assert_eq!(sent(&uart), b"out");
    receive(&uart, b"in");
    assert_eq!(read(&uart, LSR), 0x61);
    assert_eq!([read(&uart, BUFFER), read(&uart, BUFFER)], [u64::from(b'i'), u64::from(b'n')]);
    assert_eq!(read(&uart, LSR), 0x60);
}

#[test]
fn character_has_as_many_bits_as_the_line_control_says() {
    let uart = on_a_line();
    for (length, expected) in [(0, 0x1f), (1, 0x3f), (2, 0x7f), (3, 0xff)] {
        write(&uart, LCR, length);
        write(&uart, BUFFER, 0xff);
        receive(&uart, &[0xff]);
        assert_eq!((sent(&uart), read(&uart, BUFFER)), (vec![expected], u64::from(expected)));
    }
}

#[test]
fn identification_shows_fifos_only_while_they_are_enabled() {
    let uart = on_a_line();
    assert_eq!(read(&uart, IIR), 0xc1);
    write(&uart, FCR, 0x00);
    assert_eq!(read(&uart, IIR), 0x01);
    write(&uart, FCR, 0xc6);
    assert_eq!(read(&uart, IIR), 0x01, "without bit 0 the others are not programmed");
}

#[test]
fn interrupt_at_the_trigger_level_is_received_data_and_below_it_a_timeout() {
    for (bits, level) in [(0x00, 1), (0x40, 4), (0x80, 8), (0xc0, 14)] {
        let uart = on_a_line();
        write(&uart, FCR, 0x01 | bits);
        write(&uart, IER, 0x01);
        receive(&uart, &vec![7; level - 1]);
        assert_eq!(read(&uart, IIR), if level == 1 { 0xc1 } else { 0xcc }, "{} of {level}", level - 1);
        receive(&uart, &[7]);
        assert_eq!(read(&uart, IIR), 0xc4, "{level} of {level}");
    }
}

#[test]
fn causes_are_shown_by_priority_and_each_is_acknowledged_in_its_way() {
    let uart = on_a_line();
    let event = armed(&uart);
    write(&uart, IER, 0x0f);
    assert_eq!(signals(&event), 1, "THR is empty when its interrupt is enabled");
    uart.from_outside(|model| model.set_inputs(ModemStatus::CTS));
    receive_with(&uart, 0x41, 0x04);
    assert_eq!(read(&uart, IIR), 0xc6, "line status");
    assert_eq!(read(&uart, LSR), 0xe5, "parity error, one in the FIFO, data");
    assert_eq!(read(&uart, IIR), 0xc4, "received data");
    assert_eq!(read(&uart, BUFFER), 0x41);
    assert_eq!(read(&uart, IIR), 0xc2, "transmitter empty");
    assert_eq!(read(&uart, IIR), 0xc0, "it was acknowledged by that; modem status");
    assert_eq!(read(&uart, MSR), 0x11, "CTS, and that it changed");
    assert_eq!((read(&uart, IIR), read(&uart, MSR)), (0xc1, 0x10), "nothing");
    uart.unmask_irq(IrqIndex::INTX, 0).expect("unmasked");
    assert_eq!(signals(&event), 0, "the line has gone down with the last");
}

#[test]
fn transmitter_interrupt_tells_the_story_of_a_byte() {
    let uart = on_a_line();
    assert_eq!(read(&uart, IIR), 0xc1, "not enabled");
    write(&uart, IER, 0x02);
    assert_eq!(read(&uart, IIR), 0xc2, "enabled while empty");
    assert_eq!(read(&uart, IIR), 0xc1, "read twice");
    write(&uart, BUFFER, 0x41);
    assert_eq!(read(&uart, IIR), 0xc2, "the byte has gone");
    write(&uart, IER, 0x00);
    write(&uart, IER, 0x02);
    assert_eq!(read(&uart, IIR), 0xc2, "enabled anew");
}

#[test]
fn seventeenth_character_is_lost_and_told_once() {
    let uart = on_a_line();
    receive(&uart, &(0..17).collect::<Vec<u8>>());
    assert_eq!(read(&uart, LSR), 0x63, "overrun");
    assert_eq!(read(&uart, LSR), 0x61, "told once");
    let kept: Vec<u64> = (0..16).map(|_| read(&uart, BUFFER)).collect();
    assert_eq!(kept, (0..16).collect::<Vec<u64>>(), "the FIFO keeps the old ones");
    assert_eq!(read(&uart, LSR), 0x60);
}

#[test]
fn character_without_fifos_is_overwritten() {
    let uart = on_a_line();
    write(&uart, FCR, 0x00);
    receive(&uart, b"ab");
    assert_eq!((read(&uart, LSR), read(&uart, BUFFER)), (0x63, u64::from(b'b')));
}

#[test]
fn errors_are_shown_when_their_character_is_next() {
    let uart = on_a_line();
    for (byte, errors) in [(1, 0x00), (2, 0x04), (3, 0x08), (0, 0x10)] {
        receive_with(&uart, byte, errors);
    }
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push((read(&uart, LSR) & 0x9e, read(&uart, BUFFER)));
    }
    assert_eq!(seen, [(0x80, 1), (0x84, 2), (0x88, 3), (0x90, 0)]);
    assert_eq!(read(&uart, LSR), 0x60);
}

#[test]
fn receiver_reset_empties_its_fifo_and_no_other() {
    let uart = on_a_line();
    receive(&uart, b"gone");
    write(&uart, FCR, 0x05);
    assert_eq!(read(&uart, LSR), 0x61, "transmitter reset only");
    write(&uart, FCR, 0x03);
    assert_eq!(read(&uart, LSR), 0x60);
}

#[test]
fn modem_inputs_tell_their_changes_until_they_are_read() {
    let uart = on_a_line();
    let set = |bits: u8| uart.from_outside(|model| model.set_inputs(ModemStatus::from_bits_retain(bits)));
    set(0xf0);
    assert_eq!(read(&uart, MSR), 0xfb, "a ring that begins is no change");
    assert_eq!(read(&uart, MSR), 0xf0);
    set(0x00);
    assert_eq!(read(&uart, MSR), 0x0f, "its end is");
}

#[test]
fn loopback_mode_is_inside_the_device() {
    let uart = on_a_line();
    write(&uart, MCR, 0x10);
    write(&uart, BUFFER, 0x41);
    receive(&uart, &[0x42]);
    assert_eq!((read(&uart, LSR), read(&uart, BUFFER), read(&uart, LSR)), (0x61, 0x41, 0x60), "the line is not heard");
    assert!(sent(&uart).is_empty());
    for (outputs, inputs) in [(0x11, 0x20), (0x12, 0x10), (0x14, 0x40), (0x18, 0x80)] {
        write(&uart, MCR, outputs);
        assert_eq!(read(&uart, MSR) & 0xf0, inputs, "{outputs:#x}");
    }
}

#[test]
fn loopback_mode_overruns_as_a_line_does() {
    let uart = on_a_line();
    write(&uart, MCR, 0x10);
    (0..17).for_each(|byte| write(&uart, BUFFER, byte));
    assert_eq!(read(&uart, LSR), 0x63);
}

#[test]
fn loopback_plug_holds_what_finds_no_room_until_there_is_some() {
    let uart = uart16550();
    write(&uart, LCR, 0x03);
    write(&uart, FCR, 0x01);
    (0..20).for_each(|byte| write(&uart, BUFFER, byte));
    assert_eq!(read(&uart, LSR), 0x01, "neither THRE nor TEMT");
    let came: Vec<u64> = (0..20).map(|_| read(&uart, BUFFER)).collect();
    assert_eq!((came, read(&uart, LSR)), ((0..20).collect(), 0x60));
}

#[test]
fn loopback_plug_makes_outputs_inputs_and_a_break_a_break() {
    let uart = uart16550();
    write(&uart, FCR, 0x01);
    write(&uart, MCR, 0x01);
    assert_eq!(read(&uart, MSR), 0xaa, "DTR is DSR and DCD");
    write(&uart, MCR, 0x02);
    assert_eq!(read(&uart, MSR), 0x1b, "RTS is CTS");
    write(&uart, LCR, 0x43);
    assert_eq!((read(&uart, LSR), read(&uart, BUFFER)), (0xf1, 0));
    write(&uart, LCR, 0x43);
    assert_eq!(read(&uart, LSR), 0x60, "one break, one character");
}
