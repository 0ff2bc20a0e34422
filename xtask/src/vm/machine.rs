//! One boot: a run folder shared with the guest, an initramfs, QEMU, and a deadline.

use super::kernel::{Kernel, find_program, output_of};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Modules the guest loads, with what they depend on, in this order.
const MODULES: [&str; 8] =
    ["virtio_pci", "9pnet_virtio", "9p", "overlay", "vfio_iommu_type1", "vfio-pci", "nvme", "e1000e"];

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
    "nvme,drive=nvme,serial=udrv,addr=6",
    // without the boot ROM, which no package here brings
    "-device",
    "e1000e,romfile=,addr=7",
    "-nic",
    "none",
    // USB; its drivers are loaded by the scenarios that want them (`modprobe`)
    "-device",
    "qemu-xhci,id=xhci,addr=0xa",
    "-device",
    "usb-storage,bus=xhci.0,port=1,drive=usb,serial=udrv,id=usbdisk",
    "-device",
    "usb-kbd,bus=xhci.0,port=2,id=usbkbd",
];

/// `no_timer_check`: on a busy host the emulated timer is too late for the kernel's check of it, which would panic.
/// `8250.nr_uarts`: serial ports beyond the fourth.
/// `panic=-1` with QEMU's `-no-reboot`: a guest that panics ends the machine.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 intel_iommu=on panic=-1 oops=panic 8250.nr_uarts=8 no_timer_check";

/// The image behind the NVMe device, and that behind the USB disk, which the guest sees too (`usb.img` in the run folder).
const DISK_BYTES: u64 = 64 << 20;

/// How many run folders are kept.
const KEPT_RUNS: usize = 8;

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
    /// Shared with the guest, at the same path there, and writable.
    pub(crate) dir: PathBuf,
}

/// How a boot ended.
pub(crate) struct End {
    /// The guest script's exit status, unless the machine ended before the script did.
    pub(crate) status: Option<i32>,
    overdue: Option<Duration>,
}

impl End {
    /// Why there is no exit status.
    pub(crate) fn why(&self) -> String {
        match self.overdue {
            Some(limit) => format!("the virtual machine was killed after {} s", limit.as_secs()),
            None => "the virtual machine ended before the command did".to_owned(),
        }
    }
}

impl<'a> Job<'a> {
    /// Writes what the guest needs: `script` is run there by /bin/sh in `repo`, with UDRV_BIN and UDRV_VM_RUN set.
    pub(crate) fn new(repo: &Path, kernel: &'a Kernel, script: &str) -> Result<Self> {
        let target = target_dir(repo)?;
        let cache = target.join("vm");
        remove_old_runs(&cache)?;
        let dir = cache.join(format!("run-{}", std::process::id()));
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot remove the old {}", dir.display()))?;
        }
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let config = [("repo", repo), ("run", &dir), ("target", &target), ("kernel", &kernel.dir)]
            .map(|(name, path)| format!("{name}={}\n", shell_quote(&path.to_string_lossy())))
            .concat();
        fs::write(dir.join("config"), config)?;
        let path = std::env::var("PATH").unwrap_or_default();
        let prelude = format!(
            "export PATH={}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root\n\
             export UDRV_BIN={} UDRV_VM_RUN={}\ncd {} || exit 125\n",
            shell_quote(&path),
            shell_quote(&target.join("debug").to_string_lossy()),
            shell_quote(&dir.to_string_lossy()),
            shell_quote(&repo.to_string_lossy()),
        );
        fs::write(dir.join("main.sh"), prelude + script)?;
        Ok(Job { kernel, dir })
    }

    /// The guest's console log.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Boots, runs the script, waits for the end. `on_output` is given what the guest writes to ttyS1.
    pub(crate) fn boot(&self, console: Console, mut on_output: impl FnMut(&[u8]) -> Result<()>) -> Result<End> {
        let initramfs = self.dir.join("initramfs");
        let (disk, usb_disk) = (self.dir.join("nvme.img"), self.dir.join("usb.img"));
        build_initramfs(self.kernel, &self.dir, &initramfs).context("cannot build the initramfs")?;
        for image in [&disk, &usb_disk] {
            let created = fs::File::create(image).and_then(|file| file.set_len(DISK_BYTES));
            created.with_context(|| format!("cannot create {}", image.display()))?;
        }
        let mut qemu = self.qemu(console, &initramfs, &disk, &usb_disk)?;
        let overdue = match console {
            Console::Interactive => {
                qemu.wait().context("cannot wait for QEMU")?;
                None
            }
            Console::Output(limit) => {
                let ended = supervise(&mut qemu, limit, &mut on_output);
                if !matches!(ended, Ok(true)) {
                    // fails only if it has ended by itself meanwhile
                    drop(qemu.kill());
                }
                qemu.wait().context("cannot wait for QEMU")?;
                (!ended?).then_some(limit)
            }
        };
        fs::remove_file(&initramfs)?;
        fs::remove_file(&disk)?;
        fs::remove_file(&usb_disk)?;
        let status = fs::read_to_string(self.dir.join("status")).ok().and_then(|text| text.trim().parse().ok());
        Ok(End { status, overdue })
    }

    fn qemu(&self, console: Console, initramfs: &Path, disk: &Path, usb_disk: &Path) -> Result<Child> {
        let log = escape(&self.log());
        let mut qemu = Command::new("setpriv"); // whatever ends us, QEMU does not stay behind
        qemu.args(["--pdeathsig", "KILL"]).arg(find_program("qemu-system-x86_64").context("no QEMU")?);
        qemu.args(MACHINE);
        qemu.arg("-kernel").arg(&self.kernel.image).arg("-initrd").arg(initramfs);
        qemu.arg("-fsdev").arg("local,id=host,path=/,security_model=none,readonly=on,multidevs=remap");
        qemu.arg("-fsdev").arg(format!("local,id=share,path={},security_model=none", escape(&self.dir)));
        qemu.arg("-drive").arg(format!("id=nvme,if=none,format=raw,file={}", escape(disk)));
        // not -drive, which would go when the device that uses it is unplugged
        let usb = format!("driver=raw,node-name=usb,file.driver=file,file.filename={}", escape(usb_disk));
        qemu.arg("-blockdev").arg(usb);
        // QEMU's monitor, by which scenarios plug and unplug: one end listens, the guest's second PCI port is the other
        let monitor = escape(&self.dir.join("monitor"));
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
        qemu.args(["-chardev", "null,id=pci", "-device", "pci-serial,chardev=pci,addr=8"]);
        qemu.args(["-device", "pci-serial,chardev=to-monitor,addr=9"]);
        if let Console::Interactive = console {
            qemu.args(["-mon", "chardev=console,mode=readline"]);
            qemu.arg("-append").arg(format!("{KERNEL_COMMAND_LINE} quiet"));
        } else {
            qemu.arg("-append").arg(KERNEL_COMMAND_LINE);
            let errors = fs::File::create(self.dir.join("qemu"))?;
            qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        }
        qemu.spawn().context("cannot start QEMU by setpriv")
    }

    /// For a failure's report: what QEMU complained of, the end of the console log, and where it is.
    pub(crate) fn log_tail(&self) -> String {
        let complaints = fs::read_to_string(self.dir.join("qemu")).unwrap_or_default();
        let log = fs::read(self.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(60)..).unwrap_or_default().join("\n");
        format!("{complaints}--- end of {} ---\n{tail}\n---", self.log().display())
    }
}

