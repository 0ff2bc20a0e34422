//! One boot: a run folder shared with the guest, an initramfs, QEMU, and a deadline.

use super::apt::{find_program, output_of};
use super::initramfs;
use super::kernel::Kernel;
use super::run_folder::RunFolder;
use super::watch::{self, watch};
use crate::stub::dies_with_us;
use anyhow::{Context as _, Result};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Modules the guest loads, with what they depend on, in this order.
const MODULES: [&str; 8] =
    ["virtio_pci", "9pnet_virtio", "9p", "overlay", "vfio_iommu_type1", "vfio-pci", "nvme", "e1000"];

/// The machine. PCI addresses are given so that they do not depend on the order of options.
const MACHINE: &[&str] = &[
    "-accel",
    "tcg,thread=multi",
    "-machine",
    "q35,kernel-irqchip=off",
    "-cpu",
    "max",
    "-smp",
    "2",
    "-m",
    "1G",
    "-nodefaults",
    "-no-reboot",
    "-display",
    "none",
    "-device",
    "intel-iommu,intremap=on,caching-mode=on",
    "-device",
    "virtio-9p-pci,fsdev=host,mount_tag=host,addr=2",
    "-device",
    "virtio-9p-pci,fsdev=share,mount_tag=share,addr=3",
    "-device",
    "edu,addr=4",
    // the first edu reaches 28 bits of address (its default), this one all
    "-device",
    "edu,dma_mask=0xffffffffffffffff,addr=5",
    "-device",
    "nvme,id=nvme,drive=nvme,serial=udrv,addr=6",
    // without the boot ROM, which no package here brings
    "-device",
    // not e1000e, whose emulation ends the machine when its throttling timer runs out with MSI-X on (QEMU 7.2)
    "e1000,romfile=,addr=7",
    "-nic",
    "none",
    // USB; its drivers are loaded by the scenarios that want them (`modprobe`)
    "-device",
    "qemu-xhci,id=xhci,addr=0xa",
    "-device",
    "usb-storage,bus=xhci.0,port=1,drive=usb,serial=udrv,id=usbdisk",
    "-device",
    "usb-kbd,bus=xhci.0,port=2,id=usbkbd",
    "-device",
    "usb-serial,bus=xhci.0,port=3,chardev=usbserial,always-plugged=on,id=usbserial",
    "-device",
    "usb-audio,bus=xhci.0,port=4,audiodev=audio,id=usbaudio",
];

/// `no_timer_check`: on a busy host the emulated timer is too late for the kernel's check of it, which would panic.
/// `8250.nr_uarts`: serial ports beyond the fourth.
/// `panic=-1` with QEMU's `-no-reboot`: a guest that panics ends the machine.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 intel_iommu=on panic=-1 oops=panic 8250.nr_uarts=8 no_timer_check";

/// The image behind the NVMe device, and that behind the USB disk, which the guest sees too (`usb.img` in the run folder).
/// Neither takes room before it is written to.
const NVME_BYTES: u64 = 256 << 20;
const USB_BYTES: u64 = 64 << 20;

/// Whom the guest's serial ports serve.
#[derive(Clone, Copy)]
pub(crate) enum Console {
    /// The console is the terminal; there is no deadline.
    Interactive,
    /// The console goes to the log; ttyS1 is our output; the machine is killed after this time.
    Output(Duration),
}

/// A script to be run in the guest, and the folder that belongs to this run.
pub(crate) struct Job<'a> {
    kernel: &'a Kernel,
    command_line: String,
    devices: &'static [&'static str],
    /// Shared with the guest, at the same path there, and writable.
    pub(crate) folder: RunFolder,
}

/// How a boot ended.
pub(crate) struct End {
    /// The guest script's exit status, unless the machine ended before the script did.
    pub(crate) status: Option<i32>,
    machine: watch::End,
}

