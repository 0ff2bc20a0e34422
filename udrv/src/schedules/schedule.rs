//! Where interrupts are raised, as a value that prints as one line and is read back from it.

use std::fmt;
use std::str::FromStr;
use udrv_backend::Error;

/// One interrupt at one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Which of the interrupts given with [`super::Schedules::raise`], from 0.
    pub irq: usize,
    /// Before which register access of the driver it is raised, from 0.
    pub access: u64,
}

/// Placements, in the order of their accesses. Prints as `0@4,1@7`: interrupt 0 before access 4, interrupt 1 before access 7;
/// without any, as `none`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Schedule(Vec<Placement>);

impl Schedule {
    /// These placements, put in order.
    #[must_use]
    pub fn new(mut placements: Vec<Placement>) -> Self {
        placements.sort_by_key(|placement| placement.access);
        Self(placements)
    }

    /// Its placements, by access.
    #[must_use]
    pub fn placements(&self) -> &[Placement] {
        &self.0
    }

    pub(super) fn with(&self, placement: Placement) -> Self {
        Self::new(self.0.iter().copied().chain([placement]).collect())
    }

    pub(super) fn without(&self, index: usize) -> Self {
        Self(self.0.iter().enumerate().filter(|(at, _)| *at != index).map(|(_, placement)| *placement).collect())
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (index, Placement { irq, access }) in self.0.iter().enumerate() {
            write!(f, "{}{irq}@{access}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl FromStr for Schedule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text == "none" {
            return Ok(Self::default());
        }
        let placement = |part: &str| {
            let (irq, access) = part.split_once('@')?;
            Some(Placement { irq: irq.parse().ok()?, access: access.parse().ok()? })
        };
        let placements: Option<Vec<_>> = text.split(',').map(placement).collect();
        placements.map(Self::new).ok_or_else(|| Error::Protocol {
            peer: super::REPLAY.into(),
            found: format!("`{text}`"),
            expected: "a schedule such as 0@4,1@7 (interrupt 0 before access 4, interrupt 1 before access 7), or none"
                .into(),
        })
    }
}
