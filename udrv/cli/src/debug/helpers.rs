//! The debuggers' helpers: Python, in this binary, so that they are always of the same version as the rest.

use anyhow::{Context as _, Result};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, IntoRawFd as _};
use udrv_inspect::layout::{self, Table, device, domain, head, section, source};

/// Those of both debuggers, each before those that use it.
const SHARED: [(&str, &str); 3] = [
    ("udrv_page", include_str!("../../debugger/udrv_page.py")),
    ("udrv_commands", include_str!("../../debugger/udrv_commands.py")),
    ("udrv_printers", include_str!("../../debugger/udrv_printers.py")),
];
pub(super) const GDB: (&str, &str) = ("udrv_gdb", include_str!("../../debugger/udrv_gdb.py"));
pub(super) const LLDB: (&str, &str) = ("udrv_lldb", include_str!("../../debugger/udrv_lldb.py"));

/// The line of Python that loads one debugger's helpers. What it loads is in an inherited memfd: no file is left behind,
/// and nobody can change what the debugger runs.
pub(super) fn load(of: (&str, &str)) -> Result<String> {
    let layout = layout_module();
    let modules: Vec<_> = [("udrv_layout", layout.as_str())].into_iter().chain(SHARED).chain([of]).collect();
    let file = memfd_create(c"udrv.py", MFdFlags::empty()).context("making the debugger's helpers")?;
    let mut file = File::from(file);
    file.write_all(&serde_json::to_vec(&modules)?).context("writing the debugger's helpers")?;
    let fd = file.as_raw_fd();
    let _kept_over_exec = file.into_raw_fd();
    Ok(format!(
        "import json, os, sys, types; f = os.fdopen({fd}); _ = f.seek(0); code = json.load(f); f.close(); \
         _ = [exec(compile(text, name + '.py', 'exec'), sys.modules.setdefault(name, types.ModuleType(name)).__dict__) \
         for name, text in code]"
    ))
}

/// Where things are in the inspection page, in Python.
fn layout_module() -> String {
    let mut module = format!(
        "NAME = {:?}\nSIZE = {}\nMAGIC = ({}, {})\nVERSION = ({}, {})\n",
        layout::NAME,
        layout::WORDS * 8,
        head::MAGIC,
        layout::MAGIC,
        head::VERSION,
        layout::VERSION,
    );
    let tables = [
        ("DEVICES", layout::DEVICES),
        ("DOMAINS", layout::DOMAINS),
        ("SECTIONS", layout::SECTIONS),
        ("SOURCES", layout::SOURCES),
    ];
    for (name, Table { base, words, count }) in tables {
        let _ = writeln!(module, "{name} = ({base}, {words}, {count})");
    }
    let words = [
        ("PID", head::PID),
        ("HELD", head::HELD),
        ("HELD_SINCE", head::HELD_SINCE),
        ("DEVICE_MAP", device::MAP),
        ("DEVICE_MAP_LENGTH", device::MAP_LENGTH),
        ("DEVICE_ADDRESS", device::ADDRESS),
        ("DEVICE_ADDRESS_ROOM", device::ADDRESS_ROOM),
        ("DOMAIN_DELIVERY", domain::DELIVERY),
        ("SECTION_DOMAIN", section::DOMAIN),
        ("SECTION_THREAD", section::THREAD),
        ("SECTION_LINE", section::LINE),
        ("SECTION_FILE", section::FILE),
        ("SECTION_FILE_ROOM", section::FILE_ROOM),
        ("SOURCE_DEVICE", source::DEVICE),
        ("SOURCE_INDEX", source::INDEX),
        ("SOURCE_VECTOR", source::VECTOR),
        ("SOURCE_DOMAIN", source::DOMAIN),
        ("SOURCE_TAKEN", source::TAKEN),
        ("SOURCE_DELIVERED", source::DELIVERED),
        ("SOURCE_STORMED", source::STORMED),
        ("SOURCE_MARK", source::MARK),
        ("SOURCE_HANDLER", source::HANDLER),
    ];
    for (name, word) in words {
        let _ = writeln!(module, "{name} = {word}");
    }
    module
}
