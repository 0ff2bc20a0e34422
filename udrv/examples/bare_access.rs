//! What a register access on a mapped region compiles to: `tests/bare_access.rs` reads the assembly of these functions.
//!
//! `cargo rustc --release -p udrv --example bare_access -- --emit asm` shows it.

use udrv::backend::register::{ReadOnly, ReadWrite, Register};
use udrv::mmio::{Io as _, Mapped};

/// A status register.
const STATUS: Register<u32, ReadOnly> = Register::new("status", 0x24);
/// A wide one, the last that fits.
const LAST: Register<u64, ReadWrite> = Register::new("last", 0xff8);

/// One 32-bit load.
#[inline(never)]
pub fn read_status(io: &Mapped<0x1000>) -> u32 {
    io.read(STATUS).unwrap_or(0)
}

/// One 64-bit store.
#[inline(never)]
pub fn write_last(io: &Mapped<0x1000>, value: u64) {
    let _fits = io.write(LAST, value);
}

/// An offset that is known at run time only: checked.
#[inline(never)]
pub fn read_checked(io: &Mapped<0x1000>, offset: u64) -> u32 {
    io.load(offset).unwrap_or(0)
}

fn main() {
    // Referred to, so that they are compiled; never called, since there is no device.
    let functions = [read_status as *const (), write_last as *const (), read_checked as *const ()];
    println!("{functions:?}");
}
