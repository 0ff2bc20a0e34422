//! Whether a client stands: in a debugger, or by a signal. `/proc` tells; a debugger's helpers also tell since when, in the
//! client's inspection page. Meanwhile its interrupts are held, its clock stands still, and so do our deadlines against it.

use super::hold::Hold;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use udrv_inspect::layout::head;

/// Between two looks at a client that runs. Also what its deadlines may be early by, after it stood without a debugger's helpers.
const PERIOD: Duration = Duration::from_millis(100);
/// Between two looks at one that stands: what was held comes so late at most.
const PERIOD_HELD: Duration = Duration::from_millis(5);

/// Whether a process stands, and for how long its first thread had run.
#[derive(PartialEq, Eq)]
struct Standing {
    stands: bool,
    ran: Option<String>,
}

/// Whether the process stands now. One that does not exist does not.
pub(super) fn stands(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before it may contain anything, parentheses too (proc(5)).
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    matches!(state, Some('t' | 'T'))
}

/// The process that traces it, if one does.
pub(super) fn tracer(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?.trim().parse().ok()?;
    (tracer != 0).then_some(tracer)
}

impl Standing {
    fn of(pid: u32) -> Self {
        let ran = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).ok();
        Self { stands: stands(pid), ran }
    }

    /// It stood all the time since then, as far as can be seen.
    fn is_still(&self, before: &Self) -> bool {
        self.stands && self.ran.is_some() && self == before
    }
}

/// Looks at a client until it is dropped.
pub(super) struct Watch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Looks at process `pid`, whose page this is if it has one.
    pub(super) fn start(pid: u32, page: Option<File>, hold: Arc<Hold>) -> Self {
        let (stop, stopped) = channel::<()>();
        let watch = move || {
            let mut before = Standing::of(pid);
            let mut since = udrv_inspect::monotonic();
            let period = |hold: &Hold| if hold.is_held() { PERIOD_HELD } else { PERIOD };
            while stopped.recv_timeout(period(&hold)) == Err(RecvTimeoutError::Timeout) {
                let (now, at) = (Standing::of(pid), udrv_inspect::monotonic());
                if let Some(page) = page.as_ref().filter(|_| now.is_still(&before)) {
                    set_clock_back(page, at.saturating_sub(since));
                }
                if !now.stands {
                    let _stood = hold.go_on();
                } else if !hold.is_held() {
                    hold.begin(page.as_ref().and_then(told_since).filter(|told| *told < at).unwrap_or(at));
                }
                (before, since) = (now, at);
            }
        };
        Self { stop: Some(stop), thread: std::thread::Builder::new().name("client".into()).spawn(watch).ok() }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

fn word(page: &File, word: usize) -> Option<u64> {
    let mut raw = [0; 8];
    page.read_exact_at(&mut raw, word as u64 * 8).ok()?;
    Some(u64::from_le_bytes(raw))
}

/// Since when a debugger's helpers hold the process, if they say so.
fn told_since(page: &File) -> Option<u64> {
    word(page, head::HELD_SINCE).filter(|since| !matches!(*since, 0 | u64::MAX))
}

/// Sets the process's clock back, unless a debugger's helpers do.
fn set_clock_back(page: &File, nanoseconds: u64) {
    if let (Some(0), Some(held)) = (word(page, head::HELD_SINCE), word(page, head::HELD)) {
        // A client that has made its page read only has a clock that goes on.
        let _written = page.write_all_at(&held.saturating_add(nanoseconds).to_le_bytes(), head::HELD as u64 * 8);
    }
}
