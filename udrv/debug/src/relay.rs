//! Interrupts on their way through a wrapper: the device signals an eventfd of ours, and a thread passes it on.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use udrv_backend::{Backend, Error, IrqIndex, Result, Trigger, clock};
use udrv_signal::Sink;

/// What becomes of one signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Passed on this many times.
    Pass(u32),
    /// Passed on later.
    Later(Duration),
}

/// Asked for each signal that arrives, with how many interrupts it stands for. It may not call the relay.
pub(crate) type Judge = Box<dyn Fn(IrqIndex, u32, u64) -> Fate + Send + Sync>;

type Vector = (u32, u32);

struct Armed {
    source: Arc<EventFd>,
    sink: Sink,
}

struct State {
    armed: BTreeMap<Vector, Armed>,
    due: Vec<(Instant, Vector)>,
}

struct Shared {
    state: Mutex<State>,
    wake: EventFd,
    stop: AtomicBool,
    judge: Judge,
}

/// The relay of one device.
pub(crate) struct Relay {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

fn eventfd() -> Result<EventFd> {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(|errno| Error::os("creating an eventfd", errno))
}

impl Relay {
    pub(crate) fn new(judge: Judge) -> Result<Self> {
        let state = Mutex::new(State { armed: BTreeMap::new(), due: Vec::new() });
        let shared = Arc::new(Shared { state, wake: eventfd()?, stop: AtomicBool::new(false), judge });
        let run = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("udrv-debug irqs".into())
            .spawn(move || run.run())
            .map_err(|error| Error::os("starting the thread that passes interrupts on", error))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// [`Backend::set_triggers`] of `device`, with our descriptors in place of the driver's.
    pub(crate) fn set_triggers(
        &self,
        device: &dyn Backend,
        index: IrqIndex,
        start: u32,
        triggers: &[Option<Trigger<'_>>],
    ) -> Result<()> {
        let mut armed = Vec::with_capacity(triggers.len());
        for trigger in triggers {
            armed.push(match trigger {
                Some(trigger) => Some(Armed { source: Arc::new(eventfd()?), sink: Sink::new(*trigger)? }),
                None => None,
            });
        }
        let ours: Vec<_> = armed.iter().map(|armed| armed.as_ref().map(|armed| armed.source.as_fd())).collect();
        let mut state = self.shared.lock();
        device.set_triggers(index, start, &ours)?;
        for (vector, armed) in (start..).zip(armed) {
            // What the device signalled before goes where it would have gone.
            self.shared.drain(&mut state, (index.0, vector));
            match armed {
                Some(armed) => state.armed.insert((index.0, vector), armed),
                None => state.armed.remove(&(index.0, vector)),
            };
        }
        drop(state);
        self.shared.wake();
        Ok(())
    }

    /// [`Backend::disable_irq`] of `device`. Nothing is passed on after it returns.
    pub(crate) fn disable(&self, device: &dyn Backend, index: IrqIndex) -> Result<()> {
        let mut state = self.shared.lock();
        device.disable_irq(index)?;
        let vectors: Vec<_> = state.armed.keys().copied().filter(|(of, _)| *of == index.0).collect();
        for vector in vectors {
            self.shared.drain(&mut state, vector);
            state.armed.remove(&vector);
        }
        drop(state);
        self.shared.wake();
        Ok(())
    }

    /// Passes on what has arrived, before this returns.
    pub(crate) fn flush(&self) {
        let mut state = self.shared.lock();
        let vectors: Vec<_> = state.armed.keys().copied().collect();
        for vector in vectors {
            self.shared.drain(&mut state, vector);
        }
    }

    /// Signals one vector that the device did not signal; every armed one if `None`.
    pub(crate) fn signal(&self, which: Option<(IrqIndex, u32)>) {
        let state = self.shared.lock();
        for (vector, armed) in &state.armed {
            if which.is_none_or(|(index, number)| (index.0, number) == *vector) {
                armed.sink.signal(1);
            }
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Its count cannot be full: the thread takes all of it.
        let _full = self.wake.write(1);
    }

    fn drain(&self, state: &mut State, vector: Vector) {
        let Some(armed) = state.armed.get(&vector) else { return };
        let Ok(count) = armed.source.read() else { return };
        match (self.judge)(IrqIndex(vector.0), vector.1, count) {
            Fate::Pass(times) => {
                for _ in 0..times {
                    armed.sink.signal(count);
                }
            }
            Fate::Later(by) => state.due.push((clock::now() + by, vector)),
        }
    }

    /// Until told to stop, or until the kernel refuses to poll.
    fn run(&self) {
        while !self.stop.load(Ordering::Acquire) {
            let (vectors, timeout) = {
                let state = self.lock();
                let vectors: Vec<_> = state.armed.iter().map(|(v, armed)| (*v, Arc::clone(&armed.source))).collect();
                (vectors, timeout(state.due.iter().map(|(at, _)| *at).min()))
            };
            let mut files = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
            files.extend(vectors.iter().map(|(_, source)| PollFd::new(source.as_fd(), PollFlags::POLLIN)));
            match poll(&mut files, timeout) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return,
            }
            let _none = self.wake.read();
            let mut state = self.lock();
            for (file, (vector, source)) in files.iter().skip(1).zip(&vectors) {
                // It may have been replaced meanwhile, and was drained then.
                let current = state.armed.get(vector).is_some_and(|armed| Arc::ptr_eq(&armed.source, source));
                if current && file.any() == Some(true) {
                    self.drain(&mut state, *vector);
                }
            }
            let now = clock::now();
            let State { armed, due } = &mut *state;
            due.retain(|(at, vector)| {
                if *at > now {
                    return true;
                }
                if let Some(armed) = armed.get(vector) {
                    armed.sink.signal(1);
                }
                false
            });
        }
    }
}

/// Rounded up, so that a signal that is due is not polled for.
fn timeout(next: Option<Instant>) -> PollTimeout {
    let Some(next) = next else { return PollTimeout::NONE };
    let left = next.saturating_duration_since(clock::now()) + Duration::from_millis(1);
    PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn trigger_whose_device_claims_any_count_does_not_make_the_relay_wait() {
        let trigger = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).expect("an eventfd that waits when full");
        let sink = Sink::new(trigger.as_fd()).expect("a sink");
        let (done, signalled) = mpsc::channel();
        std::thread::spawn(move || {
            assert!((0..3).all(|_| sink.signal(u64::MAX - 1)));
            done.send(()).expect("somebody waits");
        });
        assert_eq!(signalled.recv_timeout(Duration::from_secs(5)), Ok(()));
        assert_eq!(trigger.read(), Ok(3 * udrv_signal::MOST));
    }
}
