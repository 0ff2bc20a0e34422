//! Descriptors, true and false. Numbers are typed from USB 2.0, 9.6, not imported.

use proptest::prelude::*;
use udrv_usb::descriptor::{Configuration, DeviceDescriptor, TransferType, parse_bos, parse_string, string};
use udrv_usb::software::{Identity, Model, Software};
use udrv_usb::{Error, Speed};

/// A keyboard's (one interface with a HID descriptor, one interrupt endpoint).
const KEYBOARD: [u8; 34] = [
    9, 2, 34, 0, 1, 1, 4, 0xa0, 50, 9, 4, 0, 0, 1, 3, 1, 1, 5, 9, 0x21, 0x11, 1, 0, 1, 0x22, 63, 0, 7, 5, 0x81, 3, 8,
    0, 10,
];

#[test]
fn configuration_of_a_keyboard_is_decoded() {
    let configuration = Configuration::parse(&KEYBOARD).unwrap();

    assert_eq!((configuration.value, configuration.string, configuration.max_power), (1, 4, 50));
    let interface = configuration.interface(0, 0).unwrap();
    assert_eq!((interface.class, interface.string), ((3, 1, 1), 5));
    assert_eq!(interface.extra, [KEYBOARD[18..27].to_vec()]);
    let endpoint = interface.endpoint(TransferType::Interrupt, true).unwrap();
    assert_eq!((endpoint.address.0, endpoint.max_packet, endpoint.packets, endpoint.interval), (0x81, 8, 1, 10));
}

#[test]
fn bytes_after_the_total_length_are_ignored() {
    let bytes = [KEYBOARD.as_slice(), &[0, 0, 0]].concat();

    assert_eq!(Configuration::parse(&bytes).unwrap(), Configuration::parse(&KEYBOARD).unwrap());
}

#[test]
fn high_bandwidth_and_burst_are_packets_an_interval() {
    let high = [9, 2, 25, 0, 1, 1, 0, 0, 0, 9, 4, 0, 0, 1, 1, 2, 0, 0, 7, 5, 0x01, 5, 0x00, 0x14, 1];
    let burst = [9, 2, 31, 0, 1, 1, 0, 0, 0, 9, 4, 0, 0, 1, 8, 6, 80, 0, 7, 5, 0x81, 2, 0, 4, 0, 6, 48, 15, 0, 0, 0];

    let high = Configuration::parse(&high).unwrap().interfaces[0].endpoints[0].clone();
    let burst = Configuration::parse(&burst).unwrap().interfaces[0].endpoints[0].clone();

    assert_eq!((high.max_packet, high.packets), (1024, 3));
    assert_eq!((burst.max_packet, burst.packets), (1024, 16));
}

/// Each with one byte changed that makes it a lie.
#[test]
fn configuration_with_a_false_length_is_refused() {
    for (what, at, value) in [
        ("its own length 0", 0, 0),
        ("its own length beyond the total", 0, 35),
        ("another type", 1, 4),
        ("a total length beyond the end", 2, 35),
        ("a total length within itself", 2, 8),
        ("an interface of no length: a loop", 9, 0),
        ("an interface of one byte", 9, 1),
        ("an interface that is too short", 9, 8),
        ("an endpoint beyond the end", 27, 8),
        ("an endpoint that is too short", 27, 6),
        ("endpoint 0", 29, 0x80),
        ("an endpoint before any interface", 10, 5),
    ] {
        let mut bytes = KEYBOARD;
        bytes[at] = value;
        assert!(matches!(Configuration::parse(&bytes), Err(Error::Protocol { .. })), "{what}");
    }
}

#[test]
fn device_descriptor_that_is_short_or_another_is_refused() {
    let good = [18, 1, 0x10, 0x02, 0xef, 2, 1, 64, 0x34, 0x12, 0x78, 0x56, 0x00, 0x03, 1, 2, 3, 1];
    let device = DeviceDescriptor::parse(&good).unwrap();
    assert_eq!((device.usb, device.vendor, device.product, device.class), (0x0210, 0x1234, 0x5678, (0xef, 2, 1)));

    assert!(DeviceDescriptor::parse(&good[..17]).is_err());
    for (at, value) in [(0, 17), (1, 2)] {
        let mut bytes = good;
        bytes[at] = value;
        assert!(DeviceDescriptor::parse(&bytes).is_err());
    }
}

#[test]
fn bos_of_a_usb_2_1_device_is_decoded_and_a_false_one_refused() {
    let good = [5, 15, 22, 0, 2, 7, 16, 2, 6, 0, 0, 0, 10, 16, 3, 0, 14, 0, 1, 10, 0xff, 7];
    let kinds: Vec<u8> = parse_bos(&good).unwrap().iter().map(|capability| capability.kind).collect();
    assert_eq!(kinds, [2, 3]);

    for (at, value) in [(1, 2), (2, 23), (5, 0), (5, 40), (0, 23)] {
        let mut bytes = good;
        bytes[at] = value;
        assert!(parse_bos(&bytes).is_err(), "{at} {value}");
    }
}

#[test]
fn string_reads_back_and_a_false_one_is_refused() {
    assert_eq!(parse_string(&string("Größe 𝄞")).unwrap(), "Größe 𝄞");
    assert_eq!(parse_string(&[4, 3, 0x00, 0xd8]).unwrap(), "\u{fffd}");
    for bytes in [&[][..], &[2], &[4, 2, 0, 0], &[6, 3, 65, 0], &[0, 3], &[1, 3]] {
        assert!(parse_string(bytes).is_err(), "{bytes:?}");
    }
}

#[test]
fn device_whose_descriptors_lie_cannot_be_opened() {
    struct Liar;
    impl Model for Liar {
        fn identity(&self) -> Identity {
            let mut identity = Identity::new(Speed::High, (1, 2), 1, &KEYBOARD[9..], ["", "", ""]);
            identity.configurations[0][9] = 0;
            identity
        }
    }

    assert!(matches!(Software::new("model:liar", Liar), Err(Error::Protocol { .. })));
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = DeviceDescriptor::parse(&bytes);
        let _ = parse_string(&bytes);
        let _ = parse_bos(&bytes);
        let _ = Configuration::parse(&bytes);
    }

    #[test]
    fn configuration_with_arbitrary_bytes_in_it_is_decoded_or_refused(
        changes in prop::collection::vec((0usize..34, any::<u8>()), 1..6), cut in 0usize..=34
    ) {
        let mut bytes = KEYBOARD;
        for (at, value) in changes {
            bytes[at] = value;
        }
        let _ = Configuration::parse(&bytes[..cut]);
    }
}
