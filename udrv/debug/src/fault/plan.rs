//! What is wrong with a device.

use serde::{Deserialize, Serialize};
use std::fmt;
use udrv_backend::register::{Kind, RegisterMap};
use udrv_backend::{Error, Result};

/// The accesses, interrupts or mappings that a fault is about: `count` of them from number `from`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    /// The first, counted from 0.
    #[serde(default)]
    pub from: u64,
    /// How many; all that follow if not given.
    #[serde(default = "forever", skip_serializing_if = "is_forever")]
    pub count: u64,
}

const fn forever() -> u64 {
    u64::MAX
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_forever(count: &u64) -> bool {
    *count == u64::MAX
}

/// Bits as `"0x80"`, since TOML's integers end at 2⁶³; an integer is taken as well.
mod mask {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(u64),
        Text(String),
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    pub(super) fn serialize<S: Serializer>(mask: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{mask:#x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        match Written::deserialize(from)? {
            Written::Number(mask) => Ok(mask),
            Written::Text(text) => {
                let digits = text.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
                digits.ok_or_else(|| D::Error::custom(format!("`{text}` are no bits: expected \"0x80\" or 128")))
            }
        }
    }
}

impl Default for Span {
    fn default() -> Self {
        Self { from: 0, count: forever() }
    }
}

impl Span {
    /// `count` from `from`.
    #[must_use]
    pub const fn new(from: u64, count: u64) -> Self {
        Self { from, count }
    }

    pub(crate) fn contains(&self, number: u64) -> bool {
        number.checked_sub(self.from).is_some_and(|past| past < self.count)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.from, self.count) {
            (0, u64::MAX) => Ok(()),
            (from, u64::MAX) => write!(f, " from number {from}"),
            (from, count) => write!(f, " number {from}, {count} of them"),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Fault {
    /// Reads of BARs give all ones, as those of a device that has fallen off the bus.
    AllOnes {
        /// Which accesses.
        #[serde(default)]
        accesses: Span,
    },
    /// Some bits of a register always read as 1, others as 0.
    StuckBits {
        /// Region index.
        region: u32,
        /// Byte offset of the register.
        offset: u64,
        /// Bits that read as 1.
        #[serde(default, with = "mask")]
        ones: u64,
        /// Bits that read as 0.
        #[serde(default, with = "mask")]
        zeros: u64,
    },
    /// A register never becomes what it is waited for: it keeps the value that the first write to its region found.
    NeverReady {
        /// Region index.
        region: u32,
        /// Byte offset of the register.
        offset: u64,
    },
    /// Writes of a register do not arrive. In no catalogue: which register is worth it, its driver's author knows.
    LostWrite {
        /// Region index.
        region: u32,
        /// Byte offset of the register.
        offset: u64,
        /// Which of its writes.
        #[serde(default)]
        writes: Span,
    },
    /// Interrupts do not arrive.
    LostInterrupt {
        /// Which interrupts.
        #[serde(default)]
        interrupts: Span,
    },
    /// Interrupts arrive late.
    LateInterrupt {
        /// Which interrupts.
        #[serde(default)]
        interrupts: Span,
        /// By how many milliseconds.
        by_ms: u64,
    },
    /// Interrupts arrive twice.
    DuplicateInterrupt {
        /// Which interrupts.
        #[serde(default)]
        interrupts: Span,
    },
    /// Every armed vector is signalled after these accesses, without a cause.
    SpuriousInterrupt {
        /// Which accesses.
        accesses: Span,
    },
    /// Memory cannot be mapped (ENOMEM, as when RLIMIT_MEMLOCK is too low).
    DmaMapFails {
        /// Which mappings.
        #[serde(default)]
        mappings: Span,
    },
    /// Of what the device writes into memory, only the first half arrives.
    ShortDma,
    /// Of what the device writes into memory, the lowest bit of the first byte is wrong.
    CorruptDma,
    /// The device vanishes.
    Gone {
        /// At which access.
        at: u64,
    },
    /// Each access takes longer.
    Slow {
        /// By how many microseconds.
        by_us: u64,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllOnes { accesses } => write!(f, "reads give all ones{accesses}"),
            Self::StuckBits { region, offset, ones, zeros } => {
                write!(f, "region {region} offset {offset:#x}: bits {ones:#x} stuck at 1, {zeros:#x} at 0")
            }
            Self::NeverReady { region, offset } => write!(f, "region {region} offset {offset:#x} never changes"),
            Self::LostWrite { region, offset, writes } => {
                write!(f, "region {region} offset {offset:#x}: writes lost{writes}")
            }
            Self::LostInterrupt { interrupts } => write!(f, "interrupts lost{interrupts}"),
            Self::LateInterrupt { interrupts, by_ms } => write!(f, "interrupts {by_ms} ms late{interrupts}"),
            Self::DuplicateInterrupt { interrupts } => write!(f, "interrupts twice{interrupts}"),
            Self::SpuriousInterrupt { accesses } => write!(f, "interrupts without cause{accesses}"),
            Self::DmaMapFails { mappings } => write!(f, "DMA mappings fail{mappings}"),
            Self::ShortDma => f.write_str("DMA short"),
            Self::CorruptDma => f.write_str("DMA corrupt"),
            Self::Gone { at } => write!(f, "gone at access {at}"),
            Self::Slow { by_us } => write!(f, "accesses {by_us} us slower"),
        }
    }
}

/// What is wrong with a device: any number of faults at once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultPlan {
    /// The faults.
    #[serde(default, rename = "fault")]
    pub faults: Vec<Fault>,
}

impl FaultPlan {
    /// One fault.
    #[must_use]
    pub fn one(fault: Fault) -> Self {
        Self { faults: vec![fault] }
    }

    /// From a file's text: a table `[[fault]]` for each, with its `kind` in kebab case and its fields.
    ///
    /// # Errors
    /// [`Error::Protocol`] with the line that is wrong.
    pub fn from_toml(text: &str) -> Result<Self> {
        toml::from_str(text).map_err(|error| Error::Protocol {
            peer: "a fault plan".into(),
            found: error.to_string().split_whitespace().collect::<Vec<_>>().join(" "),
            expected: "[[fault]] tables with a kind".into(),
        })
    }

    /// As [`FaultPlan::from_toml`] takes it.
    ///
    /// # Errors
    /// [`Error::Protocol`] for a number beyond TOML's 2⁶³.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|error| Error::Protocol {
            peer: "a fault plan".into(),
            found: error.to_string(),
            expected: "numbers below 2^63".into(),
        })
    }

    /// One to three faults chosen by a number, the same for the same number and map.
    #[must_use]
    pub fn from_seed(seed: u64, map: &RegisterMap) -> Self {
        let mut random = Random(seed);
        let mut possible = Self::catalogue(map);
        let count = 1 + random.below(3);
        let faults = (0..count).filter_map(|_| {
            let at = random.below(possible.len() as u64) as usize;
            (at < possible.len()).then(|| possible.swap_remove(at))
        });
        let mut plan = Self { faults: faults.flat_map(|plan| plan.faults).collect() };
        for fault in &mut plan.faults {
            vary(fault, &mut random);
        }
        plan
    }

    /// Every kind of fault once, and those of registers once for each register that can be read. One whose reading has side
    /// effects is never one that is never ready: it would have to be read for that.
    #[must_use]
    pub fn catalogue(map: &RegisterMap) -> Vec<Self> {
        let all = Span::default();
        let mut faults = vec![
            Fault::AllOnes { accesses: all },
            Fault::AllOnes { accesses: Span::new(30, u64::MAX) },
            Fault::LostInterrupt { interrupts: all },
            Fault::LostInterrupt { interrupts: Span::new(3, 1) },
            Fault::LateInterrupt { interrupts: all, by_ms: 20 },
            Fault::DuplicateInterrupt { interrupts: all },
            Fault::SpuriousInterrupt { accesses: Span::new(10, 20) },
            Fault::DmaMapFails { mappings: all },
            Fault::ShortDma,
            Fault::CorruptDma,
            Fault::Gone { at: 0 },
            Fault::Gone { at: 30 },
            Fault::Slow { by_us: 100 },
        ];
        for register in map.registers.iter().filter(|register| register.kind != Kind::WriteOnly) {
            let (region, offset) = (map.region.0, register.offset);
            faults.push(Fault::StuckBits { region, offset, ones: register.width.all_ones(), zeros: 0 });
            faults.push(Fault::StuckBits { region, offset, ones: 0, zeros: register.width.all_ones() });
            let changes = register.kind != Kind::ReadOnly || !register.bits().is_empty();
            if register.kind.is_readable() && changes {
                faults.push(Fault::NeverReady { region, offset });
            }
        }
        faults.into_iter().map(Self::one).collect()
    }
}

