//! `udrv info ADDR`.

use crate::capability::{Capability, Space, class_name};
use anyhow::Result;
use serde::Serialize;
use serde_json::Value;
use std::io::{BufWriter, Write};
use udrv::pci::Config;
use udrv_backend::{IrqIndex, RegionIndex};

#[derive(clap::Args)]
pub struct InfoArgs {
    /// The device.
    address: String,
    /// For scripts.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Info {
    address: String,
    vendor: String,
    device: String,
    class: String,
    class_name: &'static str,
    command: String,
    reset: bool,
    dma: bool,
    regions: Vec<Region>,
    irqs: Vec<Irq>,
    capabilities: Vec<Capability>,
}

#[derive(Serialize)]
struct Region {
    region: String,
    size_bytes: u64,
    flags: String,
    /// What its BAR register says.
    bar: Option<String>,
    /// What can be mapped of it.
    mappable: Vec<Area>,
}

#[derive(Serialize)]
struct Area {
    offset: u64,
    size_bytes: u64,
}

#[derive(Serialize)]
struct Irq {
    irq: String,
    vectors: u32,
    flags: String,
}

pub fn run(args: &InfoArgs) -> Result<()> {
    let device = crate::address::open(&args.address)?;
    let config = Config::new(&*device);
    let (vendor, id) = config.id()?;
    let class = config.class()?;
    let space = Space::of(&*device)?;
    let mut info = Info {
        address: args.address.clone(),
        vendor: format!("{vendor:04x}"),
        device: format!("{id:04x}"),
        class: format!("{class:06x}"),
        class_name: class_name(class),
        command: flag_names(&config.command()?),
        reset: device.resettable().is_some(),
        dma: device.dma().is_some(),
        regions: Vec::new(),
        irqs: Vec::new(),
        capabilities: space.capabilities()?,
    };
    for index in (0..device.info().regions).map(RegionIndex) {
        let region = device.region(index)?;
        if region.size > 0 {
            let flags = flag_names(&region.flags);
            let bar = if index.0 < 6 { space.bar(index.0.into())? } else { None };
            let mappable = region.mappable.iter().map(|area| Area { offset: area.offset, size_bytes: area.size });
            let mappable = mappable.collect();
            info.regions.push(Region { region: index.to_string(), size_bytes: region.size, flags, bar, mappable });
        }
    }
    for index in (0..device.info().irqs).map(IrqIndex) {
        let irq = device.irq(index)?;
        if irq.count > 0 {
            info.irqs.push(Irq { irq: index.to_string(), vectors: irq.count, flags: flag_names(&irq.flags) });
        }
    }
    let mut out = BufWriter::new(std::io::stdout().lock());
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&info)?)?;
    } else {
        print(&mut out, &info)?;
    }
    Ok(out.flush()?)
}

/// The names of the flags that are set, as `READ | WRITE`.
fn flag_names<F: bitflags::Flags>(flags: &F) -> String {
    let names: Vec<&str> = flags.iter_names().map(|(name, _)| name).collect();
    if names.is_empty() { "none".into() } else { names.join(" | ") }
}

fn print(out: &mut impl Write, info: &Info) -> std::io::Result<()> {
    writeln!(out, "{}  {}:{}  class {} ({})", info.address, info.vendor, info.device, info.class, info.class_name)?;
    writeln!(out, "  command       {}", info.command)?;
    writeln!(
        out,
        "  reset         {}",
        if info.reset { "yes" } else { "none: the device keeps its state between drivers" }
    )?;
    writeln!(out, "  DMA           {}", if info.dma { "yes" } else { "no" })?;
    for region in &info.regions {
        let bar = region.bar.as_deref().map(|bar| format!("  {bar}")).unwrap_or_default();
        writeln!(out, "  region {:<6} {:>#10x} bytes  {}{bar}", region.region, region.size_bytes, region.flags)?;
        for Area { offset, size_bytes } in &region.mappable {
            writeln!(out, "    mappable    {size_bytes:>#10x} bytes at {offset:#x}")?;
        }
    }
    for irq in &info.irqs {
        writeln!(out, "  irq {:<9} {:>4} vector(s)  {}", irq.irq, irq.vectors, irq.flags)?;
    }
    for capability in &info.capabilities {
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            Value::Bool(flag) => if *flag { "yes" } else { "no" }.into(),
            other => other.to_string(),
        };
        let fields =
            capability.fields.iter().map(|(name, value)| format!("{} {}", name.replace('_', " "), text(value)));
        let fields: Vec<_> = fields.collect();
        let Capability { offset, id, name, .. } = capability;
        writeln!(out, "  capability    {id:#04x} at {offset:#05x}  {name}  {}", fields.join(", "))?;
    }
    Ok(())
}
