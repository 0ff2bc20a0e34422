//! [`Dialect`]: which of the two protocols a device speaks.

use crate::{cdc, ftdi};
use udrv_usb::{Device, EndpointAddress, Error, Result};

/// Which protocol to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// FTDI for its own vendor number, otherwise CDC-ACM.
    #[default]
    Auto,
    /// CDC-ACM.
    CdcAcm,
    /// FTDI, also under another vendor's number.
    Ftdi,
}

#[derive(Debug, Clone)]
pub(super) enum Dialect {
    CdcAcm(cdc::Function),
    Ftdi(ftdi::Function),
}

impl Dialect {
    pub(super) fn find(device: &Device, protocol: Protocol) -> Result<Self> {
        let descriptors = &device.info().descriptors;
        let configuration = descriptors.configuration(device.backend().configuration()?);
        let ftdi =
            protocol == Protocol::Ftdi || protocol == Protocol::Auto && descriptors.device.vendor == ftdi::VENDOR;
        let found = configuration.and_then(|configuration| {
            if ftdi {
                ftdi::Function::find(&descriptors.device, configuration).map(Self::Ftdi)
            } else {
                cdc::Function::find(configuration).map(Self::CdcAcm)
            }
        });
        found.ok_or_else(|| Error::Unavailable {
            device: device.address().into(),
            why: if ftdi {
                "it has no FTDI port (an interface of class ff with a bulk endpoint each way)".into()
            } else {
                "it has no CDC-ACM function (interfaces of class 02:02 and 0a, with a bulk endpoint each way)".into()
            },
            advice:
                "`udrv usb list` shows what it has; a chip of FTDI's under another vendor's number has to be called one"
                    .into(),
        })
    }

    pub(super) fn interfaces(&self) -> Vec<u8> {
        match self {
            Self::CdcAcm(function) => vec![function.control, function.data],
            Self::Ftdi(function) => vec![function.interface],
        }
    }

    pub(super) const fn bulk_in(&self) -> (EndpointAddress, u16) {
        match self {
            Self::CdcAcm(function) => function.bulk_in,
            Self::Ftdi(function) => function.bulk_in,
        }
    }

    pub(super) const fn bulk_out(&self) -> EndpointAddress {
        match self {
            Self::CdcAcm(function) => function.bulk_out,
            Self::Ftdi(function) => function.bulk_out,
        }
    }

    pub(super) const fn notifications(&self) -> Option<(EndpointAddress, u16)> {
        match self {
            Self::CdcAcm(function) => function.notifications,
            Self::Ftdi(_) => None,
        }
    }
}
