//! The registers, and the queues before them; all of it is used with interrupts off.

use super::{Counts, Settings};
use crate::registers::{
    Cause, DLL, DLM, FCR, FIFO_SIZE, FifoControl, IER, IIR, InterruptEnable, LCR, LSR, LineControl, LineStatus, MCR,
    MSR, ModemControl, ModemStatus, RBR, THR,
};
use std::collections::VecDeque;
use udrv::mmio::Io;
use udrv_backend::{Error, Result};

/// Characters that each queue holds.
const QUEUE: usize = 4096;
/// With as much received, the other end is asked to wait; with less than a quarter, to go on.
const HIGH: usize = QUEUE / 4 * 3;
/// Causes that one run of the handler looks at. A device that lies would keep it for ever; a true one interrupts again.
const CAUSES: usize = 4;
/// Characters taken for one cause; what is more interrupts again.
const CHARACTERS: usize = FIFO_SIZE;

/// Received data at 8 characters: half a FIFO is left for what arrives until the handler runs.
const FIFOS: FifoControl = FifoControl::ENABLE.union(FifoControl::TRIGGER_8);
/// OUT2 lets the interrupt through on PC boards (8.8 leaves it to the board); others have no use for it.
const PRESENT: ModemControl = ModemControl::DTR.union(ModemControl::RTS).union(ModemControl::OUT2);

const MODEM_LINES: ModemStatus =
    ModemStatus::CTS.union(ModemStatus::DSR).union(ModemStatus::RI).union(ModemStatus::DCD);

pub(super) struct Port<I> {
    pub(super) io: I,
    pub(super) address: String,
    wake: Box<dyn Fn() + Send>,
    received: VecDeque<u8>,
    to_send: VecDeque<u8>,
    wait_for_cts: bool,
    ier: InterruptEnable,
    lcr: LineControl,
    mcr: ModemControl,
    pub(super) modem: ModemStatus,
    pub(super) counts: Counts,
    /// LSR has told that the character to be taken next stands for a break.
    next_is_break: bool,
    /// What the handler met.
    failure: Option<Error>,
}

impl<I: Io> Port<I> {
    /// `wake` is called by the handler.
    pub(super) fn new(io: I, address: &str, wake: impl Fn() + Send + 'static) -> Self {
        Self {
            io,
            address: address.into(),
            wake: Box::new(wake),
            received: VecDeque::with_capacity(QUEUE),
            to_send: VecDeque::with_capacity(QUEUE),
            wait_for_cts: false,
            ier: InterruptEnable::empty(),
            lcr: LineControl::empty(),
            mcr: ModemControl::empty(),
            modem: ModemStatus::empty(),
            counts: Counts::default(),
            next_is_break: false,
            failure: None,
        }
    }

    /// No interrupts, nobody at this end, and the divisor latch out of the way.
    pub(super) fn quiet(&mut self) -> Result<()> {
        self.write_line_control(LineControl::empty())?;
        self.write_enable(InterruptEnable::empty())?;
        self.write_modem(ModemControl::empty())
    }

    /// Speed and format (8.1, 8.3).
    pub(super) fn set_line(&mut self, settings: Settings) -> Result<()> {
        let (divisor, format) = settings.encode(&self.address)?;
        let [low, high] = divisor.to_le_bytes();
        self.write_line_control(format | LineControl::DLAB)?;
        self.io.write(DLL, low)?;
        self.io.write(DLM, high)?;
        self.write_line_control(format)?;
        self.wait_for_cts = settings.wait_for_cts;
        Ok(())
    }

    /// Empty FIFOs, this end present, nothing of before left to be told.
    pub(super) fn begin(&mut self) -> Result<()> {
        self.reset_fifos()?;
        self.write_modem(PRESENT)?;
        self.line_status()?;
        self.modem_status()?;
        self.io.read_effect(IIR)?;
        self.counts = Counts::default();
        Ok(())
    }

    /// From here on it interrupts.
    pub(super) fn enable(&mut self) -> Result<()> {
        self.write_enable(InterruptEnable::RECEIVED | InterruptEnable::LINE | InterruptEnable::MODEM)
    }

    /// The handler: whether the interrupt was the device's.
    pub(super) fn serve(&mut self) -> bool {
        match self.serve_causes() {
            Ok(0) => false,
            Ok(_) => {
                (self.wake)();
                true
            }
            Err(error) => {
                self.failure = Some(error);
                (self.wake)();
                false
            }
        }
    }

    fn serve_causes(&mut self) -> Result<usize> {
        for served in 0..CAUSES {
            match Cause::from_iir(self.io.read_effect(IIR)?) {
                None => return Ok(served),
                Some(Cause::LineStatus | Cause::Received | Cause::CharacterTimeout) => {
                    let status = self.receive()?;
                    // IIR would not come to it as long as characters arrive faster than they are taken.
                    let is_sending = self.ier.contains(InterruptEnable::TRANSMITTER);
                    if is_sending && status.contains(LineStatus::TRANSMITTER_HOLDING_EMPTY) {
                        self.transmit()?;
                    }
                }
                Some(Cause::TransmitterEmpty) => self.transmit()?,
                Some(Cause::ModemStatus) => {
                    self.modem_status()?;
                    self.start_transmitter()?;
                }
            }
        }
        Ok(CAUSES)
    }

