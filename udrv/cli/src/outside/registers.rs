//! `udrv regs`, `udrv poke`.

use super::reach::Reach;
use super::{Who, device, say, say_of, split};
use anyhow::{Result, anyhow, bail};
use clap::Args;
use udrv_inspect::{DeviceState, Register, Registers};

#[derive(Args)]
pub struct RegsArgs {
    /// The device's address, if there are several; and a register's name, a part of it, or its offset.
    #[arg(value_name = "ADDR | NAME | OFFSET")]
    words: Vec<String>,
    #[command(flatten)]
    who: Who,
    /// Read also registers whose reading changes the device.
    #[arg(long)]
    force: bool,
}

#[derive(Args)]
#[command(after_help = "Examples:\n  udrv poke status 0x80\n  udrv poke unix:/run/udrv/edu.sock 0x60 1")]
pub struct PokeArgs {
    /// The device's address, if there are several; a register's name, a part of it, or its offset; and the value.
    #[arg(value_name = "ADDR | NAME | OFFSET | VALUE", required = true)]
    words: Vec<String>,
    #[command(flatten)]
    who: Who,
}

fn map(device: &DeviceState) -> Result<&Registers> {
    let none = || anyhow!("the driver of {} has told of no registers (udrv::inspect::describe)", device.address);
    device.registers.as_ref().ok_or_else(none)
}

pub fn regs(args: &RegsArgs) -> Result<()> {
    let (address, rest) = split(&args.words);
    let found = args.who.find(address)?;
    let device = device(&found, address)?;
    let map = map(device)?;
    let wanted: Vec<_> = if rest.is_empty() {
        map.registers.iter().collect()
    } else {
        vec![map.find(&rest.join(" ")).map_err(|why| anyhow!(why))?]
    };
    let reach = Reach::of(found.pid, device)?;
    let mut all = Vec::new();
    for register in wanted {
        let may = register.readable || (register.read_effect && args.force);
        let value = if may { Some(reach.peek(map.region, register.offset, register.width)?) } else { None };
        if args.who.json {
            all.push(serde_json::json!({ "name": register.name, "offset": register.offset,
                "width_bits": register.width, "value": value, "bits": value.map(|value| register.decode(value)).filter(|bits| !bits.is_empty()) }));
        } else {
            say(&line(register, value))?;
        }
    }
    if args.who.json { say_of(&found, device, "registers", &all) } else { Ok(()) }
}

fn line(register: &Register, value: Option<u64>) -> String {
    let digits = 2 + (register.width / 4) as usize;
    let value = match value {
        Some(value) => format!("{value:#0digits$x}  {}", register.decode(value)),
        None if register.read_effect => "not read: that would change the device (--force)".into(),
        None => "write only".into(),
    };
    format!("{:<26} {:#06x}  {value}", register.name, register.offset).trim_end().to_owned()
}

pub fn poke(args: &PokeArgs) -> Result<()> {
    let (address, rest) = split(&args.words);
    let Some((value, name)) = rest.split_last().filter(|(_, name)| !name.is_empty()) else {
        bail!("which register, and what value? See udrv poke --help");
    };
    let value = number(value).ok_or_else(|| anyhow!("`{value}` is no value: expected a number such as 0x80"))?;
    let found = args.who.find(address)?;
    let device = device(&found, address)?;
    let map = map(device)?;
    let register = map.find(&name.join(" ")).map_err(|why| anyhow!(why))?;
    if !register.writable {
        bail!("{} is read only", register.name);
    }
    if register.width < 64 && value >> register.width != 0 {
        bail!("{value:#x} has more bits than {}, which has {}", register.name, register.width);
    }
    Reach::of(found.pid, device)?.poke(map.region, register.offset, register.width, value)
}

/// A number, decimal or hexadecimal.
pub fn number(text: &str) -> Option<u64> {
    text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |digits| u64::from_str_radix(digits, 16).ok())
}
