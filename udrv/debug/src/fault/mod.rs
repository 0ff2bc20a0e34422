//! Faults on purpose: what a driver does when its device is broken.
//!
//! A [`FaultPlan`] says what is wrong, from code, from TOML ([`FaultPlan::from_toml`]), from a number
//! ([`FaultPlan::from_seed`]), or one after the other ([`FaultPlan::catalogue`]); [`Faulty`] is a device with that wrong.
//! Accesses and interrupts are counted from 0, all of one device's together.

mod backend;
mod plan;

pub use backend::{Faults, Faulty};
pub use plan::{Fault, FaultPlan, Span};
