//! A recording that is looked through and not held: however long it is, what is kept of it is what its numbers are called, and
//! what its times are of. Its recorder may go on meanwhile: what it writes after the first look is not looked at.

use super::describe::Description;
use super::event::Event;
use super::names::Names;
use super::read::{Pieces, open, refusal};
use super::ticks::Scale;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;
use std::time::Duration;
use udrv_backend::{Error, Result};

/// A recording, of which one event is in memory at a time.
pub struct Stream<R> {
    bytes: R,
    name: String,
    device: Description,
    names: Names,
    scale: Option<Scale>,
    end: Duration,
    seen: Seen,
}

/// How much of a recording there is.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    /// Places for events, up to the last event.
    places: u64,
    events: u64,
}

impl Seen {
    const fn add(&mut self, event: &Event) {
        self.places = event.number + 1;
        self.events += 1;
    }
}

impl Stream<BufReader<File>> {
    /// Looks a file through, also one whose recorder was killed.
    ///
    /// # Errors
    /// As [`super::Trace::open`].
    pub fn open(path: &Path) -> Result<Self> {
        Self::read(open(path)?, &path.display().to_string())
    }
}

impl<R: Read + Seek> Stream<R> {
    /// Looks a recording's bytes through, of something of this name.
    ///
    /// # Errors
    /// As [`super::Trace::open`].
    pub fn read(mut bytes: R, name: &str) -> Result<Self> {
        let (mut names, mut latest, mut seen) = (Names::default(), Duration::ZERO, Seen::default());
        let (device, pieces) = pass(&mut bytes, name, u64::MAX, |event| {
            seen.add(&event);
            names.note(&event);
            latest = latest.max(event.time);
            Ok(())
        })?;
        let scale = pieces.scale();
        let end = scale.as_ref().map_or(latest, |scale| scale.time(latest));
        Ok(Self { bytes, name: name.into(), device, names, scale, end, seen })
    }

    /// Of which device it is.
    #[must_use]
    pub const fn device(&self) -> &Description {
        &self.device
    }

    /// The names of what the events have numbers of.
    #[must_use]
    pub const fn names(&self) -> &Names {
        &self.names
    }

    /// When the last event was.
    #[must_use]
    pub const fn end(&self) -> Duration {
        self.end
    }

    /// Looks at each event in its turn, until `look` fails: at those that there were when it was opened, and any that had been
    /// begun before the last of them and was not in the file yet.
    ///
    /// # Errors
    /// What `look` gave; as [`super::Trace::open`]; [`Error::Protocol`] if it has become shorter, or one of another device.
    pub fn each(&mut self, mut look: impl FnMut(&Event) -> Result<()>) -> Result<()> {
        let (scale, mut seen) = (&self.scale, Seen::default());
        let (device, _) = pass(&mut self.bytes, &self.name, self.seen.places, |event| {
            seen.add(&event);
            let time = scale.as_ref().map_or(event.time, |scale| scale.time(event.time));
            self.end = self.end.max(time);
            look(&Event { time, ..event })
        })?;
        let changed = if device != self.device {
            format!("another device, {}, than before", device.address)
        } else if seen.events < self.seen.events {
            format!("{} events where there were {}", seen.events, self.seen.events)
        } else {
            return Ok(());
        };
        Err(refusal(&self.name, (changed, "a recording that is as it was, or longer")))
    }

    /// That it has more of something than any recording has.
    pub(super) fn excess(&self, found: String, expected: &'static str) -> Error {
        refusal(&self.name, (found, expected))
    }
}

/// The events in the first so many places, with their times as they stand there.
fn pass(
    bytes: &mut (impl Read + Seek),
    name: &str,
    places: u64,
    mut look: impl FnMut(Event) -> Result<()>,
) -> Result<(Description, Pieces)> {
    let os = |error: io::Error| Error::os(format!("reading the trace {name}"), error);
    bytes.rewind().map_err(os)?;
    let (device, mut pieces) = Pieces::begin(bytes).map_err(os)?.map_err(|wrong| refusal(name, wrong))?;
    pieces.stop_after(places);
    while let Some(event) = pieces.next(bytes).map_err(os)?.map_err(|wrong| refusal(name, wrong))? {
        look(event)?;
    }
    Ok((device, pieces))
}
