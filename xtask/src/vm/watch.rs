//! Watching over a QEMU in the background: its output, its log, its deadline.

use crate::clock;
use anyhow::{Context as _, Result};
use std::io::Read as _;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Child;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// The most that a guest may write to its console.
const LOG_BYTES: u64 = 32 << 20;
/// How often the log's size is looked at, at least.
const TICK: Duration = Duration::from_secs(1);

/// How a machine ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself.
    Itself,
    /// Killed because `on_output` said so.
    Stopped,
    /// Killed by its deadline.
    Overdue(Duration),
    /// Killed because it wrote too much.
    LogFull,
}

/// Passes what `qemu` writes to its piped standard output to `on_output` until it ends or has to. It is dead and reaped afterwards, also
/// after an error.
pub(crate) fn watch(
    qemu: &mut Child,
    limit: Duration,
    log: &Path,
    on_output: impl FnMut(&[u8]) -> Result<ControlFlow<()>>,
) -> Result<End> {
    let ended = listen(qemu, limit, log, on_output);
    if !matches!(ended, Ok(End::Itself)) {
        // fails only if it has ended by itself meanwhile
        drop(qemu.kill());
    }
    qemu.wait().context("cannot wait for QEMU")?;
    ended
}

fn listen(
    qemu: &mut Child,
    limit: Duration,
    log: &Path,
    mut on_output: impl FnMut(&[u8]) -> Result<ControlFlow<()>>,
) -> Result<End> {
    let deadline = clock::now() + limit;
    let output = output(qemu)?;
    loop {
        let left = deadline.saturating_duration_since(clock::now());
        match output.recv_timeout(left.min(TICK)) {
            Ok(bytes) => {
                if on_output(&bytes)?.is_break() {
                    return Ok(End::Stopped);
                }
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(End::Itself),
            Err(RecvTimeoutError::Timeout) if left.is_zero() => return Ok(End::Overdue(limit)),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if log.metadata().is_ok_and(|log| log.len() > LOG_BYTES) {
            return Ok(End::LogFull);
        }
    }
}

fn output(qemu: &mut Child) -> Result<Receiver<Vec<u8>>> {
    let mut output = qemu.stdout.take().context("QEMU's output is not a pipe")?;
    let (sender, receiver) = channel();
    // ends with the pipe, so with QEMU
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = output.read(&mut buffer) {
            if sender.send(buffer.get(..length).unwrap_or_default().to_vec()).is_err() {
                break;
            }
        }
    });
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn machine(script: &str) -> Child {
        Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().expect("a shell")
    }

    #[test]
    fn watch_a_silent_machine_kills_it_at_its_deadline() {
        let limit = Duration::from_millis(100);
        let end =
            watch(&mut machine("exec tail -f /dev/null"), limit, Path::new("/none"), |_| Ok(ControlFlow::Continue(())));
        assert_eq!(end.expect("killed"), End::Overdue(limit));
    }

    #[test]
    fn watch_a_chatty_machine_kills_it_at_its_deadline() {
        let limit = Duration::from_millis(100);
        let end = watch(&mut machine("exec yes"), limit, Path::new("/none"), |_| Ok(ControlFlow::Continue(())));
        assert_eq!(end.expect("killed"), End::Overdue(limit));
    }

    #[test]
    fn watch_a_machine_that_writes_too_much_kills_it() {
        let log = std::env::temp_dir().join(format!("xtask-watch-{}", std::process::id()));
        std::fs::File::create(&log).and_then(|file| file.set_len(LOG_BYTES + 1)).expect("a long log");
        let mut machine = machine("exec tail -f /dev/null");
        let end = watch(&mut machine, Duration::from_secs(60), &log, |_| Ok(ControlFlow::Continue(())));
        std::fs::remove_file(&log).expect("removed");
        assert_eq!(end.expect("killed"), End::LogFull);
    }

    #[test]
    fn watch_passes_all_output_on() {
        let mut seen = Vec::new();
        let end = watch(&mut machine("echo one; echo two"), Duration::from_secs(60), Path::new("/none"), |bytes| {
            seen.extend_from_slice(bytes);
            Ok(ControlFlow::Continue(()))
        });
        assert_eq!((end.expect("ended"), seen.as_slice()), (End::Itself, b"one\ntwo\n".as_slice()));
    }
}
