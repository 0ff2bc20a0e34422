//! The driver on the software sound device, and what descriptors say; numbers are typed again from the specifications.

use proptest::prelude::*;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use udrv::clock::Deadline;
use udrv::irq::{Delivery, IrqDomain};
use udrv_usb::descriptor::Configuration;
use udrv_usb::software::{Identity, Model, Software};
use udrv_usb::{Device, EndpointAddress, Error, Speed};
use udrv_usb_audio::driver::{Audio, Counters, Filled, Stream, Volume, Wanted};
use udrv_usb_audio::model::Sound;
use udrv_usb_audio::pace::Pace;
use udrv_usb_audio::protocol::{Direction, FeatureUnit, Rates, Setting, Synchronization};

const LONG: Duration = Duration::from_secs(20);

fn plugged() -> (Arc<Software<Sound>>, Audio, IrqDomain) {
    let bus = Arc::new(Software::new("model:usb-audio", Sound::default()).unwrap());
    let audio = Audio::new(Device::new(bus.clone()).unwrap()).unwrap();
    (bus, audio, IrqDomain::new(Delivery::Thread).unwrap())
}

const fn wanted(direction: Direction, rate: u32) -> Wanted {
    Wanted { direction, rate, channels: None }
}

/// Gives these bytes, and no more.
fn from(bytes: Vec<u8>) -> impl FnMut(&mut [u8]) -> Filled + Send + 'static {
    let mut left = bytes.into_iter();
    move |buffer| {
        let room = buffer.len();
        let filled = buffer.iter_mut().zip(left.by_ref().take(room)).map(|(to, byte)| *to = byte).count();
        if filled == room { Filled::All } else { Filled::Last(filled) }
    }
}

fn to_its_end(irqs: &IrqDomain, stream: &Stream) -> Counters {
    irqs.wait("the end", Deadline::after(LONG), || stream.has_ended()).unwrap();
    assert!(stream.take_error().is_none());
    stream.counters()
}

