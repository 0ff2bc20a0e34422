//! Takes PCI devices from the kernel and serves them to drivers over vfio-user.

pub mod bind;
pub mod doctor;
pub mod list;
pub mod serve;
pub mod status;
pub mod usb;