impl End {
    /// Why there is no exit status.
    pub(crate) fn why(&self) -> String {
        match self.machine {
            watch::End::Overdue(limit) => format!("the virtual machine was killed after {} s", limit.as_secs()),
            watch::End::LogFull => "the virtual machine was killed because it filled its console's log".to_owned(),
            watch::End::Itself | watch::End::Stopped => "the virtual machine ended before the command did".to_owned(),
        }
    }
}

impl<'a> Job<'a> {
    /// Writes what the guest needs: `script` is run there by /bin/sh in `repo`, with UDRV_BIN and UDRV_VM_RUN set.
    pub(crate) fn new(repo: &Path, kernel: &'a Kernel, script: &str) -> Result<Self> {
        let target = target_dir(repo)?;
        let folder = RunFolder::new(&target.join("vm"), "host")?;
        let config = [("repo", repo), ("run", &folder.path), ("target", &target), ("kernel", &kernel.dir)]
            .map(|(name, path)| format!("{name}={}\n", shell_quote(&path.to_string_lossy())))
            .concat();
        fs::write(folder.file("config"), config)?;
        let path = std::env::var("PATH").unwrap_or_default();
        let prelude = format!(
            "export PATH={}:{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root\n\
             export UDRV_BIN={} UDRV_VM_RUN={}\ncd {} || exit 125\n",
            shell_quote(&target.join("debug").to_string_lossy()),
            shell_quote(&path),
            shell_quote(&target.join("debug").to_string_lossy()),
            shell_quote(&folder.path.to_string_lossy()),
            shell_quote(&repo.to_string_lossy()),
        );
        fs::write(folder.file("main.sh"), prelude + script)?;
        Ok(Job { kernel, command_line: KERNEL_COMMAND_LINE.to_owned(), devices: &[], folder })
    }

    /// Adds `options` to the kernel's command line; where one is given twice, the kernel takes the last.
    pub(crate) fn with_kernel_options(mut self, options: &str) -> Self {
        self.command_line = format!("{} {options}", self.command_line);
        self
    }

