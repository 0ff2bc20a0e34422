//! Where recordings of leases go.

use std::path::{Path, PathBuf};
use udrv_backend::{Error, Result};
use udrv_debug::trace::Options;

/// How many recordings of a device are kept. Each lease makes one, and a client may come and go as it likes.
const KEPT: u64 = 16;

/// A folder of recordings, `NAME-NUMBER.trace`, numbered on from what is there.
#[derive(Debug, Clone)]
pub struct Recordings {
    folder: PathBuf,
    /// What is recorded.
    pub options: Options,
}

impl Recordings {
    /// In a folder, which is made if it is not there.
    ///
    /// # Errors
    /// [`Error::Os`] if it cannot be made.
    pub fn new(folder: &Path, options: Options) -> Result<Self> {
        let it = Self { folder: folder.to_owned(), options };
        std::fs::create_dir_all(folder).map_err(|error| it.error("making", error))?;
        Ok(it)
    }

    fn error(&self, doing: &str, error: std::io::Error) -> Error {
        Error::os(format!("{doing} the folder for recordings {}", self.folder.display()), error)
    }

    fn path(&self, device: &str, number: u64) -> PathBuf {
        self.folder.join(format!("{device}-{number}.trace"))
    }

    /// The file of a device's next lease. The oldest of what it leaves too many are removed.
    pub(super) fn next(&self, device: &str) -> Result<PathBuf> {
        let files = std::fs::read_dir(&self.folder).map_err(|error| self.error("reading", error))?;
        let number =
            |name: &str| name.strip_prefix(device)?.strip_prefix('-')?.strip_suffix(".trace")?.parse::<u64>().ok();
        let numbers = files.filter_map(|file| number(file.ok()?.file_name().to_str()?));
        let mut numbers: Vec<_> = numbers.collect();
        numbers.sort_unstable();
        let keep = usize::try_from(KEPT).unwrap_or(usize::MAX) - 1;
        for old in numbers.iter().take(numbers.len().saturating_sub(keep)) {
            // One that cannot be removed is tried again with the next lease.
            let _kept = std::fs::remove_file(self.path(device, *old));
        }
        Ok(self.path(device, numbers.last().map_or(1, |last| last.saturating_add(1))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recordings_are_numbered_on_and_the_oldest_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let recordings = Recordings::new(folder.path(), Options::default()).expect("there");
        std::fs::write(recordings.path("other", 700), "").expect("written");
        for _ in 0..40 {
            std::fs::write(recordings.next("edu").expect("a name"), "").expect("written");
        }
        let kept = (0..100).filter(|number| recordings.path("edu", *number).exists()).collect::<Vec<_>>();
        assert_eq!(kept, (25..=40).collect::<Vec<_>>());
        assert!(recordings.path("other", 700).exists());
    }
}
