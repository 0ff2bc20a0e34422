//! `udrv usb list`.

use anyhow::Result;
use udrv_usb::host::{Host, Listed};

#[derive(clap::Args)]
pub struct ListArgs {
    /// For scripts.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &ListArgs) -> Result<()> {
    let devices = Host::new()?.list()?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&devices)?);
        return Ok(());
    }
    if devices.is_empty() {
        println!("no USB bus on this machine");
    }
    devices.iter().for_each(print);
    Ok(())
}

/// A line a device, indented as it hangs in the tree, and one below it for each interface.
fn print(device: &Listed) {
    let indent = "  ".repeat(device.ports.len());
    let names: Vec<&str> = [&device.manufacturer, &device.name].into_iter().flatten().map(String::as_str).collect();
    let serial = device.serial.as_ref().map(|serial| format!("  serial {serial}")).unwrap_or_default();
    println!(
        "{indent}{}  {:04x}:{:04x}  {}  {}  {}{serial}",
        device.address,
        device.vendor,
        device.product,
        device.speed,
        device.class,
        names.join(" ")
    );
    for interface in &device.interfaces {
        let driver = interface.driver.as_deref().unwrap_or("no driver");
        println!("{indent}  interface {}  {}  {driver}", interface.number, interface.class);
    }
}
