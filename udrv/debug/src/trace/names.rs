//! What the numbers in events are called: threads and source files, as the recording says itself.

use super::event::{Event, Place, What, printable};
use std::collections::BTreeMap;

/// The longest name of a file, bytes: as long as a path can be.
const LONGEST: usize = 256;

/// The names of a recording's threads and source files.
#[derive(Debug, Clone, Default)]
pub struct Names {
    threads: BTreeMap<u32, String>,
    files: BTreeMap<u32, String>,
}

impl Names {
    pub(super) fn of_events(events: &[Event]) -> Self {
        let mut threads = BTreeMap::new();
        let mut files: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        for event in events {
            match &event.what {
                What::Thread { name } if !name.is_empty() => {
                    threads.entry(event.thread).or_insert_with(|| name.clone());
                }
                What::File { file, start, bytes } => {
                    let name = files.entry(*file).or_default();
                    // In the order in which they are written; what does not follow is of no recorder.
                    if name.len() == *start as usize && name.len() + bytes.len() <= LONGEST {
                        name.extend(bytes);
                    }
                }
                _ => {}
            }
        }
        let text = |bytes: Vec<u8>| printable(&String::from_utf8_lossy(&bytes));
        Self { threads, files: files.into_iter().map(|(file, name)| (file, text(name))).collect() }
    }

    /// A thread's name, or its number if it has none.
    #[must_use]
    pub fn thread(&self, thread: u32) -> String {
        self.threads.get(&thread).cloned().unwrap_or_else(|| thread.to_string())
    }

    /// A source file's name, if it was recorded.
    #[must_use]
    pub fn file(&self, at: Place) -> Option<&str> {
        self.files.get(&at.file).map(String::as_str)
    }

    /// FILE:LINE, or the line alone.
    #[must_use]
    pub fn place(&self, at: Place) -> String {
        self.file(at).map_or_else(|| format!("line {}", at.line), |file| format!("{file}:{}", at.line))
    }
}
