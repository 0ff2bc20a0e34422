//! An application, or a library, that takes SIGIO away from the runtime: interrupts wait for the next look, none is lost.
#![expect(unsafe_code, reason = "signal handlers are installed by unsafe calls")]

mod irq_device;

use irq_device::Counted;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use udrv::irq::Delivery;

extern "C" fn applications_own(_signal: libc::c_int) {}

#[test]
fn handler_installed_later_delays_interrupts_and_loses_none() {
    let it = Counted::new(Delivery::Signal);
    let action = SigAction::new(SigHandler::Handler(applications_own), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGIO, &action) }.expect("installed");
    it.domain.off(|_| it.device.fire(0));
    assert_eq!(it.runs(), 0, "nobody could tell the section's end");
    it.wait_runs(1);
    std::thread::scope(|scope| {
        scope.spawn(|| it.device.fire(0));
        it.wait_runs(2);
    });
    assert_eq!(it.irq.stats().raised, 2);
}