/// Moves a fault to another place, or makes it another bit.
fn vary(fault: &mut Fault, random: &mut Random) {
    match fault {
        Fault::AllOnes { accesses } | Fault::SpuriousInterrupt { accesses } => {
            *accesses = Span::new(random.below(200), 1 + random.below(20));
        }
        Fault::StuckBits { ones, zeros, .. } => {
            let bit = 1 << random.below(32);
            (*ones, *zeros) = if random.below(2) == 0 { (bit, 0) } else { (0, bit) };
        }
        Fault::LostInterrupt { interrupts } | Fault::DuplicateInterrupt { interrupts } => {
            *interrupts = Span::new(random.below(20), 1 + random.below(4));
        }
        Fault::LateInterrupt { interrupts, by_ms } => {
            *interrupts = Span::new(random.below(20), 1 + random.below(4));
            *by_ms = 1 + random.below(50);
        }
        Fault::DmaMapFails { mappings } => *mappings = Span::new(random.below(2), 1),
        Fault::Gone { at } => *at = random.below(500),
        Fault::Slow { by_us } => *by_us = 1 + random.below(200),
        Fault::LostWrite { .. } | Fault::NeverReady { .. } | Fault::ShortDma | Fault::CorruptDma => {}
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): enough for choosing, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 0 if there is none below.
    fn below(&mut self, bound: u64) -> u64 {
        self.next().checked_rem(bound).unwrap_or(0)
    }
}
