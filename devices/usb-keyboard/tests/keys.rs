//! The keyboard's driver on its model. Usages are typed again from the HID Usage Tables, section 10.
#![cfg(feature = "driver")]

use std::sync::{Arc, Mutex};
use std::time::Duration;
use udrv::clock::Deadline;
use udrv::irq::{Delivery, IrqDomain};
use udrv_usb::software::Software;
use udrv_usb::{Device, Error};
use udrv_usb_keyboard::driver::Keyboard as Driver;
use udrv_usb_keyboard::model::Keyboard;
use udrv_usb_keyboard::protocol::{Key, KeyEvent, Report};

const A: u8 = 0x04;
const B: u8 = 0x05;
const LEFT_SHIFT: u8 = 0xe1;

struct Bench {
    bus: Arc<Software<Keyboard>>,
    irqs: IrqDomain,
    driver: Driver,
    seen: Arc<Mutex<Vec<(u8, bool)>>>,
}

fn bench(delivery: Delivery) -> Bench {
    let bus = Arc::new(Software::new("model:usb-keyboard", Keyboard::default()).unwrap());
    let irqs = IrqDomain::new(delivery).unwrap();
    let seen: Arc<Mutex<Vec<(u8, bool)>>> = Arc::default();
    let tell = {
        let seen = Arc::clone(&seen);
        move |event: KeyEvent| seen.lock().unwrap().push((event.key.0, event.pressed))
    };
    let driver = Driver::attach(Device::new(bus.clone()).unwrap(), &irqs, tell).unwrap();
    Bench { bus, irqs, driver, seen }
}

impl Bench {
    fn press(&self, key: u8, pressed: bool) {
        self.bus.with_model(|keyboard| keyboard.set(Key(key), pressed));
    }

    fn wait(&self, done: impl Fn() -> bool) {
        self.irqs.wait("keys", Deadline::after(Duration::from_secs(20)), done).unwrap();
    }

    fn seen(&self) -> Vec<(u8, bool)> {
        self.seen.lock().unwrap().clone()
    }
}

fn keys_come_in_order(delivery: Delivery) {
    let bench = bench(delivery);

    for (key, pressed) in [(LEFT_SHIFT, true), (A, true), (B, true), (A, false), (B, false), (LEFT_SHIFT, false)] {
        bench.press(key, pressed);
    }

    bench.wait(|| bench.seen().len() == 6);
    let expected = [(LEFT_SHIFT, true), (A, true), (B, true), (A, false), (B, false), (LEFT_SHIFT, false)];
    assert_eq!(bench.seen(), expected);
    assert!(bench.bus.with_model(|keyboard| keyboard.is_in_boot_protocol()));
}

#[test]
fn keys_in_thread_delivery_come_in_order() {
    keys_come_in_order(Delivery::Thread);
}

#[test]
fn keys_in_signal_delivery_come_in_order() {
    keys_come_in_order(Delivery::Signal);
}

#[test]
fn keys_pressed_in_a_section_with_interrupts_off_come_after_it() {
    let bench = bench(Delivery::Thread);

    let during = bench.irqs.off(|_section| {
        for _ in 0..100 {
            bench.press(A, true);
            bench.press(A, false);
        }
        bench.seen()
    });

    assert_eq!(during, []);
    bench.wait(|| bench.seen().len() == 200);
}

#[test]
fn keyboard_pulled_out_ends_with_gone() {
    let bench = bench(Delivery::Thread);

    bench.bus.unplug();

    bench.wait(|| bench.driver.has_ended());
    assert!(matches!(bench.driver.take_error(), Some(Error::Gone { .. })));
}

#[test]
fn driver_that_is_dropped_has_nothing_in_flight() {
    let bench = bench(Delivery::Thread);
    assert_eq!(bench.bus.in_flight(), 4);

    drop(bench.driver);

    assert_eq!(bench.bus.in_flight(), 0);
}

#[test]
fn report_of_too_many_keys_or_too_few_bytes_changes_nothing() {
    assert_eq!(Report::from_bytes(&[0, 0, 1, 1, 1, 1, 1, 1]), None);
    assert_eq!(Report::from_bytes(&[0; 7]), None);
}

#[test]
fn keys_have_names() {
    let names = [A, 0x1d, 0x1e, 0x27, 0x28, 0x39, 0x3a, 0x45, 0x52, 0xe0, 0xe7, 0x99].map(|key| Key(key).to_string());
    let expected =
        ["a", "z", "1", "0", "enter", "caps lock", "F1", "F12", "up", "left control", "right meta", "usage 0x99"];
    assert_eq!(names, expected);
}
