//! Takes devices from the kernel and serves them to drivers: PCI devices over vfio-user, USB devices by passing on their nodes.

pub mod bind;
pub mod doctor;
#[cfg(test)]
mod fake_sysfs;
pub mod list;
mod lock;
mod paint;
pub mod serve;
pub mod status;
pub mod usb;