/// A second of sound with no two frames alike within it.
fn second(rate: u32) -> Vec<u8> {
    (0..rate).flat_map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

#[test]
fn played_bytes_reach_the_device_at_its_rate_followed_by_silence() {
    let (bus, audio, irqs) = plugged();
    let setting = audio.find(wanted(Direction::Play, 44_100)).unwrap().clone();
    let sound = second(44_100);

    let stream = Stream::play(&audio, &setting, 44_100, &irqs, from(sound.clone())).unwrap();
    let counters = to_its_end(&irqs, &stream);

    bus.with_model(|model| {
        let (played, silence) = model.played().split_at(sound.len());
        assert!(played == sound);
        assert!(silence.iter().all(|byte| *byte == 0));
        assert_eq!(model.rates()[0], 44_100);
        // 44.1 frames a millisecond: 44, and in every tenth packet 45
        assert_eq!(model.packets()[..10].iter().sum::<usize>(), 441 * 4);
        assert!(model.packets().iter().all(|length| [176, 180].contains(length)));
    });
    assert_eq!((counters.underruns, counters.lost), (0, 0));
    assert_eq!(counters.frames, bus.with_model(|model| model.played().len() as u64 / 4));
}

#[test]
fn sound_begins_in_its_order_each_time() {
    let (bus, audio, irqs) = plugged();
    let setting = audio.find(wanted(Direction::Play, 48_000)).unwrap().clone();
    // twice what is in flight at first
    let sound = second(16 * 8 * 48);

    for round in 1..=200 {
        let stream = Stream::play(&audio, &setting, 48_000, &irqs, from(sound.clone())).unwrap();
        to_its_end(&irqs, &stream);
        assert!(bus.with_model(|model| model.played().ends_with(&sound)), "round {round}");
    }
}

#[test]
fn stream_is_at_its_setting_while_it_lasts_and_at_none_afterwards() {
    let (bus, audio, irqs) = plugged();
    let setting = audio.find(wanted(Direction::Play, 48_000)).unwrap().clone();

    let stream = Stream::play(&audio, &setting, 48_000, &irqs, from(vec![1; 4])).unwrap();
    assert_eq!(bus.with_model(|model| model.alternates()), [0, 1, 0]);
    drop(stream);

    assert_eq!(bus.with_model(|model| model.alternates()), [0, 0, 0]);
    assert_eq!(bus.in_flight(), 0);
}

#[test]
fn source_that_is_late_is_silence_and_an_underrun() {
    let (bus, audio, irqs) = plugged();
    let setting = audio.find(wanted(Direction::Play, 48_000)).unwrap().clone();
    let mut call = 0;
    let source = move |buffer: &mut [u8]| {
        call += 1;
        buffer.fill(7);
        match call {
            1 => Filled::Some(8),
            2 => Filled::All,
            _ => Filled::Last(0),
        }
    };

    let stream = Stream::play(&audio, &setting, 48_000, &irqs, source).unwrap();
    let counters = to_its_end(&irqs, &stream);

    assert_eq!(counters.underruns, 1);
    let transfer = 8 * 48 * 4;
    let expected = [vec![7; 8], vec![0; transfer - 8], vec![7; transfer]].concat();
    assert!(bus.with_model(|model| model.played() == expected));
}

#[test]
fn feedback_of_the_device_is_followed() {
    let (bus, audio, irqs) = plugged();
    let setting = audio.find(wanted(Direction::Play, 48_000)).unwrap().clone();
    assert_eq!(setting.synchronization, Synchronization::Asynchronous);
    // 48.5 frames a millisecond, as 10.14
    bus.with_model(|model| model.set_feedback(48 << 14 | 1 << 13));

    let stream = Stream::play(&audio, &setting, 48_000, &irqs, from(vec![1; 4 * 48_500])).unwrap();
    let counters = to_its_end(&irqs, &stream);

    assert!(counters.feedback > 0, "{counters:?}");
    bus.with_model(|model| {
        let later: usize = model.packets().iter().skip(100).take(800).sum();
        assert_eq!(later, 800 * 97 * 4 / 2);
    });
}

#[test]
fn feedback_that_cannot_be_true_is_not_believed() {
    let mut pace = Pace::new(48_000, (1, 1000));

    for bytes in [[0, 0, 0].as_slice(), &[0xff; 3], &[0xff; 4], &[], &[0, 0, 12, 0, 0]] {
        assert!(!pace.feedback(bytes), "{bytes:?}");
    }
    assert_eq!(pace.packet(), 48);
    // 16.16 in microframes: 6.0 of them, 8 a packet
    let mut high = Pace::new(48_000, (8, 8000));
    assert!(high.feedback(&[0, 0, 6, 0]));
    assert_eq!(high.packet(), 48);
}

#[test]
fn captured_bytes_are_those_of_the_device() {
    let (bus, audio, irqs) = plugged();
    let setting = audio.find(wanted(Direction::Capture, 44_100)).unwrap().clone();
    let captured = Arc::new(Mutex::new(Vec::new()));
    let sink = {
        let captured = Arc::clone(&captured);
        move |bytes: &[u8]| {
            let mut captured = captured.lock().unwrap();
            captured.extend_from_slice(bytes);
            captured.len() < 44_100 * 2
        }
    };

    let stream = Stream::capture(&audio, &setting, 44_100, &irqs, sink).unwrap();
    to_its_end(&irqs, &stream);

    let expected: Vec<u8> = (0..44_100_u16).flat_map(u16::to_le_bytes).collect();
    assert!(captured.lock().unwrap()[..expected.len()] == expected);
    assert_eq!(bus.with_model(|model| model.rates()[1]), 44_100);
}

#[test]
fn volume_is_set_and_sound_unmuted() {
    let (bus, audio, _irqs) = plugged();

    audio.set_volume(Volume::Max).unwrap();
    assert_eq!(bus.with_model(|model| model.volume()), (6 * 256, false));
    audio.set_volume(Volume::Db256(-10 * 256)).unwrap();
    assert_eq!(bus.with_model(|model| model.volume()), (-10 * 256, false));
}

#[test]
fn rate_the_device_lacks_is_refused_with_what_it_has() {
    let (_bus, audio, _irqs) = plugged();

    for rate in [0, 8000, 96_000, u32::MAX] {
        let error = audio.find(wanted(Direction::Play, rate)).unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }));
        assert!(error.to_string().contains("44100, 48000"), "{error}");
    }
    let none = audio.find(Wanted { channels: Some(6), ..wanted(Direction::Play, 48_000) });
    assert!(none.is_err());
}