/// Passes on what QEMU writes until it ends (true) or the time is over (false).
fn supervise(qemu: &mut Child, limit: Duration, on_output: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<bool> {
    let deadline = Instant::now() + limit;
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
    loop {
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(bytes) => on_output(&bytes)?,
            Err(RecvTimeoutError::Disconnected) => return Ok(true),
            Err(RecvTimeoutError::Timeout) => return Ok(false),
        }
    }
}

/// busybox, `init.sh` as /init, and the modules, listed in load order in `modules.order`.
fn build_initramfs(kernel: &Kernel, dir: &Path, archive: &Path) -> Result<()> {
    let tree = dir.join("initramfs.d");
    fs::create_dir_all(tree.join("bin"))?;
    fs::create_dir_all(tree.join("dev"))?;
    fs::create_dir_all(tree.join("modules"))?;
    fs::copy(find_program("busybox").context("no busybox")?, tree.join("bin/busybox"))?;
    fs::write(tree.join("init"), include_str!("init.sh"))?;
    fs::set_permissions(tree.join("init"), fs::Permissions::from_mode(0o755))?;
    let mut order = String::new();
    for module in modules(kernel)? {
        let name = module.file_name().context("a module without a name")?.to_string_lossy().into_owned();
        let plain = name.strip_suffix(".xz").unwrap_or(&name);
        let copy = tree.join("modules").join(plain);
        if plain == name {
            fs::copy(&module, copy)?;
        } else {
            let unpacked = Command::new("xz").arg("-dc").arg(&module).output().context("cannot start xz")?;
            ensure!(unpacked.status.success(), "cannot unpack {}", module.display());
            fs::write(copy, unpacked.stdout)?;
        }
        order += &format!("{plain}\n");
    }
    fs::write(tree.join("modules.order"), order)?;
    let files = output_of(Command::new("find").arg(".").current_dir(&tree))?;
    let mut cpio = Command::new("cpio")
        .args(["--quiet", "--create", "--format=newc"])
        .current_dir(&tree)
        .stdin(Stdio::piped())
        .stdout(fs::File::create(archive)?)
        .spawn()
        .context("cannot start cpio")?;
    cpio.stdin.take().context("no pipe to cpio")?.write_all(files.as_bytes())?;
    ensure!(cpio.wait()?.success(), "cpio failed");
    fs::remove_dir_all(&tree)?;
    Ok(())
}

/// The files of `MODULES` and of all they depend on, dependencies first, each once; what is built into the kernel has none.
fn modules(kernel: &Kernel) -> Result<Vec<PathBuf>> {
    let modprobe = find_program("modprobe").context("no modprobe")?;
    let mut files: Vec<PathBuf> = Vec::new();
    for module in MODULES {
        let mut show = Command::new(&modprobe);
        show.arg("-d").arg(&kernel.dir).args(["-S", &kernel.version, "--show-depends", module]);
        for line in output_of(&mut show)?.lines() {
            // options from the host's modprobe.d may follow; they are not for this kernel
            let file = line.strip_prefix("insmod ").and_then(|rest| rest.split_whitespace().next()).map(PathBuf::from);
            files.extend(file.filter(|file| !files.contains(file)));
        }
    }
    Ok(files)
}

/// Removes the oldest run folders whose process has ended.
fn remove_old_runs(cache: &Path) -> Result<()> {
    let mut runs = Vec::new();
    for entry in fs::read_dir(cache).with_context(|| format!("cannot read {}", cache.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix("run-")).map(str::to_owned);
        if let Some(pid) = pid.filter(|pid| !Path::new("/proc").join(pid).exists()) {
            let age = entry.metadata().and_then(|metadata| metadata.modified())?;
            runs.push((age, cache.join(format!("run-{pid}"))));
        }
    }
    runs.sort();
    for (_, run) in runs.iter().rev().skip(KEPT_RUNS) {
        // another xtask may be removing the same one
        drop(fs::remove_dir_all(run));
    }
    Ok(())
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
fn escape(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}
