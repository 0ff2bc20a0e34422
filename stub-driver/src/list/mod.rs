//! `stub-driver list`: PCI devices, and what keeps each from being taken.

mod class;

pub use class::class_name;

use crate::bind::TAKEN;
use crate::bind::process;
use crate::bind::record::{Record, Records};
use crate::paint::{Colour, Paint};
use anyhow::{Context as _, Result};
use serde::Serialize;
use std::io::Write as _;
use udrv_vfio::{Bdf, PciDevice, Sysfs};

/// `stub-driver list`
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// For scripts: one JSON object with everything.
    #[arg(long)]
    json: bool,
}

/// One line of the table. Serialised, it is an element of `devices`, whose names are kept.
#[derive(Debug, Serialize)]
struct Row {
    /// Its address.
    device: String,
    /// The class in words.
    class: &'static str,
    /// The class code: base class, subclass, interface, as `0x010802`.
    class_code: String,
    /// Vendor and device ID, as `1b36:0010`.
    id: String,
    driver: Option<String>,
    group: Option<u32>,
    /// Whether its group can be used through VFIO once this device is taken.
    viable: bool,
    /// The siblings that keep the group from being viable.
    in_the_way: Vec<Sibling>,
    /// Best first.
    reset_methods: Vec<String>,
    taken: Option<Taken>,
}

#[derive(Debug, Serialize)]
struct Sibling {
    device: String,
    driver: Option<String>,
}

/// Who has taken it with `stub-driver`.
#[derive(Debug, Serialize)]
struct Taken {
    /// A person, by `stub-driver bind`.
    by_person: bool,
    /// A process that serves it, or did.
    pid: Option<u32>,
    /// Whether that process is alive.
    alive: bool,
    /// The driver that `release` gives it back to.
    driver_before: Option<String>,
}

/// Runs it.
///
/// # Errors
/// Without a PCI bus in sysfs.
pub fn run(args: &ListArgs) -> Result<()> {
    let rows = rows(&Sysfs::default(), &Records::at(TAKEN)).context("no PCI devices to list")?;
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &serde_json::json!({ "devices": rows }))?;
        writeln!(out)?;
    } else {
        out.write_all(table(&rows, &Paint::for_stdout()).as_bytes())?;
    }
    Ok(())
}

fn rows(sysfs: &Sysfs, records: &Records) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for bdf in sysfs.devices()? {
        // a device may vanish while we look
        let Ok(device) = sysfs.device(bdf) else { continue };
        rows.push(row(sysfs, records, device)?);
    }
    Ok(rows)
}

fn row(sysfs: &Sysfs, records: &Records, device: PciDevice) -> Result<Row> {
    let siblings = sysfs.siblings_in_the_way(&device)?;
    Ok(Row {
        device: device.bdf.to_string(),
        class: class_name(device.class),
        class_code: format!("{:#08x}", device.class),
        id: format!("{:04x}:{:04x}", device.vendor, device.device),
        viable: device.group.is_some() && siblings.is_empty(),
        in_the_way: siblings
            .into_iter()
            .map(|other| Sibling { device: other.bdf.to_string(), driver: other.driver })
            .collect(),
        taken: taken(records, device.bdf),
        driver: device.driver,
        group: device.group,
        reset_methods: device.reset_methods,
    })
}

/// A record that cannot be read is for `release` to complain of.
fn taken(records: &Records, bdf: Bdf) -> Option<Taken> {
    let Record { was, person, process } = records.read(bdf).ok().flatten()?;
    Some(Taken {
        by_person: person,
        pid: process.map(|process| process.pid),
        alive: process.is_some_and(|process| process.is_alive()),
        driver_before: was.driver,
    })
}

impl Row {
    fn viability(&self) -> (String, Colour) {
        let named = |other: &Sibling| format!("{} ({})", other.device, other.driver.as_deref().unwrap_or("none"));
        match (self.group, self.in_the_way.as_slice()) {
            (None, _) => ("no IOMMU".into(), Colour::Bad),
            (Some(_), []) => ("yes".into(), Colour::Good),
            (Some(_), others) => {
                (format!("no: {}", others.iter().map(named).collect::<Vec<_>>().join(", ")), Colour::Bad)
            }
        }
    }

    fn taken_by(&self) -> (String, Colour) {
        match &self.taken {
            None => ("-".into(), Colour::Plain),
            Some(Taken { pid: Some(pid), alive: true, .. }) => (process::named(*pid), Colour::Good),
            Some(Taken { by_person: true, .. }) => ("a person".into(), Colour::Good),
            Some(_) => (format!("a dead stub: stub-driver release {}", self.device), Colour::Bad),
        }
    }

    fn cells(&self) -> [(String, Colour); 8] {
        let plain = |text: String| (text, Colour::Plain);
        let reset = match self.reset_methods.first() {
            Some(best) => plain(best.clone()),
            None => ("none".into(), Colour::Doubtful),
        };
        [
            plain(self.device.clone()),
            plain(self.class.into()),
            plain(self.id.clone()),
            plain(self.driver.clone().unwrap_or_else(|| "-".into())),
            plain(self.group.map_or_else(|| "-".into(), |group| group.to_string())),
            reset,
            self.viability(),
            self.taken_by(),
        ]
    }
}

