//! Standard requests (USB 2.0, 9.4), as far as they concern a device and not its class.

use super::{Identity, Reply};
use crate::descriptor::{self, kind};
use crate::transfer::Setup;

/// Who answers a request.
pub(super) enum Answer {
    /// The bus, with this.
    Now(Reply),
    /// SET_CONFIGURATION.
    Configure(u8),
    /// SET_INTERFACE: interface and alternate setting.
    Alternate(u8, u8),
    /// CLEAR_FEATURE(ENDPOINT_HALT), or SET_FEATURE if true.
    Halt(u8, bool),
    /// The model.
    Model,
}

const DEVICE: u8 = 0x00;
const INTERFACE: u8 = 0x01;
const ENDPOINT: u8 = 0x02;

const GET_STATUS: u8 = 0;
const CLEAR_FEATURE: u8 = 1;
const SET_FEATURE: u8 = 3;
const GET_DESCRIPTOR: u8 = 6;
const GET_CONFIGURATION: u8 = 8;
const SET_CONFIGURATION: u8 = 9;
const GET_INTERFACE: u8 = 10;
const SET_INTERFACE: u8 = 11;

/// Who answers `setup`, given what the bus knows of the device's state.
pub(super) fn answer(
    identity: &Identity,
    setup: &Setup,
    configuration: u8,
    alternate: impl Fn(u8) -> u8,
    halted: impl Fn(u8) -> bool,
) -> Answer {
    if setup.request_type & 0x60 != 0 {
        return Answer::Model;
    }
    let low = |word: u16| word.to_le_bytes()[0];
    let data = |bytes: Vec<u8>| Answer::Now(Reply::Data(bytes));
    match (setup.request_type & 0x1f, setup.request) {
        (DEVICE, GET_DESCRIPTOR) => Answer::Now(get_descriptor(identity, setup)),
        (DEVICE, GET_CONFIGURATION) => data(vec![configuration]),
        (DEVICE, SET_CONFIGURATION) => Answer::Configure(low(setup.value)),
        (DEVICE | INTERFACE, GET_STATUS) => data(vec![0, 0]),
        (ENDPOINT, GET_STATUS) => data(vec![u8::from(halted(low(setup.index))), 0]),
        (INTERFACE, GET_INTERFACE) => data(vec![alternate(low(setup.index))]),
        (INTERFACE, SET_INTERFACE) => Answer::Alternate(low(setup.index), low(setup.value)),
        (ENDPOINT, CLEAR_FEATURE) if setup.value == 0 => Answer::Halt(low(setup.index), false),
        (ENDPOINT, SET_FEATURE) if setup.value == 0 => Answer::Halt(low(setup.index), true),
        (INTERFACE, GET_DESCRIPTOR) => Answer::Model,
        _ => Answer::Now(Reply::Stall),
    }
}

fn get_descriptor(identity: &Identity, setup: &Setup) -> Reply {
    let [index, kind] = setup.value.to_le_bytes();
    let found = match kind {
        kind::DEVICE => Some(identity.device.clone()),
        kind::CONFIGURATION => identity.configurations.get(usize::from(index)).cloned(),
        kind::STRING if index == 0 => Some(vec![4, kind::STRING, 0x09, 0x04]),
        kind::STRING => identity.strings.get(usize::from(index) - 1).map(|text| descriptor::string(text)),
        kind::BOS => identity.bos.clone(),
        _ => None,
    };
    found.map_or(Reply::Stall, Reply::Data)
}
