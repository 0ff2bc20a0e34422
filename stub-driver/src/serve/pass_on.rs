//! The lease of a USB device: its node, open, goes to the driver ([`udrv_usb::lease`]), and the connection is the lease.
//!
//! It is taken from its kernel drivers for the lease, and they get it back, after a reset, whatever way the driver ended. A
//! driver that keeps the descriptor can try to use the device afterwards, as anyone can whom usbfs ever let open it; its
//! claim is taken from it as often as the device is given back.

use super::hold::Hold;
use super::lease::Counters;
use super::server::{Served, Tenancy};
use super::slot::Tenant;
use crate::usb::taken::Taken;
use nix::sys::socket::UnixCredentials;
use std::io::Read as _;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use udrv_usb::host::UsbAddress;
use udrv_usb::lease::{self, Refusal};

impl Served {
    /// From the connection to the end of the lease; says why it ended.
    pub(super) fn pass_on(
        &self,
        address: &UsbAddress,
        stream: &UnixStream,
        peer: &UnixCredentials,
    ) -> std::io::Result<String> {
        let tenant = Tenant {
            pid: peer.pid(),
            uid: peer.uid(),
            since: udrv_backend::clock::now(),
            counters: Arc::new(Counters::default()),
            // Its interrupts are the kernel's business.
            hold: Arc::new(Hold::new(false)),
            stream: stream.try_clone()?,
            device: None,
            revoked: None,
        };
        if let Err(why) = self.slot.take(tenant) {
            return Ok(turn_away(stream, Refusal::Busy, &why));
        }
        let _until_freed = Tenancy(self);
        let taken = match Taken::take(address) {
            Ok(taken) => taken,
            Err(error) => {
                tracing::error!("{}: cannot be taken: {error}", self.export.name());
                return Ok(turn_away(stream, Refusal::Cannot, &error.to_string()));
            }
        };
        let given = taken.node().map(|(address, node)| lease::give(stream, address, node));
        if let Some(Err(error)) = given {
            return Ok(error.to_string());
        }
        tracing::info!("{}: leased", self.export.name());
        wait_for_end(stream);
        let revoked = self.slot.ending();
        // A driver that is to go sees at once that it is over; the device may take its time.
        let _ = stream.shutdown(Shutdown::Both);
        drop(taken);
        Ok(revoked.unwrap_or_else(|| "it has ended".into()))
    }
}

fn turn_away(stream: &UnixStream, refusal: Refusal, why: &str) -> String {
    // It may have gone by itself, which serves as well.
    let _ = lease::refuse(stream, refusal, why);
    why.to_owned()
}

/// A driver has nothing to say: whatever comes from it ends the lease, as its end does. No deadline: a lease lasts for as
/// long as the driver does; revoking it shuts the connection down.
fn wait_for_end(mut stream: &UnixStream) {
    while let Err(error) = stream.read(&mut [0]) {
        if error.kind() != std::io::ErrorKind::Interrupted {
            return;
        }
    }
}
