//! Arrivals and removals, as an interrupt and a queue.

use crate::queue::Line;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use udrv_backend::AnyBackend;

/// What happened on a bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HotplugEvent {
    /// A device was plugged in. `address` opens it.
    Arrived {
        /// Such as `usb:1-2`.
        address: String,
    },
    /// A device was pulled out.
    Left {
        /// What it was reached by.
        address: String,
    },
}

/// What libusb has told, and whom it concerns.
#[derive(Default)]
pub(super) struct Events {
    told: Mutex<Vec<HotplugEvent>>,
    subscribers: Mutex<Vec<Weak<Queue>>>,
}

struct Queue {
    events: Mutex<VecDeque<HotplugEvent>>,
    line: Arc<Line>,
}

/// Arrivals and removals since it was made.
pub struct Hotplug {
    queue: Arc<Queue>,
    /// Keeps libusb in the loop.
    _bus: Arc<dyn Send + Sync>,
}

impl Hotplug {
    /// To be registered with an interrupt domain, with [`crate::LINE`] and vector 0. A handler may open devices and submit
    /// transfers.
    #[must_use]
    pub fn line(&self) -> AnyBackend {
        Arc::clone(&self.queue.line) as AnyBackend
    }

    /// The event that happened first of those not popped yet.
    #[must_use]
    pub fn pop(&self) -> Option<HotplugEvent> {
        lock(&self.queue.events).pop_front()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// libusb's callback, which may do nothing but remember.
struct Listener(Arc<Events>);

fn address(device: &rusb::Device<rusb::Context>) -> String {
    let ports = device.port_numbers().unwrap_or_default();
    super::UsbAddress::Port { bus: device.bus_number(), ports }.to_string()
}

impl rusb::Hotplug<rusb::Context> for Listener {
    fn device_arrived(&mut self, device: rusb::Device<rusb::Context>) {
        lock(&self.0.told).push(HotplugEvent::Arrived { address: address(&device) });
    }

    fn device_left(&mut self, device: rusb::Device<rusb::Context>) {
        lock(&self.0.told).push(HotplugEvent::Left { address: address(&device) });
    }
}

/// Has libusb tell `events` of every device; `None` where it cannot.
pub(super) fn register(context: &rusb::Context, events: &Arc<Events>) -> Option<rusb::Registration<rusb::Context>> {
    if !rusb::has_hotplug() {
        return None;
    }
    let listener = Box::new(Listener(Arc::clone(events)));
    let registered = rusb::HotplugBuilder::new().register::<rusb::Context, &rusb::Context>(context, listener);
    registered.inspect_err(|error| tracing::warn!(%error, "no hotplug events")).ok()
}

impl Events {
    pub(super) fn subscribe(&self, bus: Arc<dyn Send + Sync>) -> Hotplug {
        let line = Line::new("hotplug events".into());
        let queue = Arc::new(Queue { events: Mutex::default(), line });
        lock(&self.subscribers).push(Arc::downgrade(&queue));
        Hotplug { queue, _bus: bus }
    }

    /// Passes on what libusb has told since.
    pub(super) fn tell(&self) {
        let told = std::mem::take(&mut *lock(&self.told));
        if told.is_empty() {
            return;
        }
        let queues: Vec<Arc<Queue>> = {
            let mut subscribers = lock(&self.subscribers);
            subscribers.retain(|queue| queue.strong_count() > 0);
            subscribers.iter().filter_map(Weak::upgrade).collect()
        };
        for queue in queues {
            lock(&queue.events).extend(told.iter().cloned());
            queue.line.raise();
        }
    }
}
