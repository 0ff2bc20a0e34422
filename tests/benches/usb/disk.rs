//! The work that is measured, on QEMU's USB disk: by us, by the C program, and by the kernel.

use crate::controls;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use udrv_backend::clock::now;
use udrv_usb::Device;
use udrv_usb::host::Host;
use udrv_usb_storage::driver::Storage;

/// QEMU's disk.
const ID: &str = "46f4:0001";
/// How much is read in a round: all of it.
pub const BYTES: u64 = 64 << 20;
/// Control transfers in a round.
pub const CONTROLS: u64 = 3000;

const PATIENCE: Duration = Duration::from_secs(30);
const DRIVER: &str = "/sys/bus/usb/drivers/usb-storage";

pub struct Disk {
    peer: String,
    /// Its interface's name, such as `2-1:1.0`.
    interface: String,
}

impl Disk {
    pub fn new(peer: String) -> Self {
        let listed = Host::new().and_then(|host| host.list()).expect("the buses");
        let disk = listed.into_iter().find(|one| (one.vendor, one.product) == (0x46f4, 1)).expect("the disk");
        let port = disk.address.strip_prefix("usb:").expect("an address").to_owned();
        Self { peer, interface: format!("{port}:1.0") }
    }

    fn is_bound(&self) -> bool {
        Path::new(DRIVER).join(&self.interface).exists()
    }

    fn unbind(&self) {
        if self.is_bound() {
            std::fs::write(Path::new(DRIVER).join("unbind"), &self.interface).expect("unbound");
        }
    }

    /// The block device that the kernel's driver makes of it.
    fn bind(&self) -> PathBuf {
        if !self.is_bound() {
            std::fs::write(Path::new(DRIVER).join("bind"), &self.interface).expect("bound");
        }
        let begin = now();
        while begin.elapsed() < PATIENCE {
            let blocks = std::fs::read_dir("/sys/block").expect("/sys/block").flatten();
            let ours = blocks.map(|entry| entry.path()).find(|block| {
                let place = block.canonicalize().unwrap_or_default();
                let size = std::fs::read_to_string(block.join("size")).unwrap_or_default();
                place.to_string_lossy().contains(&format!("/{}/", self.interface))
                    && size.trim().parse() == Ok(BYTES / 512)
            });
            let node = ours.map(|block| Path::new("/dev").join(block.file_name().expect("a name")));
            if let Some(node) = node.filter(|node| node.exists()) {
                return node;
            }
        }
        panic!("the kernel's driver did not find its disk within {PATIENCE:?}");
    }

    /// The largest command of the kernel's driver, KiB.
    pub fn kernel_kib(&self) -> u64 {
        let node = self.bind();
        let name = node.file_name().expect("a name").to_string_lossy().into_owned();
        let said = std::fs::read_to_string(format!("/sys/block/{name}/queue/max_sectors_kb")).expect("its limit");
        said.trim().parse().expect("a number")
    }

    fn open(&self) -> Device {
        self.unbind();
        let address = format!("usb:{ID}").parse().expect("an address");
        Host::new().and_then(|host| host.open(&address)).expect("the disk")
    }

    /// MB/s.
    pub fn read(&self) -> f64 {
        let mut storage = Storage::attach(self.open()).expect("brought up");
        let begin = now();
        let mut read = 0;
        let each = |bytes: &[u8]| {
            read += bytes.len();
            Ok(())
        };
        storage.read(0, BYTES, each).expect("read");
        assert_eq!(read as u64, BYTES);
        BYTES as f64 / 1e6 / begin.elapsed().as_secs_f64()
    }

    fn ask_peer(&self, work: &[&str]) -> f64 {
        self.unbind();
        let output = Command::new(&self.peer).arg(ID).args(work).output().expect("the peer runs");
        let text = String::from_utf8_lossy(&output.stdout);
        text.trim().parse().unwrap_or_else(|_| panic!("the peer: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// MB/s, into memory on the heap, or into such as the kernel shares with the host controller.
    pub fn peer_reads(&self, mapped: bool) -> f64 {
        self.ask_peer(&[if mapped { "mapped" } else { "read" }, &BYTES.to_string()])
    }

    /// MB/s, as dd itself says it.
    pub fn kernel_reads(&self, direct: bool) -> f64 {
        let node = self.bind();
        std::fs::write("/proc/sys/vm/drop_caches", "3").expect("dropped");
        let mut dd = Command::new("dd");
        dd.arg(format!("if={}", node.display())).args(["of=/dev/null", "bs=1M"]).env("LC_ALL", "C");
        if direct {
            dd.arg("iflag=direct");
        }
        let said = String::from_utf8_lossy(&dd.output().expect("dd runs").stderr).into_owned();
        let seconds = said.lines().last().and_then(|line| line.split(", ").find_map(|part| part.strip_suffix(" s")));
        let seconds: f64 = seconds.and_then(|seconds| seconds.parse().ok()).unwrap_or_else(|| panic!("dd said {said}"));
        self.unbind();
        BYTES as f64 / 1e6 / seconds
    }

    /// Microseconds a transfer, `in_flight` at a time.
    pub fn controls(&self, in_flight: u64) -> f64 {
        let device = self.open();
        device.backend().claim(0).expect("claimed");
        let begin = now();
        controls::seconds(&device, CONTROLS, in_flight, || begin.elapsed().as_secs_f64()) * 1e6
    }

    /// As [`Disk::controls`]; `deadlines` if each transfer has one.
    pub fn peer_controls(&self, in_flight: u64, deadlines: bool) -> f64 {
        let work = if deadlines { "control" } else { "without" };
        self.ask_peer(&[work, &CONTROLS.to_string(), &in_flight.to_string()])
    }
}
