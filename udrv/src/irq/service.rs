//! The threads of a domain: the one that waits for interrupts in thread delivery, and the one that wakes tasks in the
//! other deliveries, if any task ever waits.

use super::Delivery;
use super::deliver::{Delivering, Shared};
use super::sigio;
use super::sync::{Condvar, lock};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use udrv_backend::{Error, Result};

thread_local! {
    /// The address of the domain whose thread this is; 0 elsewhere. The thread keeps the domain alive.
    static SERVES: Cell<usize> = const { Cell::new(0) };
}

/// Whether this is the thread that waits for interrupts in thread delivery.
pub(super) fn is_thread_of(shared: &Shared) -> bool {
    SERVES.get() == std::ptr::from_ref(shared).addr()
}

/// Ends the threads when the last handle of the domain goes.
pub(super) struct Service {
    shared: Arc<Shared>,
    control: Arc<Control>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Default)]
struct Control {
    stop: AtomicBool,
    /// A task waits; the thread that wakes tasks exists.
    tasks: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Service {
    pub(super) fn new(shared: &Arc<Shared>) -> Result<Self> {
        if shared.delivery == Delivery::Signal {
            sigio::listen(&shared.gate.pending)?;
        }
        let it = Self { shared: Arc::clone(shared), control: Arc::default(), threads: Mutex::default() };
        if shared.delivery == Delivery::Thread {
            let (shared, control) = (Arc::clone(shared), Arc::clone(&it.control));
            it.start("udrv-irq", move || {
                SERVES.set(Arc::as_ptr(&shared).addr());
                shared.serve(|| control.stop.load(Ordering::Acquire));
            })?;
        }
        Ok(it)
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn start(&self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new().name(name.into()).spawn(work);
        lock(&self.threads).push(thread.map_err(|error| Error::os("starting an interrupt thread", error))?);
        Ok(())
    }

    /// Lets the tasks be woken when something comes in. In thread delivery the domain's thread does that anyway.
    pub(super) fn watch(&self) -> Result<()> {
        if self.shared.delivery == Delivery::Thread {
            return Ok(());
        }
        let mut tasks = lock(&self.control.tasks);
        tasks.0 = true;
        if !tasks.1 {
            let (shared, control) = (Arc::clone(&self.shared), Arc::clone(&self.control));
            self.start("udrv-irq-tasks", move || control.serve_tasks(&shared))?;
            tasks.1 = true;
        }
        drop(tasks);
        self.control.changed.notify_all();
        Ok(())
    }
}

impl Control {
    fn serve_tasks(&self, shared: &Shared) {
        loop {
            let mut tasks = lock(&self.tasks);
            while !tasks.0 {
                if self.stop.load(Ordering::Acquire) {
                    return;
                }
                tasks = self.changed.wait(tasks, None);
            }
            tasks.0 = false;
            drop(tasks);
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            if let Err(error) = shared.idle(shared.gate.progress(), false, 0, None) {
                tracing::error!(%error, "tasks are woken without an interrupt");
            }
            // Each looks for itself, which is a delivery point.
            shared.tasks.wake();
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.control.stop.store(true, Ordering::Release);
        // Under the lock, so that the flag is not missed between a check and a wait.
        drop(lock(&self.control.tasks));
        self.control.changed.notify_all();
        self.shared.inlet.nudge();
        self.shared.advance();
        for thread in lock(&self.threads).drain(..) {
            // The last handle of a domain may be dropped by a handler: on this very thread, or while this one waits for its end.
            if thread.thread().id() != std::thread::current().id() && !Delivering::is_this_thread() {
                let _ended = thread.join();
            }
        }
    }
}
