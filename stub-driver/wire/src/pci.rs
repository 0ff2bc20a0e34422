//! Indices of a PCI device's regions and interrupt types, as in Linux `include/uapi/linux/vfio.h`.

/// BAR 0; BARs 1 to 5 follow.
pub const BAR0_REGION: u32 = 0;
/// BAR 1.
pub const BAR1_REGION: u32 = 1;
/// BAR 2.
pub const BAR2_REGION: u32 = 2;
/// BAR 3.
pub const BAR3_REGION: u32 = 3;
/// BAR 4.
pub const BAR4_REGION: u32 = 4;
/// BAR 5.
pub const BAR5_REGION: u32 = 5;
/// The expansion ROM.
pub const ROM_REGION: u32 = 6;
/// Configuration space.
pub const CONFIG_REGION: u32 = 7;
/// The legacy VGA ranges.
pub const VGA_REGION: u32 = 8;
/// Number of the regions above; device-specific regions start here.
pub const NUM_REGIONS: u32 = 9;

/// The legacy interrupt line: level, one sub-index.
pub const INTX_IRQ: u32 = 0;
/// MSI, one sub-index a message.
pub const MSI_IRQ: u32 = 1;
/// MSI-X, one sub-index a table entry.
pub const MSIX_IRQ: u32 = 2;
/// Reports an unrecoverable error of the device.
pub const ERR_IRQ: u32 = 3;
/// Asks the client to give the device back.
pub const REQ_IRQ: u32 = 4;
/// Number of the interrupt types above.
pub const NUM_IRQS: u32 = 5;
