//! `udrv info ADDR`.

use anyhow::Result;
use serde::Serialize;
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
    size: u64,
    flags: String,
}

#[derive(Serialize)]
struct Irq {
    irq: String,
    vectors: u32,
    flags: String,
}

#[derive(Serialize)]
struct Capability {
    offset: u8,
    id: u8,
    name: &'static str,
}

pub fn run(args: &InfoArgs) -> Result<()> {
    let device = crate::address::open(&args.address)?;
    let config = Config::new(&*device);
    let (vendor, id) = config.id()?;
    let mut info = Info {
        address: args.address.clone(),
        vendor: format!("{vendor:04x}"),
        device: format!("{id:04x}"),
        class: format!("{:06x}", config.class()?),
        command: flag_names(&config.command()?),
        reset: device.resettable().is_some(),
        dma: device.dma().is_some(),
        regions: Vec::new(),
        irqs: Vec::new(),
        capabilities: Vec::new(),
    };
    for index in (0..device.info().regions).map(RegionIndex) {
        let region = device.region(index)?;
        if region.size > 0 {
            let flags = flag_names(&region.flags);
            info.regions.push(Region { region: index.to_string(), size: region.size, flags });
        }
    }
    for index in (0..device.info().irqs).map(IrqIndex) {
        let irq = device.irq(index)?;
        if irq.count > 0 {
            info.irqs.push(Irq { irq: index.to_string(), vectors: irq.count, flags: flag_names(&irq.flags) });
        }
    }
    for capability in config.capabilities()? {
        let name = capability.name();
        info.capabilities.push(Capability { offset: capability.offset, id: capability.id, name });
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&info)?);
    } else {
        print(&info);
    }
    Ok(())
}

/// The names of the flags that are set, as `READ | WRITE`.
fn flag_names<F: bitflags::Flags>(flags: &F) -> String {
    let names: Vec<&str> = flags.iter_names().map(|(name, _)| name).collect();
    if names.is_empty() { "none".into() } else { names.join(" | ") }
}

fn print(info: &Info) {
    println!("{}  {}:{}  class {}", info.address, info.vendor, info.device, info.class);
    println!("  command       {}", info.command);
    println!("  reset         {}", if info.reset { "yes" } else { "none: the device keeps its state between drivers" });
    println!("  DMA           {}", if info.dma { "yes" } else { "no" });
    for region in &info.regions {
        println!("  region {:<6} {:>#10x} bytes  {}", region.region, region.size, region.flags);
    }
    for irq in &info.irqs {
        println!("  irq {:<9} {:>4} vector(s)  {}", irq.irq, irq.vectors, irq.flags);
    }
    for capability in &info.capabilities {
        println!("  capability    {:#04x} at {:#04x}  {}", capability.id, capability.offset, capability.name);
    }
}
