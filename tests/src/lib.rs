//! What crosses crates: stub and runtime together, hostile peers, the virtual machine.
