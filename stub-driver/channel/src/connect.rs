//! Connecting with a deadline.

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use std::io::Result;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use udrv_backend::clock::Deadline;

/// Connects within `patience`: a server that accepts nobody lets its queue fill up, and a plain `connect` then waits.
///
/// # Errors
/// What connect(2) gave; [`WouldBlock`](std::io::ErrorKind::WouldBlock) if the queue stayed full.
pub fn connect(path: &Path, patience: Duration) -> Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let deadline = Deadline::after(patience);
    loop {
        // The sending timeout bounds connect too (unix(7) sockets wait for room in the queue by it). Zero would be none.
        let left = deadline.remaining();
        set_socket_timeout(&fd, Timeout::Send, Some(left.unwrap_or_default().max(Duration::from_micros(1))))?;
        match rustix::net::connect(&fd, &address) {
            // Such a socket is then as it was before. Signals that come faster than the shortest timeout would go on for ever.
            Err(Errno::INTR) if left.is_some() => {}
            Err(Errno::INTR) => return Err(Errno::AGAIN.into()),
            connected => return Ok(connected.map(|()| fd.into())?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;
    use std::sync::mpsc;

    #[test]
    fn server_that_accepts_nobody_is_waited_for_no_longer_than_the_deadline() {
        let path = std::env::temp_dir().join(format!("udrv-connect-{}.sock", std::process::id()));
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).expect("a socket");
        rustix::net::bind(&fd, &SocketAddrUnix::new(&path).expect("an address")).expect("bound");
        rustix::net::listen(&fd, 0).expect("listening, with room for one");
        let _first = connect(&path, Duration::from_secs(20)).expect("the one");
        let (sender, outcome) = mpsc::channel();
        let to = path.clone();
        std::thread::spawn(move || sender.send(connect(&to, Duration::from_millis(50)).map(drop)));
        let outcome = outcome.recv_timeout(Duration::from_secs(20));
        std::fs::remove_file(&path).expect("removed");
        let refused = outcome.expect("an outcome in time").expect_err("no room");
        assert_eq!(refused.kind(), ErrorKind::WouldBlock);
    }
}
