//! Declares two registers of the education device and uses them.
//!
//! `cargo run -p udrv-examples --bin read_register -- pci:0000:00:04.0`

use udrv::backend::register::{ReadOnly, ReadWrite, Register};
use udrv::mmio::{Io as _, Window};
use udrv::pci::{Command, Config};
use udrv_backend::RegionIndex;

// A register is its datasheet name, its offset, what it holds, and what may be done with it: `io.write(IDENTIFICATION,
// ...)` does not compile. (QEMU docs/specs/edu.rst, "MMIO area spec".)
const IDENTIFICATION: Register<u32, ReadOnly> = Register::new("identification", 0x00);
const LIVENESS: Register<u32, ReadWrite> = Register::new("card liveness check", 0x04);

fn main() -> anyhow::Result<()> {
    let device = udrv_examples::device_from_arguments()?;

    // A device whose memory decoding is off answers nothing.
    Config::new(&*device).change_command(Command::MEMORY_SPACE, Command::empty())?;

    // The first 4 KiB of BAR 0: mapped where the backend can map it, by message otherwise.
    let io: Window<0x1000> = Window::open(&device, RegionIndex::BAR0)?;

    println!("identification: {:#010x}", io.read(IDENTIFICATION)?);

    io.write(LIVENESS, 0x1234_5678)?;
    println!("liveness: wrote 0x12345678, read {:#010x}", io.read(LIVENESS)?);

    // A mapped device that was unplugged reads all ones; this tells it from one that really holds them.
    io.alive()?;
    Ok(())
}
