//! Backends with one fault each.
