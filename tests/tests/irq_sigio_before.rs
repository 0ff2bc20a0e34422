//! An application that has a SIGIO handler of its own before the runtime installs one: both work.
#![expect(unsafe_code, reason = "signal handlers are installed by unsafe calls")]

mod irq_device;

use irq_device::Counted;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::sync::atomic::{AtomicU64, Ordering};
use udrv::irq::Delivery;

static SEEN: AtomicU64 = AtomicU64::new(0);

extern "C" fn applications_own(_signal: libc::c_int) {
    SEEN.fetch_add(1, Ordering::SeqCst);
}

#[test]
fn handler_installed_before_is_called_on() {
    let action = SigAction::new(SigHandler::Handler(applications_own), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler is one atomic addition.
    unsafe { sigaction(Signal::SIGIO, &action) }.expect("installed");
    let it = Counted::new(Delivery::Signal);
    it.domain.off(|_| it.device.fire(0));
    assert_eq!((it.runs(), SEEN.load(Ordering::SeqCst)), (1, 1));
}