#[test]
fn stream_that_another_has_is_refused() {
    let (bus, audio, irqs) = plugged();
    let setting = audio.find(wanted(Direction::Play, 48_000)).unwrap().clone();
    let other = Device::new(bus.clone()).unwrap();
    other.backend().claim(setting.interface).unwrap();

    let error = Stream::play(&audio, &setting, 48_000, &irqs, from(vec![1; 400])).err().unwrap();

    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert_eq!(bus.with_model(|model| model.alternates()), [0, 0, 0]);
}

#[test]
fn unplugged_while_it_plays_is_gone() {
    let (bus, audio, irqs) = plugged();
    let setting = audio.find(wanted(Direction::Play, 48_000)).unwrap().clone();
    let pull = Arc::clone(&bus);
    let mut call = 0;
    let source = move |_: &mut [u8]| {
        call += 1;
        if call == 100 {
            pull.unplug();
        }
        Filled::All
    };

    let stream = Stream::play(&audio, &setting, 48_000, &irqs, source).unwrap();
    irqs.wait("the end", Deadline::after(LONG), || stream.has_ended()).unwrap();

    let error = stream.take_error().unwrap();
    assert!(matches!(error, Error::Gone { .. }), "{error}");
}

#[test]
fn settings_are_what_the_descriptors_say() {
    let configuration = Configuration::parse(&Sound::default().identity().configurations[0]).unwrap();

    let settings = Setting::all(&configuration);

    let [play, capture] = settings.as_slice() else { panic!("{settings:?}") };
    assert_eq!((play.interface, play.alternate, play.direction), (1, 1, Direction::Play));
    assert_eq!((play.channels, play.subframe, play.bits), (2, 2, 16));
    assert_eq!(play.rates, Rates::Some(vec![44_100, 48_000]));
    assert_eq!((play.endpoint, play.feedback), (EndpointAddress(0x01), Some((EndpointAddress(0x82), 3))));
    assert_eq!(play.interval(Speed::Full), (1, 1000));
    assert!(play.has_rate_control);
    assert_eq!((capture.interface, capture.direction, capture.channels), (2, Direction::Capture, 1));
    let units = FeatureUnit::all(&configuration);
    assert_eq!(units, [FeatureUnit { unit: 2, interface: 0, mute: vec![0], volume: vec![0] }]);
}

/// A streaming interface whose class-specific descriptors and endpoint are given.
fn streaming(class_specific: &[u8], endpoint: &[u8]) -> Identity {
    let body = [&[9, 4, 1, 1, 1, 1, 2, 0, 0], class_specific, endpoint].concat();
    Identity::new(Speed::Full, (0x1209, 0x0006), 1, &body, ["udrv", "Liar", "1"])
}

fn settings_of(identity: &Identity) -> Vec<Setting> {
    Setting::all(&Configuration::parse(&identity.configurations[0]).unwrap())
}

const GENERAL: [u8; 7] = [7, 0x24, 1, 1, 1, 1, 0];
const ENDPOINT: [u8; 9] = [9, 5, 1, 0x09, 192, 0, 1, 0, 0];

#[test]
fn range_of_rates_is_decoded() {
    let format = [14, 0x24, 2, 1, 2, 2, 16, 0, 0x40, 0x1f, 0, 0x80, 0xbb, 0];

    let settings = settings_of(&streaming(&[GENERAL.as_slice(), &format].concat(), &ENDPOINT));

    assert_eq!(settings[0].rates, Rates::Between(8000, 48_000));
    assert!(settings[0].rates.has(11_025) && !settings[0].rates.has(48_001));
    assert_eq!(settings[0].synchronization, Synchronization::Adaptive);
}

