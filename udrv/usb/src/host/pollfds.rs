//! libusb's descriptors in the loop, behind a safe face.
#![expect(unsafe_code, reason = "libusb's notifiers have no safe binding")]

use crate::reactor::{Reactor, Source};
use crate::{Error, Result};
use libusb1_sys as ffi;
use rusb::UsbContext as _;
use std::ffi::{c_int, c_short, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// libusb's descriptors, kept in the loop as they come and go.
pub(super) struct Notifiers {
    context: rusb::Context,
    watch: Box<Watch>,
}

struct Watch {
    reactor: Reactor,
    source: Weak<dyn Source>,
    /// What is watched now, as poll(2) takes it.
    fds: Mutex<Vec<libc::pollfd>>,
}

impl Watch {
    fn add(&self, fd: c_int, events: c_short) {
        lock(&self.fds).push(libc::pollfd { fd, events, revents: 0 });
        if let Err(error) = self.reactor.watch(fd, events, Weak::clone(&self.source)) {
            tracing::error!(%error, "a descriptor of libusb's is not in the loop");
        }
    }

    fn remove(&self, fd: c_int) {
        lock(&self.fds).retain(|one| one.fd != fd);
        self.reactor.unwatch(fd);
    }
}

impl Notifiers {
    pub(super) fn new(context: &rusb::Context, reactor: Reactor, source: Weak<dyn Source>) -> Result<Self> {
        let watch = Box::new(Watch { reactor, source, fds: Mutex::default() });
        let data: *const Watch = &raw const *watch;
        let context = context.clone();
        // SAFETY: the context lives as long as our clone; `data` is a box that `drop` frees only after it has taken the
        // callbacks back.
        unsafe {
            ffi::libusb_set_pollfd_notifiers(context.as_raw(), Some(added), Some(removed), data.cast_mut().cast())
        };
        let fds = pollfds(&context);
        if fds.is_empty() {
            return Err(Error::NotSupported { what: "polling", by: "libusb here".into() });
        }
        for (fd, events) in fds {
            watch.add(fd, events);
        }
        Ok(Self { context, watch })
    }
}

impl Notifiers {
    /// Whether any of them is ready now.
    pub(super) fn any_ready(&self) -> bool {
        let mut fds = lock(&self.watch.fds);
        let count = libc::nfds_t::try_from(fds.len()).unwrap_or(0);
        // SAFETY: an array of as many elements, which lives through the call; it does not wait.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), count, 0) };
        ready > 0
    }
}

impl Drop for Notifiers {
    fn drop(&mut self) {
        // SAFETY: the context lives as long as our clone. Afterwards libusb does not know `watch` any more; that no callback
        // runs meanwhile is since they are called by opening, closing and handling events only, and the bus that does these
        // is being dropped.
        unsafe { ffi::libusb_set_pollfd_notifiers(self.context.as_raw(), None, None, std::ptr::null_mut()) };
        for (fd, _) in pollfds(&self.context) {
            self.watch.remove(fd);
        }
    }
}

/// The descriptors libusb waits on now, with what for.
fn pollfds(context: &rusb::Context) -> Vec<(c_int, c_short)> {
    // SAFETY: the context lives as long as the reference; gives a list that ends with null, or null.
    let list = unsafe { ffi::libusb_get_pollfds(context.as_raw()) };
    let mut fds = Vec::new();
    if list.is_null() {
        return fds;
    }
    let mut at = list;
    loop {
        // SAFETY: within the list, whose last element is null.
        let one = unsafe { *at };
        if one.is_null() {
            break;
        }
        // SAFETY: elements other than null point to a libusb_pollfd, until the list is freed.
        let pollfd = unsafe { &*one };
        fds.push((pollfd.fd, pollfd.events));
        // SAFETY: this was not the last element.
        at = unsafe { at.add(1) };
    }
    // SAFETY: from libusb_get_pollfds, and freed once.
    unsafe { ffi::libusb_free_pollfds(list) };
    fds
}

extern "system" fn added(fd: c_int, events: c_short, data: *mut c_void) {
    // SAFETY: `data` is the box that Notifiers keeps for as long as libusb knows this callback.
    let watch = unsafe { &*data.cast::<Watch>() };
    watch.add(fd, events);
}

extern "system" fn removed(fd: c_int, data: *mut c_void) {
    // SAFETY: as in `added`.
    let watch = unsafe { &*data.cast::<Watch>() };
    watch.remove(fd);
}
