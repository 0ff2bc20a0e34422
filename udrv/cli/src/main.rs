//! The udrv command.
fn main() {}
