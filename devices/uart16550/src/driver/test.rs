//! The device's own test, in loopback mode (data sheet 8.8, bit 4): nothing of it is seen on the line.

use super::port::Port;
use crate::registers::{
    FIFO_SIZE, FIFOS_ENABLED, IIR, LSR, LineControl, LineStatus, MSR, ModemControl, ModemStatus, RBR, SCR, THR,
};
use std::time::Duration;
use udrv::clock::Deadline;
use udrv::mmio::Io;
use udrv_backend::{Error, Result};

/// For one character, which takes 0.2 s at 50 baud.
const PATIENCE: Duration = Duration::from_secs(2);

/// The outputs, and the inputs that they are in loopback mode.
const WIRES: [(ModemControl, ModemStatus); 4] = [
    (ModemControl::RTS, ModemStatus::CTS),
    (ModemControl::DTR, ModemStatus::DSR),
    (ModemControl::OUT1, ModemStatus::RI),
    (ModemControl::OUT2, ModemStatus::DCD),
];

impl<I: Io> Port<I> {
    /// That it is a 16550 with FIFOs, that characters come back, that one too many is told of, and that the modem's outputs
    /// come back as its inputs.
    pub(super) fn test(&mut self) -> Result<()> {
        for probe in [0x55, 0xaa] {
            self.io.write(SCR, probe)?;
            let kept = self.io.read(SCR)?;
            self.expect(kept == probe, || format!("{kept:#04x} in SCR"), &format!("{probe:#04x}, which was written"))?;
        }
        self.write_line_control(LineControl::WORD_LENGTH_0 | LineControl::WORD_LENGTH_1)?;
        self.write_modem(ModemControl::LOOP)?;
        self.reset_fifos()?;
        let iir = self.io.read_effect(IIR)?;
        let has_fifos = iir & FIFOS_ENABLED == FIFOS_ENABLED;
        self.expect(
            has_fifos,
            || format!("{iir:#04x} in IIR"),
            "a 16550A: both upper bits set with the FIFOs enabled",
        )?;
        self.test_characters()?;
        self.test_overrun()?;
        self.test_modem()?;
        self.write_modem(ModemControl::empty())
    }

    fn test_characters(&mut self) -> Result<()> {
        for byte in [0x00, 0x55, 0xaa, 0xff] {
            self.send_and_settle(byte)?;
            let came = self.io.read_effect(RBR)?;
            let expected = format!("{byte:#04x}, which was sent");
            self.expect(came == byte, || format!("{came:#04x} received in loopback mode"), &expected)?;
        }
        Ok(())
    }

    fn test_overrun(&mut self) -> Result<()> {
        let mut status = LineStatus::empty();
        for byte in 0..=FIFO_SIZE {
            status |= self.send_and_settle(byte as u8)?;
        }
        let told = status.contains(LineStatus::OVERRUN);
        self.expect(told, || format!("{status:?} in LSR after 17 characters that nobody took"), "OVERRUN among them")?;
        self.reset_fifos()
    }

    fn test_modem(&mut self) -> Result<()> {
        for (output, input) in WIRES {
            self.write_modem(ModemControl::LOOP | output)?;
            let lines = self.io.read_effect(MSR)?;
            let alone = WIRES.iter().all(|(_, line)| lines.contains(*line) == (*line == input));
            self.expect(alone, || format!("{lines:?} in MSR for {output:?}"), &format!("{input:?} on alone"))?;
        }
        Ok(())
    }

    /// One character, until it has gone and come; what LSR has shown meanwhile.
    fn send_and_settle(&mut self, byte: u8) -> Result<LineStatus> {
        let settled = LineStatus::DATA_READY | LineStatus::TRANSMITTER_EMPTY;
        let mut shown = LineStatus::empty();
        self.io.write(THR, byte)?;
        Deadline::after(PATIENCE).poll("LSR TRANSMITTER_EMPTY and DATA_READY in loopback mode", || {
            let status = self.io.read_effect(LSR)?;
            shown |= status;
            Ok(status.contains(settled))
        })?;
        Ok(shown)
    }

    fn expect(&self, holds: bool, found: impl FnOnce() -> String, expected: &str) -> Result<()> {
        if holds {
            return Ok(());
        }
        Err(Error::Protocol { peer: self.address.clone(), found: found(), expected: expected.into() })
    }
}
