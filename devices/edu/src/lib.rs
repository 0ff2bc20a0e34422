//! QEMU's education device: registers, driver, model.
