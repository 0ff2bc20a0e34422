//! A trace as it is read: nothing in the file is trusted.

use super::event::{Event, WORDS, What, unpack};
use super::log::{HEADER_WORDS, MAGIC, VERSION};
use serde::{Deserialize, Serialize};
use std::path::Path;
use udrv_backend::{Backend, DmaLimits, Error, IrqIndex, RegionIndex, Result};

/// What the device said of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Its address.
    pub address: String,
    /// Size and flags (VFIO's) of each region.
    pub regions: Vec<(u64, u32)>,
    /// Vectors and flags (VFIO's) of each interrupt index.
    pub irqs: Vec<(u32, u32)>,
    /// If it has DMA, what can be mapped.
    pub dma: Option<DmaDescription>,
    /// Whether it can be reset.
    pub resettable: bool,
}

/// [`DmaLimits`] in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DmaDescription {
    /// First and last bus address of each range.
    pub ranges: Vec<(u64, u64)>,
    /// Bytes.
    pub page_size: u64,
    /// At once.
    pub max_mappings: u32,
}

impl Description {
    /// Of a device.
    ///
    /// # Errors
    /// As [`Backend::region`] and [`Backend::irq`].
    pub fn of(device: &(impl Backend + ?Sized)) -> Result<Self> {
        let info = device.info();
        let region = |index| device.region(RegionIndex(index)).map(|region| (region.size, region.flags.bits()));
        let irq = |index| device.irq(IrqIndex(index)).map(|irq| (irq.count, irq.flags.bits()));
        let dma = device.dma().map(|dma| {
            let DmaLimits { iova_ranges, page_size, max_mappings } = dma.limits();
            let ranges = iova_ranges.into_iter().map(std::ops::RangeInclusive::into_inner).collect();
            DmaDescription { ranges, page_size, max_mappings }
        });
        Ok(Self {
            address: info.address.clone(),
            regions: (0..info.regions).map(region).collect::<Result<_>>()?,
            irqs: (0..info.irqs).map(irq).collect::<Result<_>>()?,
            dma,
            resettable: device.resettable().is_some(),
        })
    }
}

/// A recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// Of which device.
    pub device: Description,
    /// What happened, in the order in which it began.
    pub events: Vec<Event>,
    /// How many events more there were, for which there was no room.
    pub lost: u64,
}

impl Trace {
    /// Reads a file, also one whose recorder was killed.
    ///
    /// # Errors
    /// [`Error::Os`]; [`Error::Protocol`] if it is no trace, or one of another version.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path);
        let bytes = bytes.map_err(|error| Error::os(format!("reading the trace {}", path.display()), error))?;
        Self::parse(&bytes).map_err(|(found, expected)| Error::Protocol {
            peer: path.display().to_string(),
            found,
            expected: expected.into(),
        })
    }

    fn parse(bytes: &[u8]) -> std::result::Result<Self, (String, &'static str)> {
        if bytes.get(..MAGIC.len()) != Some(&MAGIC[..]) {
            return Err(("another kind of file".into(), "a trace, which begins with \"udrvtrc\""));
        }
        let word = |index: usize| {
            let bytes = bytes.get(index * 8..index * 8 + 8)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        let header: Option<Vec<u64>> = (1..HEADER_WORDS).map(word).collect();
        let Some(&[version, first, length, claimed]) = header.as_deref() else {
            return Err(("a header that is cut short".into(), "40 bytes"));
        };
        if version != VERSION {
            return Err((format!("version {version}"), "version 1: record again, or use the udrv that recorded it"));
        }
        let start = HEADER_WORDS * 8;
        let end = usize::try_from(length).ok().and_then(|length| start.checked_add(length));
        let text =
            end.and_then(|end| bytes.get(start..end)).ok_or(("no description".into(), "one after the header"))?;
        let device = serde_json::from_slice(text).map_err(|error| (error.to_string(), "the device's description"))?;
        let rest = usize::try_from(first).ok().and_then(|first| bytes.get(first..)).unwrap_or_default();
        let whole = rest.chunks_exact(WORDS * 8);
        let lost = claimed.saturating_sub(whole.len() as u64);
        let mut events = Vec::new();
        for (number, chunk) in (0..claimed).zip(whole) {
            let mut words = [0; WORDS];
            for (word, bytes) in words.iter_mut().zip(chunk.chunks_exact(8)) {
                *word = bytes.try_into().map_or(0, u64::from_le_bytes);
            }
            // A second word of 0 is an event whose recorder was killed before it had written it.
            if words.get(1) == Some(&0) {
                continue;
            }
            let event = unpack(number, words);
            events.push(event.ok_or_else(|| (format!("event {number} of no known kind"), "an event of version 1"))?);
        }
        Ok(Self { device, events, lost })
    }

    /// A thread's name, or its number if it has none.
    #[must_use]
    pub fn thread_name(&self, thread: u32) -> String {
        let named = |event: &Event| match &event.what {
            What::Thread { name } if event.thread == thread && !name.is_empty() => Some(name.clone()),
            _ => None,
        };
        self.events.iter().find_map(named).unwrap_or_else(|| thread.to_string())
    }
}
