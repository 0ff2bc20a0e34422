//! Submission and completion queues (4.1): where commands come from and completions go, and what is signalled for them.

use crate::command::{COMMAND_SIZE, COMPLETION_SIZE, Command, Completion, Outcome, PAGE};
use std::collections::BTreeMap;
use udrv_model::Bus;

struct Submission {
    base: u64,
    entries: u32,
    head: u32,
    tail: u32,
    completion: u16,
}

struct CompletionQueue {
    base: u64,
    entries: u32,
    head: u32,
    tail: u32,
    phase: bool,
    /// The vector that is signalled, if any.
    vector: Option<u16>,
}

impl CompletionQueue {
    const fn is_full(&self) -> bool {
        (self.tail + 1) % self.entries == self.head
    }
}

/// All queues, by their identifiers.
pub(super) struct Queues {
    submission: BTreeMap<u16, Submission>,
    completion: BTreeMap<u16, CompletionQueue>,
    /// Bus addresses of the shadow doorbells and of the event indices, once the driver has given them.
    pub(super) shadow: Option<(u64, u64)>,
    /// Messages each vector has sent.
    sent: Vec<u64>,
}

impl Queues {
    pub(super) fn new(vectors: usize) -> Self {
        Self { submission: BTreeMap::new(), completion: BTreeMap::new(), shadow: None, sent: vec![0; vectors] }
    }

    pub(super) fn clear(&mut self) {
        self.submission.clear();
        self.completion.clear();
        self.shadow = None;
    }

    pub(super) fn open_admin(&mut self, commands: u64, entries: u32, completions: u64, completion_entries: u32) {
        self.add_completion(0, completions, completion_entries, Some(0));
        self.add_submission(0, commands, entries, 0);
    }

    pub(super) fn add_completion(&mut self, id: u16, base: u64, entries: u32, vector: Option<u16>) {
        let queue = CompletionQueue { base, entries, head: 0, tail: 0, phase: true, vector };
        self.completion.insert(id, queue);
    }

    pub(super) fn add_submission(&mut self, id: u16, base: u64, entries: u32, completion: u16) {
        self.submission.insert(id, Submission { base, entries, head: 0, tail: 0, completion });
    }

    pub(super) fn has_submission(&self, id: u16) -> bool {
        self.submission.contains_key(&id)
    }

    pub(super) fn has_completion(&self, id: u16) -> bool {
        self.completion.contains_key(&id)
    }

    /// Whether it was there.
    pub(super) fn remove_submission(&mut self, id: u16) -> bool {
        self.submission.remove(&id).is_some()
    }

    /// Takes a completion queue away, which no submission queue may use any more.
    pub(super) fn remove_completion(&mut self, id: u16) -> Result<(), Outcome> {
        if self.submission.values().any(|queue| queue.completion == id) {
            return Err(Outcome::INVALID_QUEUE_DELETION);
        }
        self.completion.remove(&id).map(drop).ok_or(Outcome::INVALID_QUEUE_IDENTIFIER)
    }

    /// The queue's entries, if there is one; a value beyond them changes nothing.
    pub(super) fn set_tail(&mut self, id: u16, value: u32) -> Option<u32> {
        let queue = self.submission.get_mut(&id)?;
        if value < queue.entries {
            queue.tail = value;
        }
        Some(queue.entries)
    }

    /// As [`Queues::set_tail`].
    pub(super) fn set_head(&mut self, id: u16, value: u32) -> Option<u32> {
        let queue = self.completion.get_mut(&id)?;
        if value < queue.entries {
            queue.head = value;
        }
        Some(queue.entries)
    }

    /// Takes the shadow doorbells of an I/O queue pair for its doorbells, and asks for the next write of either: no time
    /// passes in this model, so that it is never at work when one comes.
    pub(super) fn look(&mut self, id: u16, bus: &Bus<'_>) {
        let Some((doorbells, events)) = self.shadow.filter(|_| id != 0) else { return };
        for (index, is_tail) in [(2 * u64::from(id), true), (2 * u64::from(id) + 1, false)] {
            let at = 4 * index;
            if at + 4 > PAGE {
                continue;
            }
            let (mut bytes, mut before) = ([0; 4], None);
            // Looked at again after its event index was written, until it has not moved; a few times, whoever moves it.
            for _ in 0..4 {
                if bus.read(doorbells + at, &mut bytes).is_err() || before == Some(bytes) {
                    break;
                }
                if bus.write(events + at, &bytes).is_err() {
                    return;
                }
                before = Some(bytes);
            }
            if before.is_none() {
                return;
            }
            let value = u32::from_le_bytes(bytes);
            let _entries = if is_tail { self.set_tail(id, value) } else { self.set_head(id, value) };
        }
    }

    /// Whether a completion queue is there and not full.
    pub(super) fn has_room(&self, id: u16) -> bool {
        self.completion.get(&id).is_some_and(|queue| !queue.is_full())
    }

    /// The next command of the first queue that has one and room for its completion. `None` for the command if it cannot
    /// be read.
    pub(super) fn fetch(&mut self, bus: &Bus<'_>) -> Option<(u16, Option<Command>)> {
        let Self { submission, completion, .. } = self;
        let has_room = |id: &u16| completion.get(id).is_some_and(|queue| !queue.is_full());
        let mut ready = submission.iter_mut();
        let (&id, queue) = ready.find(|(_, queue)| queue.head != queue.tail && has_room(&queue.completion))?;
        let mut bytes = [0; COMMAND_SIZE];
        let at = queue.base.wrapping_add(u64::from(queue.head) * COMMAND_SIZE as u64);
        if bus.read(at, &mut bytes).is_err() {
            return Some((id, None));
        }
        queue.head = (queue.head + 1) % queue.entries;
        let mut dwords = [0; 16];
        for (dword, bytes) in dwords.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *dword = u32::from_le_bytes(*bytes);
        }
        Some((id, Some(Command(dwords))))
    }

    /// Posts a completion, and signals it. Whether it could be written; a queue that is gone takes none.
    pub(super) fn complete(&mut self, queue: u16, id: u16, outcome: Outcome, result: u32, bus: &Bus<'_>) -> bool {
        let Some(from) = self.submission.get(&queue) else { return true };
        let Some(to) = self.completion.get_mut(&from.completion) else { return true };
        let submission_head = from.head as u16;
        let completion = Completion { result, submission_head, queue, id, phase: to.phase, outcome };
        let at = to.base.wrapping_add(u64::from(to.tail) * COMPLETION_SIZE as u64);
        let bytes = completion.to_bytes();
        // The dword with the phase tag last: who polls must not see it before the others.
        let (first, last) = bytes.split_at(12);
        if bus.write(at, first).is_err() || bus.write(at.wrapping_add(12), last).is_err() {
            return false;
        }
        to.tail = (to.tail + 1) % to.entries;
        to.phase ^= to.tail == 0;
        if let Some(sent) = to.vector.and_then(|vector| self.sent.get_mut(usize::from(vector))) {
            *sent = sent.wrapping_add(1);
        }
        true
    }

    /// The vectors of completion queues that hold something.
    pub(super) fn pending(&self) -> impl Iterator<Item = u16> {
        self.completion.values().filter(|queue| queue.head != queue.tail).filter_map(|queue| queue.vector)
    }

    pub(super) fn messages(&self) -> &[u64] {
        &self.sent
    }
}
