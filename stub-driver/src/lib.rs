//! Takes PCI devices from the kernel and serves them to drivers over vfio-user.