    /// What LSR showed last.
    fn receive(&mut self) -> Result<LineStatus> {
        let mut status = LineStatus::empty();
        for _ in 0..CHARACTERS {
            status = self.line_status()?;
            if !status.contains(LineStatus::DATA_READY) {
                break;
            }
            if self.received.len() >= QUEUE {
                self.write_enable(self.ier - InterruptEnable::RECEIVED)?;
                break;
            }
            let character = self.io.read_effect(RBR)?;
            if !std::mem::take(&mut self.next_is_break) {
                self.received.push_back(character);
                self.counts.received += 1;
            }
        }
        if self.received.len() >= HIGH {
            self.change_modem(ModemControl::RTS, false)?;
        }
        Ok(status)
    }

    /// THR and its FIFO are empty (8.6): as much as it holds.
    fn transmit(&mut self) -> Result<()> {
        if self.to_send.is_empty() || self.is_held() {
            return self.write_enable(self.ier - InterruptEnable::TRANSMITTER);
        }
        for _ in 0..FIFO_SIZE {
            let Some(character) = self.to_send.pop_front() else { break };
            self.io.write(THR, character)?;
            self.counts.sent += 1;
        }
        Ok(())
    }

    /// Enabling its interrupt while THR is empty is one: the handler begins.
    fn start_transmitter(&mut self) -> Result<()> {
        let running = self.ier.contains(InterruptEnable::TRANSMITTER);
        if running || self.to_send.is_empty() || self.is_held() {
            return Ok(());
        }
        self.write_enable(self.ier | InterruptEnable::TRANSMITTER)
    }

    fn is_held(&self) -> bool {
        self.wait_for_cts && !self.modem.contains(ModemStatus::CTS)
    }

    pub(super) fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        let taken = into.len().min(self.received.len());
        for (to, from) in into.iter_mut().zip(self.received.drain(..taken)) {
            *to = from;
        }
        if self.received.len() < QUEUE - HIGH {
            self.change_modem(ModemControl::RTS, true)?;
            if !self.ier.contains(InterruptEnable::RECEIVED) {
                self.write_enable(self.ier | InterruptEnable::RECEIVED)?;
            }
        }
        // What had come before something failed is handed out first.
        if taken == 0 { self.check().map(|()| 0) } else { Ok(taken) }
    }

    pub(super) fn write(&mut self, from: &[u8]) -> Result<usize> {
        self.check()?;
        let room = self.room().min(from.len());
        self.to_send.extend(from.iter().take(room));
        self.start_transmitter()?;
        Ok(room)
    }

    pub(super) fn room(&self) -> usize {
        QUEUE.saturating_sub(self.to_send.len())
    }

    pub(super) fn has_received(&self) -> bool {
        !self.received.is_empty()
    }

    pub(super) fn has_handed_over(&self) -> bool {
        self.to_send.is_empty()
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// What the handler met, to whom it concerns.
    pub(super) fn check(&mut self) -> Result<()> {
        self.failure.take().map_or(Ok(()), Err)
    }

    /// LSR, whose errors are counted here because reading clears them.
    pub(super) fn line_status(&mut self) -> Result<LineStatus> {
        let status = self.io.read_effect(LSR)?;
        if status.is_all() {
            let why = "LSR reads as all ones".into();
            return Err(Error::Gone { device: self.address.clone(), why });
        }
        let has = |bit| u64::from(status.contains(bit));
        self.counts.overruns += has(LineStatus::OVERRUN);
        self.counts.parity_errors += has(LineStatus::PARITY_ERROR);
        self.counts.breaks += has(LineStatus::BREAK);
        self.next_is_break |= status.contains(LineStatus::BREAK);
        // A break has no stop bit either; that is not counted twice.
        self.counts.framing_errors += has(LineStatus::FRAMING_ERROR) & !has(LineStatus::BREAK);
        Ok(status)
    }

    fn modem_status(&mut self) -> Result<()> {
        let status = self.io.read_effect(MSR)?;
        self.modem = status & MODEM_LINES;
        self.counts.modem_changes += u64::from((status - MODEM_LINES).bits().count_ones());
        Ok(())
    }

    pub(super) fn change_line_control(&mut self, bits: LineControl, on: bool) -> Result<()> {
        let mut value = self.lcr;
        value.set(bits, on);
        self.write_line_control(value)
    }

    pub(super) fn change_modem(&mut self, bits: ModemControl, on: bool) -> Result<()> {
        let mut value = self.mcr;
        value.set(bits, on);
        if value == self.mcr { Ok(()) } else { self.write_modem(value) }
    }

    pub(super) fn write_line_control(&mut self, value: LineControl) -> Result<()> {
        self.lcr = value;
        self.io.write(LCR, value)
    }

    fn write_enable(&mut self, value: InterruptEnable) -> Result<()> {
        self.ier = value;
        self.io.write(IER, value)
    }

    pub(super) fn write_modem(&mut self, value: ModemControl) -> Result<()> {
        self.mcr = value;
        self.io.write(MCR, value)
    }

    pub(super) fn reset_fifos(&self) -> Result<()> {
        self.io.write(FCR, FIFOS | FifoControl::RESET_RECEIVER | FifoControl::RESET_TRANSMITTER)
    }
}
