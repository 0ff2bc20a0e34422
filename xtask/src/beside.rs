//! The steps that boot machines, beside the others: an emulated machine is busy for a quarter of an hour and leaves a core idle. They
//! run in an xtask of their own, whose output goes to a file and is shown whole at the end.

use crate::stub::dies_with_us;
use crate::vm::{self, RunFolder};
use anyhow::{Context as _, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

pub(crate) struct Beside {
    process: Child,
    folder: Folder,
}

/// What the two have in common.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// The programs for the machines, which stay as they are: into cargo's folder, another step may put the same ones with other
    /// features meanwhile.
    pub(crate) fn programs(&self) -> PathBuf {
        self.0.join("programs")
    }

    /// How each step ended, and what to do next.
    pub(crate) fn overview(&self) -> PathBuf {
        self.0.join("overview")
    }

    fn output(&self) -> PathBuf {
        self.0.join("output")
    }

    /// Makes links, since programs are large; who builds one anew makes a new file.
    fn set_programs_aside(&self, built: &Path) -> Result<()> {
        for within in ["", "examples"] {
            let (from, to) = (built.join(within), self.programs().join(within));
            fs::create_dir_all(&to)?;
            for entry in fs::read_dir(&from).with_context(|| format!("cannot read {}", from.display()))? {
                let entry = entry?;
                let name = entry.file_name();
                let is_program = entry.file_type()?.is_file() && !name.to_string_lossy().contains('.');
                if is_program {
                    fs::hard_link(entry.path(), to.join(&name))
                        .with_context(|| format!("cannot link {} below {}", entry.path().display(), to.display()))?;
                }
            }
        }
        Ok(())
    }
}

impl Beside {
    /// Builds what the machines run and starts the steps that boot them, with `filter`.
    pub(crate) fn start(repo: &Path, filter: &str) -> Result<Self> {
        vm::build_programs()?;
        let folder = Folder::new(RunFolder::new(&vm::target_dir(repo)?.join("vm"), "beside")?.path);
        folder.set_programs_aside(&vm::programs(repo)?)?;
        let output = fs::File::create(folder.output())?;
        println!(
            "==== the machines run beside what follows; their output comes at the end, and is in {}",
            folder.output().display()
        );
        // Ourselves; by its name, cargo may have put another build there.
        let program = format!("/proc/{}/exe", std::process::id());
        let process = dies_with_us(program.as_ref())
            .args(["test", "--beside"])
            .arg(&folder.0)
            .arg(filter)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("cannot start another xtask by setpriv")?;
        Ok(Self { process, folder })
    }

    /// Waits for its end and shows its output. Gives whether all its steps are well, and its overview.
    pub(crate) fn finish(mut self) -> Result<(bool, String)> {
        let status = self.process.wait()?;
        println!("\n==== the machines' output");
        println!("{}", String::from_utf8_lossy(&fs::read(self.folder.output())?));
        fs::remove_dir_all(self.folder.programs())?;
        let overview = fs::read_to_string(self.folder.overview());
        let overview = overview.with_context(|| format!("what ran the machines did not come to its end ({status})"))?;
        Ok((status.success(), overview))
    }
}
