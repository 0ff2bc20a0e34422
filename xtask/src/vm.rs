//! The virtual machine with a real VFIO host in it: QEMU's full emulation (no KVM needed) boots Debian's stock kernel with an
//! IOMMU and PCI devices, and inside is the host's own user land, read-only below an overlay.
//!
//! Here is the command line. `vm/apt.rs` and `vm/kernel.rs` get programs and kernel, `vm/machine.rs` boots them, `vm/init.sh` is the
//! guest's first process, and `vm/scenarios.rs` runs `tests/vm/NN-name.sh` (one boot for all).
//!
//! Beside it, another machine: `vm/vfio_user.rs` shows the stub's device to a stock kernel through a newer QEMU's vfio-user client.

mod apt;
mod bench_usb;
mod initramfs;
mod kernel;
mod machine;
mod newer_qemu;
mod run_folder;
mod scenarios;
mod verdict;
mod vfio_user;
mod watch;

pub(crate) use apt::{install_missing, output_of};
pub(crate) use bench_usb::run as bench_usb;
pub(crate) use kernel::install_test_programs;
pub(crate) use machine::target_dir;
pub(crate) use scenarios::{run_scenarios, titles};
pub(crate) use verdict::{Verdict, conclude};
pub(crate) use vfio_user::{run as run_vfio_user, tests as vfio_user_tests};

use anyhow::{Context as _, Result, bail};
use machine::{Console, Job, shell_quote};
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  cargo xtask vm --shell                      look around; stub-driver and udrv are in PATH\n  \
cargo xtask vm -- stub-driver list          one command\n  cargo xtask vm -- tests/vm/00-host.sh       one scenario\n  \
cargo xtask vm --kernel-options intel_iommu=off --shell   a machine without an IOMMU\n\n\
Debian's stock kernel with an IOMMU and VFIO, two edu devices (00:04.0, 00:05.0), NVMe (00:06.0), e1000 (00:07.0), a serial port \
(00:08.0); the host's files below an overlay, so that nothing done inside reaches the host."
)]
pub(crate) struct VmArgs {
    /// Open a shell in the virtual machine (Ctrl-A x ends the machine).
    #[arg(long, conflicts_with = "command")]
    shell: bool,
    /// Take the binaries as they are instead of building them first.
    #[arg(long)]
    no_build: bool,
    /// How long boot and command may take together, in seconds (a shell may take forever).
    #[arg(long, default_value_t = 300, value_name = "SECS")]
    timeout: u64,
    /// Options added to the kernel's command line, such as `intel_iommu=off`.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "OPTIONS")]
    kernel_options: String,
    /// The command to run in the virtual machine, as root, in the repository's folder; its exit status is passed on.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// `cargo xtask vm`: a shell or one command. Ends the process with the guest command's exit status if that is not 0.
pub(crate) fn run(args: &VmArgs) -> Result<()> {
    let repo = repo_root();
    let (console, script) = if args.shell {
        (Console::Interactive, shell_script())
    } else if args.command.is_empty() {
        bail!("what should run in the virtual machine? Give `--shell`, or a command after `--`");
    } else {
        (Console::Output(Duration::from_secs(args.timeout)), command_script(&args.command))
    };
    if !args.no_build {
        build_binaries()?;
    }
    let cache = machine::target_dir(&repo)?.join("vm");
    let kernel = kernel::prepare(&cache).context("the virtual machine cannot run here")?;
    let job = Job::new(&repo, &kernel, &script)?.with_kernel_options(&args.kernel_options);
    let end = job.boot(console, |output| {
        let mut stdout = std::io::stdout();
        stdout.write_all(output).and_then(|()| stdout.flush()).context("cannot write the guest's output")
    })?;
    match end.status {
        Some(0) => Ok(()),
        Some(status) => std::process::exit(status),
        None if args.shell => Ok(()), // left by Ctrl-A x
        None => bail!("{}\n{}", end.why(), job.folder.log_tail()),
    }
}

/// Runs one command in the virtual machine, which has `more` of QEMU's options, for what it says; that is shown too.
pub(crate) fn capture(command: &[String], more: &'static [&'static str], limit: Duration) -> Result<String> {
    build_binaries()?;
    let repo = repo_root();
    let kernel =
        kernel::prepare(&machine::target_dir(&repo)?.join("vm")).context("the virtual machine cannot run here")?;
    let job = Job::new(&repo, &kernel, &command_script(command))?.with_devices(more);
    let mut said = Vec::new();
    let end = job.boot(Console::Output(limit), |output| {
        said.extend_from_slice(output);
        let mut stdout = std::io::stdout();
        stdout.write_all(output).and_then(|()| stdout.flush()).context("cannot write the guest's output")
    })?;
    match end.status {
        Some(0) => Ok(String::from_utf8_lossy(&said).into_owned()),
        Some(status) => bail!("{command:?} ended with {status} in the virtual machine"),
        None => bail!("{}\n{}", end.why(), job.folder.log_tail()),
    }
}

/// What is to be run in the machines, and beside them.
pub(crate) fn build_binaries() -> Result<()> {
    let arguments = ["build", "--quiet", "--workspace", "--bins", "--examples", "--locked"];
    eprintln!("building what runs in the machine (the first time, that takes some minutes) ...");
    crate::succeed(crate::cargo().args(arguments).stdin(std::process::Stdio::null()))
}

/// The repository this xtask belongs to.
pub(crate) fn repo_root() -> PathBuf {
    let xtask = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let xtask = PathBuf::from(xtask);
    xtask.parent().map_or_else(|| xtask.clone(), PathBuf::from)
}

fn command_script(command: &[String]) -> String {
    let words: Vec<String> = command.iter().map(|word| shell_quote(word)).collect();
    // The guest's serial port looks like a terminal, whatever our output is.
    let plain = if std::io::stdout().is_terminal() { "" } else { "export NO_COLOR=1\n" };
    format!("stty -F /dev/ttyS1 raw\nexec </dev/null >/dev/ttyS1 2>&1\n{plain}{}\n", words.join(" "))
}

/// A login-like shell on the serial console, as large as the terminal it is shown in.
fn shell_script() -> String {
    let term = std::env::var("TERM").unwrap_or_else(|_| "dumb".into());
    let size = std::process::Command::new("stty").arg("size").stdin(std::process::Stdio::inherit()).output();
    let size = size.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned()).unwrap_or_default();
    let resize = match size.split_once(' ') {
        Some((rows, columns)) => format!("stty -F /dev/ttyS0 rows {rows} cols {columns}\n"),
        None => String::new(),
    };
    format!(
        "{resize}export TERM={}\nexec setsid --ctty --wait bash -i </dev/ttyS0 >/dev/ttyS0 2>&1\n",
        shell_quote(&term)
    )
}
