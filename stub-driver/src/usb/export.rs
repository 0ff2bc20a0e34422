//! `stub-driver usb export`: devices and models for the stock drivers of any Linux, over USB/IP.
//!
//! The protocol has no authentication and no encryption: whoever can connect has the device. So it listens on the loopback
//! unless told otherwise, and elsewhere only to those it is told to allow.

use super::session::{self, Exported};
use anyhow::{Context as _, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::str::FromStr;
use std::sync::Arc;
use udrv_usb::host::Host;
use udrv_usb::software::Software;
use udrv_usb::{AnyUsb, Device};

/// Connections at a time, over all devices.
const MAX_CONNECTIONS: usize = 64;

/// Disk of a software storage device that was given no image.
const EMPTY_DISK: usize = 16 << 20;

/// `stub-driver usb export`
#[derive(Debug, clap::Args)]
pub struct ExportArgs {
    /// Devices: usb:BUS-PORT, usb:VID:PID[:SERIAL], or a model: model:usb-storage[:IMAGE], model:cdc-acm, model:ftdi,
    /// model:usb-audio.
    #[arg(required = true)]
    devices: Vec<String>,
    /// Where to listen. USB/IP has no authentication: beyond the loopback, --allow says who may connect.
    #[arg(long, default_value = "127.0.0.1:3240")]
    listen: SocketAddr,
    /// Who may connect: an address, or a network as ADDRESS/BITS. Only the loopback if not given.
    #[arg(long)]
    allow: Vec<Network>,
}

/// An address, or all addresses that share its first bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is no network: expected an address, or ADDRESS/BITS");
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), |bits| bits.parse().map_err(|_| bad()))?;
        if bits > most { Err(bad()) } else { Ok(Self { address, bits }) }
    }
}

impl Network {
    /// Whether an address is within it.
    #[must_use]
    pub fn has(&self, address: IpAddr) -> bool {
        fn same(ours: u128, theirs: u128, width: u8, bits: u8) -> bool {
            bits == 0 || (ours ^ theirs) >> (width - bits) == 0
        }
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                same(u32::from(ours).into(), u32::from(theirs).into(), 32, self.bits)
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => same(ours.into(), theirs.into(), 128, self.bits),
            _ => false,
        }
    }
}

/// Exports until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from opening a device or from listening.
pub fn run(args: &ExportArgs) -> Result<()> {
    ensure!(
        args.listen.ip().is_loopback() || !args.allow.is_empty(),
        "USB/IP has no authentication, and {} is not the loopback: say with --allow who may connect",
        args.listen
    );
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGTERM);
    mask.add(Signal::SIGINT);
    mask.thread_block().context("cannot block signals")?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC).context("cannot wait for signals")?;

    let mut exported = Vec::new();
    for (at, address) in args.devices.iter().enumerate() {
        let backend = open(address)?;
        let info = backend.info();
        let bus_id = match info.ports.as_slice() {
            [] => format!("0-{}", at + 1),
            ports => format!("{}-{}", info.bus, ports.iter().map(u8::to_string).collect::<Vec<_>>().join(".")),
        };
        println!("{bus_id}  {address}");
        exported.push(Exported::new(bus_id, backend)?);
    }
    let exported = Arc::new(exported);
    let listener = TcpListener::bind(args.listen).with_context(|| format!("cannot listen on {}", args.listen))?;
    listener.set_nonblocking(true)?;
    println!("listening on {}", listener.local_addr()?);
    println!("ready");
    serve(&listener, &signals, &args.allow, &exported)?;
    exported.iter().for_each(Exported::close);
    Ok(())
}

fn open(address: &str) -> Result<AnyUsb> {
    let Some(model) = address.strip_prefix("model:") else {
        return Ok(Arc::clone(Host::new()?.open(&address.parse()?)?.backend()));
    };
    let (name, image) = model.split_once(':').map_or((model, None), |(name, image)| (name, Some(image)));
    match name {
        "usb-storage" => {
            let medium = match image {
                Some(image) => std::fs::read(image).with_context(|| format!("cannot read the image {image}"))?,
                None => vec![0; EMPTY_DISK],
            };
            let disk = udrv_usb_storage::model::Disk::new(medium);
            Ok(Arc::clone(Device::new(Arc::new(Software::new(address, disk)?))?.backend()))
        }
        "cdc-acm" => Ok(Arc::new(Software::new(address, udrv_usb_serial::model::CdcAcm::echoing())?)),
        "ftdi" => Ok(Arc::new(Software::new(address, udrv_usb_serial::model::Ftdi::echoing())?)),
        "usb-audio" => Ok(Arc::new(Software::new(address, udrv_usb_audio::model::Sound::default())?)),
        other => bail!(
            "no USB model is called `{other}`: expected model:usb-storage[:IMAGE], model:cdc-acm, model:ftdi or model:usb-audio"
        ),
    }
}

fn serve(listener: &TcpListener, signals: &SignalFd, allow: &[Network], exported: &Arc<Vec<Exported>>) -> Result<()> {
    let connections = Arc::new(());
    loop {
        let mut waited =
            [PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        // No deadline: waiting for clients is what it is for, and a signal ends it.
        match poll(&mut waited, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait for clients"),
        }
        if waited[0].any().unwrap_or(false) {
            return Ok(());
        }
        let Ok((stream, peer)) = listener.accept() else { continue };
        let allowed = match allow {
            [] => peer.ip().is_loopback(),
            networks => networks.iter().any(|network| network.has(peer.ip())),
        };
        if !allowed || Arc::strong_count(&connections) > MAX_CONNECTIONS {
            tracing::warn!(%peer, allowed, "a client was turned away");
            continue;
        }
        let (exported, connection) = (Arc::clone(exported), Arc::clone(&connections));
        let client = std::thread::Builder::new().name(format!("usbip {peer}"));
        let started = client.spawn(move || {
            let _connection = connection;
            match session::run(stream, &exported) {
                Ok(()) => tracing::info!(%peer, "a client has ended"),
                Err(error) => tracing::warn!(%peer, %error, "a client was ended"),
            }
        });
        if let Err(error) = started {
            tracing::error!(%error, "a client cannot be served");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_has_the_addresses_that_share_its_bits() {
        for (network, inside, outside) in [
            ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
            ("10.1.0.0/16", "10.1.255.1", "10.2.0.0"),
            ("0.0.0.0/0", "255.1.1.1", "::1"),
            ("fe80::/10", "fe80::1", "fec0::1"),
            ("192.168.0.0/24", "::ffff:192.168.0.9", "192.168.1.0"),
        ] {
            let network: Network = network.parse().unwrap();
            assert!(network.has(inside.parse().unwrap()), "{network:?} {inside}");
            assert!(!network.has(outside.parse().unwrap()), "{network:?} {outside}");
        }
    }

    #[test]
    fn network_that_is_none_is_refused() {
        for text in ["", "10.0.0.0/33", "fe80::/129", "10.0.0", "10.0.0.0/", "host"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }
}
