//! What the numbers in events are called: threads and source files, as the recording says itself.

use super::event::{Event, Place, What, printable};
use std::collections::BTreeMap;

/// The longest name of a file, bytes: as long as a path can be.
const LONGEST: usize = 256;

/// The most names of a kind; what comes later goes by its number.
const MOST: usize = 1 << 16;

fn has_room<T>(names: &BTreeMap<u32, T>, number: u32) -> bool {
    names.len() < MOST || names.contains_key(&number)
}

/// The names of a recording's threads and source files.
#[derive(Debug, Clone, Default)]
pub struct Names {
    threads: BTreeMap<u32, String>,
    /// As the pieces come: text only when they are all there.
    files: BTreeMap<u32, Vec<u8>>,
}

impl Names {
    pub(super) fn of_events(events: &[Event]) -> Self {
        let mut it = Self::default();
        events.iter().for_each(|event| it.note(event));
        it
    }

    /// Takes what an event names; to be told of each in its turn.
    pub(super) fn note(&mut self, event: &Event) {
        match &event.what {
            What::Thread { name } if !name.is_empty() && has_room(&self.threads, event.thread) => {
                self.threads.entry(event.thread).or_insert_with(|| name.clone());
            }
            What::File { file, start, bytes } if has_room(&self.files, *file) => {
                let name = self.files.entry(*file).or_default();
                // In the order in which they are written; what does not follow is of no recorder.
                if name.len() == *start as usize && name.len() + bytes.len() <= LONGEST {
                    name.extend(bytes);
                }
            }
            _ => {}
        }
    }

    /// A thread's name, or its number if it has none.
    #[must_use]
    pub fn thread(&self, thread: u32) -> String {
        self.threads.get(&thread).cloned().unwrap_or_else(|| thread.to_string())
    }

    /// A source file's name, if it was recorded.
    #[must_use]
    pub fn file(&self, at: Place) -> Option<String> {
        self.files.get(&at.file).map(|name| printable(&String::from_utf8_lossy(name)))
    }

    /// FILE:LINE, or the line alone.
    #[must_use]
    pub fn place(&self, at: Place) -> String {
        self.file(at).map_or_else(|| format!("line {}", at.line), |file| format!("{file}:{}", at.line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn noted(what: impl IntoIterator<Item = (u32, What)>) -> Names {
        let mut names = Names::default();
        for (thread, what) in what {
            names.note(&Event { number: 0, time: Duration::ZERO, thread, what });
        }
        names
    }

    #[test]
    fn first_names_are_kept_and_what_comes_after_too_many_goes_by_its_number() {
        let most = MOST as u32;
        let names = noted((0..=most).chain([0]).map(|thread| (thread, What::Thread { name: format!("t{thread}") })));
        assert_eq!([0, most - 1, most].map(|thread| names.thread(thread)), ["t0", "t65535", "65536"]);
        let piece = |file, start, text: &str| (1, What::File { file, start, bytes: text.as_bytes().to_vec() });
        let names = noted((1..=most + 1).flat_map(|file| [piece(file, 0, "a"), piece(file, 1, ".rs")]));
        assert_eq!(names.place(Place { file: most, line: 7 }), "a.rs:7");
        assert_eq!(names.place(Place { file: most + 1, line: 7 }), "line 7");
    }

    #[test]
    fn name_of_a_file_is_as_long_as_a_path_and_its_pieces_follow_each_other() {
        let piece = |start, bytes| (1, What::File { file: 1, start, bytes });
        let long = noted((0..100).map(|number| piece(number * 8, b"12345678".to_vec())));
        assert_eq!(long.file(Place { file: 1, line: 1 }).map(|name| name.len()), Some(LONGEST));
        let odd = noted([piece(0, b"abc".to_vec()), piece(8, b"xyz".to_vec()), piece(3, b"\x1bd".to_vec())]);
        assert_eq!(odd.file(Place { file: 1, line: 1 }).as_deref(), Some("abc\u{fffd}d"));
    }
}
