//! Backend over the kernel's VFIO.