#[test]
fn descriptors_that_lie_are_passed_over() {
    let rate = [0x80, 0xbb, 0];
    let format = |head: [u8; 8], rates: &[u8]| [head.as_slice(), rates].concat();
    for (what, format) in [
        ("no channels", format([11, 0x24, 2, 1, 0, 2, 16, 1], &rate)),
        ("samples of no bytes", format([11, 0x24, 2, 1, 2, 0, 16, 1], &rate)),
        ("samples of 255 bytes", format([11, 0x24, 2, 1, 2, 255, 16, 1], &rate)),
        ("more bits than bytes have", format([11, 0x24, 2, 1, 2, 2, 17, 1], &rate)),
        ("a range without an end", format([11, 0x24, 2, 1, 2, 2, 16, 0], &rate)),
        ("format type II", format([11, 0x24, 2, 2, 2, 2, 16, 1], &rate)),
        ("nothing", vec![3, 0x24, 2]),
    ] {
        assert!(settings_of(&streaming(&[GENERAL.as_slice(), &format].concat(), &ENDPOINT)).is_empty(), "{what}");
    }
    let good = format([11, 0x24, 2, 1, 2, 2, 16, 1], &rate);
    let mpeg = [7, 0x24, 1, 1, 1, 2, 0x10];
    assert!(settings_of(&streaming(&[mpeg.as_slice(), &good].concat(), &ENDPOINT)).is_empty(), "no PCM");
    assert!(settings_of(&streaming(&[GENERAL.as_slice(), &good].concat(), &[])).is_empty(), "no endpoint");
    // 200 rates said, one there
    let short = format([11, 0x24, 2, 1, 2, 2, 16, 200], &rate);
    let settings = settings_of(&streaming(&[GENERAL.as_slice(), &short].concat(), &ENDPOINT));
    assert_eq!(settings[0].rates, Rates::Some(vec![48_000]));
}

#[test]
fn packet_too_small_for_the_rate_is_not_chosen() {
    let format = [11, 0x24, 2, 1, 2, 2, 16, 1, 0x80, 0xbb, 0];
    // 191 bytes, where 48 frames are 192
    let endpoint = [9, 5, 1, 0x09, 191, 0, 1, 0, 0];

    struct Liar(Identity);
    impl Model for Liar {
        fn identity(&self) -> Identity {
            self.0.clone()
        }
    }
    let identity = streaming(&[GENERAL.as_slice(), &format].concat(), &endpoint);
    let device = Device::new(Arc::new(Software::new("model:liar", Liar(identity)).unwrap())).unwrap();
    let audio = Audio::new(device).unwrap();

    assert!(matches!(audio.find(wanted(Direction::Play, 48_000)), Err(Error::Unavailable { .. })));
    assert!(matches!(audio.set_volume(Volume::Max), Err(Error::Unavailable { .. })));
}

proptest! {
    #[test]
    fn arbitrary_class_specific_bytes_are_understood_or_passed_over(
        bodies in prop::collection::vec((0x24_u8..=0x25, prop::collection::vec(any::<u8>(), 0..40)), 0..12),
        class in 1_u8..=2,
    ) {
        let mut body = vec![9, 4, 0, 1, 1, 1, class, 0, 0];
        for (kind, bytes) in &bodies {
            body.extend([bytes.len() as u8 + 2, *kind]);
            body.extend(bytes);
        }
        body.extend(ENDPOINT);
        let identity = Identity::new(Speed::High, (1, 2), 1, &body, ["", "", ""]);
        let configuration = Configuration::parse(&identity.configurations[0]).unwrap();
        for setting in Setting::all(&configuration) {
            prop_assert!(setting.frame() > 0);
            prop_assert!(!setting.to_string().is_empty());
        }
        let _ = FeatureUnit::all(&configuration);
    }
}
