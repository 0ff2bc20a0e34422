//! The checks in signal delivery. A program of its own for each delivery, since a pair of places is reported once in a process.
#![cfg(debug_assertions)]

mod irq_checks_cases;
mod irq_device;

const DELIVERY: udrv::irq::Delivery = udrv::irq::Delivery::Signal;
