//! The device in software, by its data sheet.
//!
//! No time passes in it. A character is sent when it is written, and four character times have always passed, so that
//! [`Cause::CharacterTimeout`] is pending wherever fewer characters than the trigger level wait. At the other end of the
//! line is a [`Plug`]. What its bus sees of it is in `bus.rs`.

mod bus;

use crate::registers::{
    Cause, FIFO_SIZE, FIFOS_ENABLED, FifoControl, InterruptEnable, LineControl, LineStatus, ModemControl, ModemStatus,
    NO_INTERRUPT,
};
use std::collections::VecDeque;
use udrv_model::ModelBackend;

/// The bits that are implemented.
const IER_BITS: InterruptEnable = InterruptEnable::from_bits_retain(0x0f);
const MCR_BITS: ModemControl = ModemControl::from_bits_retain(0x1f);
/// What comes with a character.
const CHARACTER_ERRORS: LineStatus = LineStatus::PARITY_ERROR.union(LineStatus::FRAMING_ERROR).union(LineStatus::BREAK);
/// Shown once, and an interrupt as long as shown.
const LINE_EVENTS: LineStatus = CHARACTER_ERRORS.union(LineStatus::OVERRUN);
const CHANGES: ModemStatus = ModemStatus::CTS_CHANGED
    .union(ModemStatus::DSR_CHANGED)
    .union(ModemStatus::RING_ENDED)
    .union(ModemStatus::DCD_CHANGED);

/// What the line ends in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plug {
    /// A loopback plug: what is sent is received, RTS is CTS, DTR is DSR and DCD. What finds no room waits, as behind a
    /// real plug it would still be on its way while the receiver is emptied.
    Loopback,
    /// Whoever holds the model ([`UartModel::receive`], [`UartModel::take_sent`], [`UartModel::set_inputs`]).
    Outside,
}

/// A character received, and what was wrong with it.
#[derive(Debug, Clone, Copy)]
struct Received {
    byte: u8,
    errors: LineStatus,
}

/// The serial port.
pub struct UartModel {
    plug: Plug,
    /// The four inputs, as the line has them ([`Plug::Outside`]).
    inputs: ModemStatus,
    /// Sent, and taken by nobody yet ([`Plug::Outside`]).
    sent: Vec<u8>,

    ier: InterruptEnable,
    fcr: FifoControl,
    lcr: LineControl,
    mcr: ModemControl,
    scr: u8,
    divisor: u16,
    receiver: VecDeque<Received>,
    transmitter: VecDeque<u8>,
    /// The errors that LSR shows, until it is read.
    shown: LineStatus,
    changes: ModemStatus,
    /// The inputs when the changes were last worked out.
    seen: ModemStatus,
    /// THR has become empty, or its interrupt was enabled while it was, and neither was acknowledged.
    transmitter_event: bool,
}

/// The device as `model:uart16550`, with a loopback plug in it.
#[must_use]
pub fn uart16550() -> ModelBackend<UartModel> {
    ModelBackend::new("uart16550", UartModel::new(Plug::Loopback))
}

impl UartModel {
    /// After a master reset (table "UART Reset Configuration").
    #[must_use]
    pub fn new(plug: Plug) -> Self {
        Self {
            plug,
            inputs: ModemStatus::empty(),
            sent: Vec::new(),
            ier: InterruptEnable::empty(),
            fcr: FifoControl::empty(),
            lcr: LineControl::empty(),
            mcr: ModemControl::empty(),
            scr: 0,
            divisor: 0,
            receiver: VecDeque::with_capacity(FIFO_SIZE),
            transmitter: VecDeque::with_capacity(FIFO_SIZE),
            shown: LineStatus::empty(),
            changes: ModemStatus::empty(),
            seen: ModemStatus::empty(),
            transmitter_event: false,
        }
    }

    /// A character arrives on the line. In loopback mode the receiver is not connected to it (8.8).
    pub fn receive(&mut self, byte: u8, errors: LineStatus) {
        if !self.mcr.contains(ModemControl::LOOP) {
            self.arrive(byte, errors & CHARACTER_ERRORS);
        }
    }

