//! The Backend trait: whatever is a device implements it, whatever uses a device takes it.
