//! `udrv usb list`.

use anyhow::Result;
use std::io::{BufWriter, Write};
use udrv_usb::host::{Host, Listed};

#[derive(clap::Args)]
pub struct ListArgs {
    /// For scripts.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &ListArgs) -> Result<()> {
    let devices = Host::new()?.list()?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&serde_json::json!({ "devices": devices }))?)?;
    } else if devices.is_empty() {
        writeln!(out, "no USB bus on this machine")?;
    } else {
        devices.iter().try_for_each(|device| print(&mut out, device))?;
    }
    Ok(out.flush()?)
}

/// A line a device, indented as it hangs in the tree, and one below it for each interface.
fn print(out: &mut impl Write, device: &Listed) -> std::io::Result<()> {
    let indent = "  ".repeat(device.ports.len());
    let names: Vec<&str> = [&device.manufacturer, &device.name].into_iter().flatten().map(String::as_str).collect();
    let serial = device.serial.as_ref().map(|serial| format!("  serial {serial}")).unwrap_or_default();
    writeln!(
        out,
        "{indent}{}  {:04x}:{:04x}  {}  {}  {}{serial}",
        device.address,
        device.vendor,
        device.product,
        device.speed,
        device.class,
        names.join(" ")
    )?;
    for interface in &device.interfaces {
        let driver = interface.driver.as_deref().unwrap_or("no driver");
        writeln!(out, "{indent}  interface {}  {}  {driver}", interface.number, interface.class)?;
    }
    Ok(())
}
