//! Asynchronous events (5.2): what is reported without having been asked for at that moment.

use super::NvmeModel;
use super::admin::LAST_EVENT;
use crate::command::{Outcome, log};
use std::collections::VecDeque;
use udrv_model::Bus;

/// Error, Write to Invalid Doorbell Register (figure 146).
pub(super) const INVALID_DOORBELL: Event = Event { kind: 0, information: 0, log_page: log::ERROR };
/// Error, Invalid Doorbell Write Value (figure 146).
pub(super) const INVALID_DOORBELL_VALUE: Event = Event { kind: 0, information: 1, log_page: log::ERROR };

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Event {
    kind: u8,
    information: u8,
    log_page: u8,
}

/// Requests that wait for events, and events that wait for requests.
#[derive(Debug, Default)]
pub(super) struct Events {
    requests: VecDeque<u16>,
    waiting: VecDeque<Event>,
    /// Types that have been reported, and whose log page has not been read since; a bit each.
    masked: u8,
}

impl Events {
    /// A request waits from now on; refused beyond AERL.
    pub(super) fn request(&mut self, id: u16) -> Result<(), Outcome> {
        if self.requests.len() > usize::from(LAST_EVENT) {
            return Err(Outcome::EVENT_LIMIT_EXCEEDED);
        }
        self.requests.push_back(id);
        Ok(())
    }

    /// Something has happened. The same again, before it was reported, is no news.
    pub(super) fn add(&mut self, event: Event) {
        if !self.waiting.contains(&event) {
            self.waiting.push_back(event);
        }
    }

    /// A log page has been read, without Retain Asynchronous Event.
    pub(super) fn read(&mut self, log_page: u8) {
        match log_page {
            log::ERROR => self.masked &= !1,
            log::SMART => self.masked &= !2,
            _ => {}
        }
    }

    /// The next event that may be reported, with the request that it answers; Dword 0.
    fn next(&mut self) -> Option<(u16, u32)> {
        let at = self.waiting.iter().position(|event| self.masked & 1 << event.kind == 0)?;
        let id = self.requests.pop_front()?;
        let Event { kind, information, log_page } = self.waiting.remove(at)?;
        self.masked |= 1 << kind;
        Some((id, u32::from(kind) | u32::from(information) << 8 | u32::from(log_page) << 16))
    }
}

impl NvmeModel {
    /// Answers requests for which there are events and room.
    pub(super) fn report(&mut self, bus: &Bus<'_>) {
        while self.queues.has_room(0)
            && let Some((id, event)) = self.events.next()
        {
            self.queues.complete(0, id, Outcome::SUCCESS, event, bus);
        }
    }
}
