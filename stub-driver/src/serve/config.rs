//! What to serve, to whom and how: the configuration file and the command line put together.

use super::command::{SOCKET_DIR, ServeArgs, Switch};
use super::device::DeviceAddress;
use super::recordings::Recordings;
use anyhow::{Context as _, Result, bail};
use nix::unistd::{Uid, User, geteuid};
use serde::{Deserialize, Deserializer};
use std::path::{Path, PathBuf};
use udrv_debug::trace::Options;

/// A configuration file, such as `stub-driver/dist/stub-driver.toml`.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the sockets are made.
    pub socket_dir: Option<PathBuf>,
    /// Whom to serve, by name or number.
    pub owner: Option<String>,
    /// What to serve.
    #[serde(default)]
    pub device: Vec<DeviceConfig>,
}

/// One `[[device]]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceConfig {
    /// `pci:0000:03:00.0`, `usb:1-2`, `usb:0403:6001` or `model:edu`.
    #[serde(deserialize_with = "address")]
    pub address: DeviceAddress,
    /// Whom to serve, where it is not the file's `owner`.
    pub owner: Option<String>,
    /// Whether clients may map registers.
    #[serde(default)]
    pub mmap: bool,
    /// Whether to take the device only while a client has it.
    #[serde(default)]
    pub per_lease: bool,
    /// Whether a client that stands in a debugger has its interrupts held back, and its deadlines stand still.
    #[serde(default = "on")]
    pub hold: bool,
    /// How much memory a client may have mapped for DMA, MiB.
    pub dma_limit: Option<u64>,
}

const fn on() -> bool {
    true
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DeviceAddress, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

impl Config {
    /// Reads a file's text; `name` is for errors.
    ///
    /// # Errors
    /// One line with the line number: what is unknown or malformed, and what was expected.
    pub fn parse(name: &Path, text: &str) -> Result<Self> {
        toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or("");
            let line = before.matches('\n').count() + 1;
            anyhow::anyhow!("{}:{line}: {}", name.display(), error.message().replace('\n', ", "))
        })
    }

    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(path, &text)
    }
}

/// One device, everything decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) address: DeviceAddress,
    pub(super) owner: Uid,
    pub(super) mmap: bool,
    pub(super) per_lease: bool,
    pub(super) hold: bool,
    /// How much memory a client may have mapped for DMA, bytes, if that was said.
    pub(super) dma_limit: Option<u64>,
}

/// All that `serve` is to do.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) socket_dir: PathBuf,
    /// Of the control socket, and of devices that have no other.
    pub(super) owner: Uid,
    pub(super) devices: Vec<Planned>,
    /// Where leases are recorded, if they are.
    pub(super) recordings: Option<Recordings>,
}

/// The file's devices, then those of the command line, to which its `--mmap`, `--per-lease`, `--hold` and `--dma-limit` apply. Where both
/// name a folder or an owner, the command line has the last word.
pub(super) fn plan(args: &ServeArgs) -> Result<Plan> {
    let file = args.config.as_deref().map(Config::read).transpose()?.unwrap_or_default();
    let owner = args.owner.as_deref().or(file.owner.as_deref()).map_or(Ok(geteuid()), find_user)?;
    let mut devices = Vec::new();
    for device in &file.device {
        let owner = device.owner.as_deref().map_or(Ok(owner), find_user)?;
        let &DeviceConfig { mmap, per_lease, hold, dma_limit, .. } = device;
        let address = device.address.clone();
        devices.push(Planned { address, owner, mmap, per_lease, hold, dma_limit: dma_limit.map(mib) });
    }
    let &ServeArgs { mmap, per_lease, dma_limit, .. } = args;
    let (dma_limit, hold) = (dma_limit.map(mib), args.hold == Switch::On);
    devices.extend(args.devices.iter().map(|address| {
        let address = address.clone();
        Planned { address, owner, mmap, per_lease, hold, dma_limit }
    }));
    if devices.is_empty() {
        bail!("there is nothing to serve: the file has no [[device]], and no DEVICE was given");
    }
    for (position, device) in devices.iter().enumerate() {
        if devices.iter().take(position).any(|earlier| earlier.address == device.address) {
            bail!("{} is to be served twice; name it once", device.address);
        }
    }
    let socket_dir = args.socket_dir.clone().or(file.socket_dir).unwrap_or_else(|| SOCKET_DIR.into());
    let options = Options { dma_contents: args.record_dma, ..Options::default() };
    let recordings = args.record.as_deref().map(|folder| Recordings::new(folder, options)).transpose()?;
    if let (Some(_), Some(device)) = (&recordings, devices.iter().find(|device| device.mmap)) {
        bail!(
            "{} is to be mapped, and accesses to what is mapped are not recorded: leave out mmap or --record",
            device.address
        );
    }
    Ok(Plan { socket_dir, owner, devices, recordings })
}

/// In bytes.
const fn mib(number: u64) -> u64 {
    number.saturating_mul(1 << 20)
}

/// A user by name or number.
fn find_user(given: &str) -> Result<Uid> {
    if let Ok(number) = given.parse() {
        return Ok(Uid::from_raw(number));
    }
    match User::from_name(given).with_context(|| format!("looking for user `{given}`"))? {
        Some(user) => Ok(user.uid),
        None => bail!("there is no user `{given}`: expected a name or number, as `getent passwd` shows them"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config> {
        Config::parse(Path::new("stub.toml"), text)
    }

    #[test]
    fn example_file_is_parsed_and_its_commented_settings_are_the_names_of_real_ones() {
        let text = include_str!("../../dist/stub-driver.toml");
        parse(text).expect("as shipped");
        // A setting is commented out by `#` without a space; prose has one.
        let all: Vec<_> = text
            .lines()
            .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
            .collect();
        let config = parse(&all.join("\n")).expect("with every setting");
        assert_eq!(config.device.len(), 2);
        assert!(config.owner.is_some() && config.socket_dir.is_some());
    }

    #[test]
    fn unknown_key_is_an_error_that_names_key_and_line() {
        let error = parse("socket_dir = \"/tmp\"\nsockets = 1\n").expect_err("unknown key").to_string();
        assert!(error.starts_with("stub.toml:2: ") && error.contains("`sockets`"), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }

    #[test]
    fn unknown_key_of_a_device_is_an_error_that_names_key_and_line() {
        let error = parse("[[device]]\naddress = \"model:edu\"\nmap = true\n").expect_err("unknown key").to_string();
        assert!(error.starts_with("stub.toml:3: ") && error.contains("`map`"), "{error}");
    }

    #[test]
    fn malformed_address_is_an_error_that_names_it_and_its_line() {
        let error = parse("[[device]]\naddress = \"pci:0000:03:00\"\n").expect_err("malformed").to_string();
        assert!(error.starts_with("stub.toml:2: ") && error.contains("`0000:03:00`"), "{error}");
    }
}