    /// Adds options of QEMU's, for devices that only this run has.
    pub(crate) fn with_devices(mut self, devices: &'static [&'static str]) -> Self {
        self.devices = devices;
        self
    }

    /// Boots, runs the script, waits for the end. `on_output` is given what the guest writes to ttyS1.
    pub(crate) fn boot(&self, console: Console, mut on_output: impl FnMut(&[u8]) -> Result<()>) -> Result<End> {
        let initramfs = self.folder.file("initramfs");
        let (disk, usb_disk) = (self.folder.file("nvme.img"), self.folder.file("usb.img"));
        initramfs::build(self.kernel, &MODULES, include_str!("init.sh"), &initramfs)?;
        for (image, bytes) in [(&disk, NVME_BYTES), (&usb_disk, USB_BYTES)] {
            let created = fs::File::create(image).and_then(|file| file.set_len(bytes));
            created.with_context(|| format!("cannot create {}", image.display()))?;
        }
        let mut qemu = self.qemu(console, &initramfs, &disk, &usb_disk)?;
        let machine = match console {
            Console::Interactive => {
                qemu.wait().context("cannot wait for QEMU")?;
                watch::End::Itself
            }
            Console::Output(limit) => {
                watch(&mut qemu, limit, &self.folder.log(), |bytes| on_output(bytes).map(ControlFlow::Continue))?
            }
        };
        fs::remove_file(&initramfs)?;
        fs::remove_file(&disk)?;
        fs::remove_file(&usb_disk)?;
        let status = fs::read_to_string(self.folder.file("status")).ok().and_then(|text| text.trim().parse().ok());
        Ok(End { status, machine })
    }

    fn qemu(&self, console: Console, initramfs: &Path, disk: &Path, usb_disk: &Path) -> Result<Child> {
        let log = escape(&self.folder.log());
        let mut qemu = dies_with_us(&find_program("qemu-system-x86_64").context("no QEMU")?);
        qemu.args(MACHINE);
        qemu.arg("-kernel").arg(&self.kernel.image).arg("-initrd").arg(initramfs);
        qemu.arg("-fsdev").arg("local,id=host,path=/,security_model=none,readonly=on,multidevs=remap");
        qemu.arg("-fsdev").arg(format!("local,id=share,path={},security_model=none", escape(&self.folder.path)));
        qemu.arg("-drive").arg(format!("id=nvme,if=none,format=raw,file={}", escape(disk)));
        // not -drive, which would go when the device that uses it is unplugged
        let usb = format!("driver=raw,node-name=usb,file.driver=file,file.filename={}", escape(usb_disk));
        qemu.arg("-blockdev").arg(usb);
        // QEMU's monitor, by which scenarios plug and unplug: one end listens, the guest's second PCI port is the other
        let monitor = escape(&self.folder.file("monitor"));
        qemu.arg("-chardev").arg(format!("socket,id=monitor,path={monitor},server=on,wait=off"));
        qemu.args(["-mon", "chardev=monitor,mode=readline"]);
        qemu.arg("-chardev").arg(format!("socket,id=to-monitor,path={monitor}"));
        let chardevs = match console {
            Console::Interactive => {
                [format!("stdio,id=console,mux=on,signal=off,logfile={log}"), "null,id=output".to_owned()]
            }
            Console::Output(_) => [format!("file,id=console,path={log}"), "stdio,id=output,signal=on".to_owned()],
        };
        for chardev in chardevs {
            qemu.arg("-chardev").arg(chardev);
        }
        // the two ISA ports come first, so that ttyS0 and ttyS1 are they
        qemu.args(["-serial", "chardev:console", "-serial", "chardev:output"]);
        // two PCI ports are the ends of one line: a scenario takes the first from the kernel, which keeps the other
        let line = escape(&self.folder.file("line"));
        qemu.arg("-chardev").arg(format!("socket,id=line,path={line},server=on,wait=off"));
        qemu.arg("-chardev").arg(format!("socket,id=far-end,path={line}"));
        qemu.args(["-device", "pci-serial,chardev=line,addr=8"]);
        qemu.args(["-device", "pci-serial,chardev=to-monitor,addr=9"]);
        qemu.args(["-device", "pci-serial,chardev=far-end,addr=0xc"]);
        // the other end of the USB serial port's line is a PCI port
        let line = escape(&self.folder.file("usbserial"));
        qemu.arg("-chardev").arg(format!("socket,id=usbserial,path={line},server=on,wait=off"));
        qemu.arg("-chardev").arg(format!("socket,id=to-usbserial,path={line}"));
        qemu.args(["-device", "pci-serial,chardev=to-usbserial,addr=0xb"]);
        qemu.args(self.devices);
        // what the USB sound device plays (`usbaudio.wav` in the run folder), at its own rate: nothing is resampled
        let played = escape(&self.folder.file("usbaudio.wav"));
        qemu.arg("-audiodev").arg(format!("wav,id=audio,path={played},out.frequency=48000"));
        if let Console::Interactive = console {
            qemu.args(["-mon", "chardev=console,mode=readline"]);
            qemu.arg("-append").arg(format!("{} quiet", self.command_line));
        } else {
            qemu.arg("-append").arg(&self.command_line);
            let errors = fs::File::create(self.folder.complaints())?;
            qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        }
        qemu.spawn().context("cannot start QEMU by setpriv")
    }
}

/// Cargo's target folder, wherever its configuration puts it.
pub(crate) fn target_dir(repo: &Path) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut metadata = Command::new(cargo);
    metadata.args(["metadata", "--no-deps", "--offline", "--format-version=1"]).current_dir(repo);
    let metadata: serde_json::Value = serde_json::from_str(&output_of(&mut metadata)?)?;
    let target = metadata.get("target_directory").and_then(serde_json::Value::as_str);
    target.map(PathBuf::from).context("cargo metadata does not name the target folder")
}

/// `word` as one word of a shell command.
pub(crate) fn shell_quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A path inside a QEMU option.
pub(crate) fn escape(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}
