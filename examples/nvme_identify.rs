//! Brings up an NVMe controller's admin queue, asks it who it is, and shuts it down again.
//!
//! `cargo run -p udrv-examples --bin nvme_identify -- pci:0000:00:06.0`
//!
//! Sections are those of the NVM Express Base Specification, revision 1.4.

use std::time::Duration;
use udrv::backend::register::{ReadOnly, ReadWrite, Register};
use udrv::clock::Deadline;
use udrv::dma::{FromDevice, Pool};
use udrv::mmio::{Io as _, Window, order};
use udrv::pci::{Command, Config, quiesce};
use udrv_backend::RegionIndex;

const CAP: Register<u64, ReadOnly> = Register::new("CAP", 0x00); // 3.1.1
const CC: Register<u32, ReadWrite> = Register::new("CC", 0x14); // 3.1.5
const CSTS: Register<u32, ReadOnly> = Register::new("CSTS", 0x1c); // 3.1.6
const AQA: Register<u32, ReadWrite> = Register::new("AQA", 0x24); // 3.1.8
const ASQ: Register<u64, ReadWrite> = Register::new("ASQ", 0x28); // 3.1.9
const ACQ: Register<u64, ReadWrite> = Register::new("ACQ", 0x30); // 3.1.10
const SQ0TDBL: Register<u32, ReadWrite> = Register::new("SQ0TDBL", 0x1000); // 3.1.24

fn main() -> anyhow::Result<()> {
    let device = udrv_examples::device_from_arguments()?;
    anyhow::ensure!(Config::new(&*device).class()? == 0x01_08_02, "{} is no NVMe controller", device.info().address);
    Config::new(&*device).change_command(Command::MEMORY_SPACE | Command::BUS_MASTER, Command::empty())?;
    let io: Window<0x2000> = Window::open(&device, RegionIndex::BAR0)?;

    // CAP.TO is the longest wait for CSTS.RDY, in units of 500 ms.
    let limit = Duration::from_millis(500) * (io.read(CAP)? >> 24 & 0xff).max(1) as u32;
    let ready = |wanted: u32| Deadline::after(limit).poll("CSTS.RDY", || Ok(io.read(CSTS)? & 1 == wanted));
    io.write(CC, 0)?;
    ready(0)?;

    // 7.6.1: two queues of two entries, then CC.EN with 64-byte commands and 16-byte completions.
    let pool = Pool::new(device.clone(), 1 << 16, 64)?;
    let (commands, completions) = (pool.alloc_coherent(4096)?, pool.alloc_coherent(4096)?);
    io.write(AQA, 1 << 16 | 1)?;
    io.write(ASQ, commands.iova())?;
    io.write(ACQ, completions.iova())?;
    io.write(CC, 4 << 20 | 6 << 16 | 1)?;
    ready(1)?;

    // 5.15: Identify (06h), CNS 01h: the controller. Command Dword 0, PRP entry 1, Command Dword 10.
    let answer = pool.alloc::<FromDevice>(4096)?.submit();
    commands.write(0, 0x06u32)?;
    commands.write(24, answer.iova())?;
    commands.write(40, 0x01u32)?;
    order::dma_wmb(); // the command, then the doorbell
    io.write(SQ0TDBL, 1)?;

    // 4.6.1: the phase tag of a new entry is 1; the status field is above it, 0 for success.
    let arrived = || Ok(completions.read::<u32>(12)? & 1 << 16 != 0);
    Deadline::after(Duration::from_secs(5)).poll("the completion of Identify", arrived)?;
    order::dma_rmb(); // the tag, then what it stands for
    let status = completions.read::<u32>(12)? >> 17;
    anyhow::ensure!(status == 0, "Identify failed with status {status:#x}");

    let mut data = [0; 4096];
    answer.complete().read(0, &mut data)?;
    let text = |range: std::ops::Range<usize>| String::from_utf8_lossy(&data[range]).trim().to_owned();
    println!("serial:   {}\nmodel:    {}\nfirmware: {}", text(4..24), text(24..64), text(64..72)); // figure 247

    io.write(CC, 0)?;
    ready(0)?;
    quiesce(&*device)?;
    Ok(())
}