    /// Whether a character that arrives now has room.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.receiver.len() < self.depth()
    }

    /// What has been sent since this was last called.
    pub fn take_sent(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.sent)
    }

    /// Sets CTS, DSR, RI and DCD.
    pub fn set_inputs(&mut self, inputs: ModemStatus) {
        self.inputs = inputs - CHANGES;
        self.note_inputs();
    }

    /// The outputs DTR and RTS, as they are on the line.
    #[must_use]
    pub fn outputs(&self) -> ModemControl {
        if self.mcr.contains(ModemControl::LOOP) { ModemControl::empty() } else { self.mcr }
    }

    /// What the divisor latch holds.
    #[must_use]
    pub const fn divisor(&self) -> u16 {
        self.divisor
    }

    fn fifos(&self) -> bool {
        self.fcr.contains(FifoControl::ENABLE)
    }

    fn depth(&self) -> usize {
        if self.fifos() { FIFO_SIZE } else { 1 }
    }

    /// Characters at which the receiver interrupts (8.5).
    fn trigger(&self) -> usize {
        let level = self.fcr & (FifoControl::TRIGGER_4 | FifoControl::TRIGGER_8);
        match level.bits() >> 6 {
            _ if !self.fifos() => 1,
            0 => 1,
            1 => 4,
            2 => 8,
            _ => 14,
        }
    }

    fn arrive(&mut self, byte: u8, errors: LineStatus) {
        if !self.has_room() {
            // With FIFOs the new one is lost, without the old one (8.4, bit 1).
            self.shown |= LineStatus::OVERRUN;
            if self.fifos() {
                return;
            }
            self.receiver.clear();
        }
        self.receiver.push_back(Received { byte: byte & self.character_mask(), errors });
        if self.receiver.len() == 1 {
            self.show_next();
        }
    }

    /// 5 to 8 bits a character (8.1, bits 0 and 1).
    fn character_mask(&self) -> u8 {
        0xff >> (3 - (self.lcr.bits() & 0x03))
    }

    /// LSR shows the errors of the character that is next to be read.
    fn show_next(&mut self) {
        if let Some(next) = self.receiver.front_mut() {
            self.shown |= next.errors;
            next.errors = LineStatus::empty();
        }
    }

    fn take_received(&mut self) -> u8 {
        let taken = self.receiver.pop_front().map_or(0, |received| received.byte);
        self.show_next();
        self.transmit();
        taken
    }

    fn hold(&mut self, byte: u8) {
        self.transmitter_event = false;
        if self.transmitter.len() == self.depth() {
            // THR is written over; a full FIFO takes no more.
            if self.fifos() {
                return;
            }
            self.transmitter.clear();
        }
        self.transmitter.push_back(byte & self.character_mask());
        self.transmit();
    }

    /// Sends what can be sent.
    fn transmit(&mut self) {
        while let Some(&byte) = self.transmitter.front() {
            match (self.mcr.contains(ModemControl::LOOP), self.plug) {
                (true, _) => self.arrive(byte, LineStatus::empty()),
                (false, Plug::Loopback) if !self.has_room() => return,
                (false, Plug::Loopback) => self.arrive(byte, LineStatus::empty()),
                (false, Plug::Outside) => self.sent.push(byte),
            }
            self.transmitter.pop_front();
            self.transmitter_event |= self.transmitter.is_empty();
        }
    }

    fn control_fifos(&mut self, value: FifoControl) {
        let toggled = (value ^ self.fcr).contains(FifoControl::ENABLE);
        if toggled || value.contains(FifoControl::RESET_RECEIVER) {
            self.receiver.clear();
        }
        if toggled || value.contains(FifoControl::RESET_TRANSMITTER) {
            self.transmitter.clear();
            self.transmitter_event = true;
        }
        // The other bits are programmed only together with ENABLE (8.5, bit 0).
        self.fcr = if value.contains(FifoControl::ENABLE) {
            value - FifoControl::RESET_RECEIVER - FifoControl::RESET_TRANSMITTER
        } else {
            FifoControl::empty()
        };
    }

    fn control_line(&mut self, value: LineControl) {
        let begins = value.contains(LineControl::BREAK) && !self.lcr.contains(LineControl::BREAK);
        self.lcr = value;
        // A line at 0 for longer than a character is received as one break (8.4, bit 4).
        if begins && (self.mcr.contains(ModemControl::LOOP) || self.plug == Plug::Loopback) {
            self.arrive(0, LineStatus::BREAK);
        }
    }

    fn control_modem(&mut self, value: ModemControl) {
        self.mcr = value & MCR_BITS;
        self.note_inputs();
        self.transmit();
    }

    /// CTS, DSR, RI and DCD as the device has them (8.8, bit 4).
    fn lines(&self) -> ModemStatus {
        let wired = |pairs: &[(ModemControl, ModemStatus)]| {
            pairs.iter().filter(|(output, _)| self.mcr.contains(*output)).map(|(_, input)| *input).collect()
        };
        use ModemControl as Out;
        if self.mcr.contains(Out::LOOP) {
            return wired(&[
                (Out::RTS, ModemStatus::CTS),
                (Out::DTR, ModemStatus::DSR),
                (Out::OUT1, ModemStatus::RI),
                (Out::OUT2, ModemStatus::DCD),
            ]);
        }
        match self.plug {
            Plug::Outside => self.inputs,
            Plug::Loopback => {
                wired(&[(Out::RTS, ModemStatus::CTS), (Out::DTR, ModemStatus::DSR), (Out::DTR, ModemStatus::DCD)])
            }
        }
    }

    /// 8.9: any change of three of them, the end of a ring.
    fn note_inputs(&mut self) {
        let now = self.lines();
        let changed = now ^ self.seen;
        let pairs = [
            (ModemStatus::CTS, ModemStatus::CTS_CHANGED),
            (ModemStatus::DSR, ModemStatus::DSR_CHANGED),
            (ModemStatus::DCD, ModemStatus::DCD_CHANGED),
        ];
        self.changes.extend(pairs.into_iter().filter(|(line, _)| changed.contains(*line)).map(|(_, change)| change));
        if (changed - now).contains(ModemStatus::RI) {
            self.changes |= ModemStatus::RING_ENDED;
        }
        self.seen = now;
    }

    fn line_status(&self) -> LineStatus {
        let mut status = self.shown;
        status.set(LineStatus::DATA_READY, !self.receiver.is_empty());
        let idle = LineStatus::TRANSMITTER_HOLDING_EMPTY | LineStatus::TRANSMITTER_EMPTY;
        status.set(idle, self.transmitter.is_empty());
        let wrong = self.receiver.iter().any(|received| !received.errors.is_empty());
        status.set(LineStatus::FIFO_ERROR, self.fifos() && (wrong || self.shown.intersects(CHARACTER_ERRORS)));
        status
    }

    /// The pending interrupt of the highest priority (table "Interrupt Control Functions").
    fn cause(&self) -> Option<Cause> {
        let waiting = self.receiver.len();
        let enabled = |interrupt| self.ier.contains(interrupt);
        if enabled(InterruptEnable::LINE) && self.shown.intersects(LINE_EVENTS) {
            Some(Cause::LineStatus)
        } else if enabled(InterruptEnable::RECEIVED) && waiting >= self.trigger() {
            Some(Cause::Received)
        } else if enabled(InterruptEnable::RECEIVED) && waiting > 0 {
            Some(Cause::CharacterTimeout)
        } else if enabled(InterruptEnable::TRANSMITTER) && self.transmitter_event {
            Some(Cause::TransmitterEmpty)
        } else if enabled(InterruptEnable::MODEM) && !self.changes.is_empty() {
            Some(Cause::ModemStatus)
        } else {
            None
        }
    }

    fn identify(&mut self) -> u8 {
        let cause = self.cause();
        if cause == Some(Cause::TransmitterEmpty) {
            self.transmitter_event = false;
        }
        cause.map_or(NO_INTERRUPT, Cause::bits) | if self.fifos() { FIFOS_ENABLED } else { 0 }
    }

    fn enable(&mut self, value: InterruptEnable) {
        let newly = (value - self.ier).contains(InterruptEnable::TRANSMITTER);
        self.ier = value & IER_BITS;
        // Enabling it while THR is empty is an interrupt at once: how a driver starts.
        self.transmitter_event |= newly && self.transmitter.is_empty();
    }
}