const HEADINGS: [&str; 8] = ["DEVICE", "CLASS", "ID", "DRIVER", "GROUP", "RESET", "VIABLE", "TAKEN BY"];

fn table(rows: &[Row], paint: &Paint) -> String {
    let heading = HEADINGS.map(|name| (name.to_owned(), Colour::Faint));
    let lines: Vec<_> = std::iter::once(heading).chain(rows.iter().map(Row::cells)).collect();
    let mut widths = [0; 8];
    for line in &lines {
        for (width, (text, _)) in widths.iter_mut().zip(line) {
            *width = text.len().max(*width);
        }
    }
    let mut out = String::new();
    for line in lines {
        let padded = line.iter().zip(widths).map(|((text, colour), width)| {
            let blanks = " ".repeat(width.saturating_sub(text.len()));
            paint.text(text, *colour) + &blanks
        });
        out.push_str(padded.collect::<Vec<_>>().join("  ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bind::process::Process;
    use crate::fake_sysfs::FakeSysfs;

    const NVME: &str = "0000:00:06.0";
    const SATA: &str = "0000:00:1f.2";

    /// An NVMe controller alone in its group; a SATA controller with two siblings, one of them in the way.
    fn machine() -> FakeSysfs {
        let fake = FakeSysfs::new();
        fake.device(NVME, 0x01_0802, Some("nvme"), Some(6));
        fake.set(NVME, "reset_method", "flr bus");
        fake.device("0000:00:1f.0", 0x06_0100, None, Some(9));
        fake.device(SATA, 0x01_0601, Some("ahci"), Some(9));
        fake.device("0000:00:1f.3", 0x0c_0500, Some("i801_smbus"), Some(9));
        fake
    }

    fn row_of(fake: &FakeSysfs, bdf: &str) -> Row {
        let rows = rows(&fake.sysfs(), &Records::at(fake.root().join("taken"))).expect("rows");
        rows.into_iter().find(|row| row.device == bdf).expect(bdf)
    }

    fn record(fake: &FakeSysfs, bdf: &str, person: bool, process: Option<Process>) {
        let records = Records::at(fake.root().join("taken"));
        records.prepare().expect("folder");
        let was =
            serde_json::json!({ "driver": "nvme", "driver_override": null, "person": person, "process": process });
        let record: Record = serde_json::from_value(was).expect("a record");
        records.write(bdf.parse::<Bdf>().expect("address"), &record).expect("record");
    }

    #[test]
    fn group_with_a_sibling_on_a_host_driver_is_not_viable_and_names_it() {
        let row = row_of(&machine(), SATA);
        assert!(!row.viable);
        assert_eq!(row.viability().0, "no: 0000:00:1f.3 (i801_smbus)");
    }

    #[test]
    fn device_alone_in_its_group_is_viable_although_it_has_a_driver() {
        assert!(row_of(&machine(), NVME).viable);
    }

    #[test]
    fn sibling_bridge_with_a_driver_is_in_the_way_too() {
        let fake = machine();
        fake.device("0000:00:1f.4", 0x06_0100, Some("lpc_ich"), Some(9));
        assert!(row_of(&fake, SATA).viability().0.contains("0000:00:1f.4 (lpc_ich)"));
    }

    #[test]
    fn device_without_an_iommu_group_is_said_to_have_no_iommu() {
        let fake = FakeSysfs::new();
        fake.device(NVME, 0x01_0802, Some("nvme"), None);
        let row = row_of(&fake, NVME);
        assert_eq!((row.viable, row.viability().0), (false, "no IOMMU".into()));
    }

    #[test]
    fn device_taken_is_said_to_be_by_a_person_a_stub_or_a_dead_stub() {
        let fake = machine();
        assert_eq!(row_of(&fake, NVME).taken_by().0, "-");
        record(&fake, NVME, true, None);
        assert_eq!(row_of(&fake, NVME).taken_by().0, "a person");
        let me = Process::current().expect("/proc");
        record(&fake, NVME, false, Some(me));
        assert!(row_of(&fake, NVME).taken_by().0.starts_with(&format!("process {}", me.pid)));
        record(&fake, NVME, false, Some(Process { start_time: me.start_time + 1, ..me }));
        assert_eq!(row_of(&fake, NVME).taken_by().0, "a dead stub: stub-driver release 0000:00:06.0");
    }

    #[test]
    fn table_has_its_columns_below_each_other() {
        let fake = machine();
        let rows = rows(&fake.sysfs(), &Records::at(fake.root().join("taken"))).expect("rows");
        let table = table(&rows, &Paint::plain());
        let column = table.find("VIABLE").expect("a heading");
        let cells: Vec<_> = table.lines().skip(1).map(|line| &line[column..column + 3]).collect();
        assert_eq!(cells, ["yes", "no:", "no:", "no:"]);
        assert!(table.lines().all(|line| line == line.trim_end()), "{table}");
    }
}
