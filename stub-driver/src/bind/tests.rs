//! What is decided before and between the steps, on a tree where no kernel answers. The steps themselves are tested on a
//! real kernel, in the virtual machine.

use super::*;
use crate::fake_sysfs::FakeSysfs;

const NVME: &str = "0000:00:06.0";

fn bdf(text: &str) -> Bdf {
    text.parse().expect("address")
}

fn binder(fake: &FakeSysfs) -> Binder {
    Binder::at(fake.sysfs(), fake.root().join("taken"))
}

/// A process that has ended: the one of this number now started at another time.
const DEAD: Process = Process { pid: 1, start_time: u64::MAX };

/// A device on its old driver with a record, as a stub leaves it that is killed before its first step.
fn left_by(fake: &FakeSysfs, person: bool, process: Option<Process>) -> Binder {
    fake.device(NVME, 0x01_0802, Some("nvme"), Some(4242));
    let binder = binder(fake);
    binder.records.prepare().expect("folder");
    let was = Binding { driver: Some("nvme".into()), driver_override: None };
    binder.records.write(bdf(NVME), &Record { was, person, process }).expect("record");
    binder
}

/// What taking a device says when it is refused, nothing being recorded or restricted.
fn refused(fake: &FakeSysfs, device: &str) -> String {
    let error = binder(fake).take(bdf(device), Holder::Person).expect_err("refused");
    assert!(!fake.root().join("taken").exists(), "a refusal leaves no record");
    let text = error.to_string();
    assert!(text.contains(device) && !text.contains('\n'), "one line that names the device: {text}");
    text
}

#[test]
fn device_that_does_not_exist_is_refused() {
    assert!(refused(&FakeSysfs::new(), NVME).contains("no such PCI device"));
}

#[test]
fn device_without_an_iommu_group_is_refused_with_what_to_turn_on() {
    let fake = FakeSysfs::new();
    fake.device(NVME, 0x01_0802, Some("nvme"), None);
    let text = refused(&fake, NVME);
    assert!(text.contains("no IOMMU group; turn on"), "{text}");
}

#[test]
fn bridge_is_refused() {
    let fake = FakeSysfs::new();
    fake.device(NVME, 0x06_0400, Some("pcieport"), Some(4242));
    assert!(refused(&fake, NVME).contains("it is a bridge (PCI bridge)"));
}

#[test]
fn device_whose_siblings_have_host_drivers_is_refused_with_each_named() {
    let fake = FakeSysfs::new();
    fake.device(NVME, 0x01_0802, Some("nvme"), Some(4242));
    fake.device("0000:00:06.1", 0x0c_0500, Some("i801_smbus"), Some(4242));
    fake.device("0000:00:06.2", 0x06_0100, Some("lpc_ich"), Some(4242));
    fake.device("0000:00:06.3", 0x02_0000, Some("vfio-pci"), Some(4242));
    let text = refused(&fake, NVME);
    assert!(text.contains("host drives 0000:00:06.1 (i801_smbus), 0000:00:06.2 (lpc_ich);"), "{text}");
}

#[test]
fn device_on_vfio_pci_already_is_recorded_as_such_and_stays_there() {
    let fake = FakeSysfs::new();
    fake.device(NVME, 0x01_0802, Some("vfio-pci"), Some(4242));
    let binder = binder(&fake);
    binder.take(bdf(NVME), Holder::Person).expect("taken");
    let record = binder.records.read(bdf(NVME)).expect("read").expect("a record");
    assert_eq!(record.was.driver.as_deref(), Some("vfio-pci"));
    assert_eq!(binder.give_back(bdf(NVME)).expect("given back").as_deref(), Some("vfio-pci"));
    assert_eq!(binder.records.devices::<Bdf>().expect("records"), []);
}

#[test]
fn device_a_person_took_stays_taken_when_the_process_that_served_it_gives_it_back() {
    let fake = FakeSysfs::new();
    fake.device(NVME, 0x01_0802, Some("vfio-pci"), Some(4242));
    let binder = binder(&fake);
    binder.take(bdf(NVME), Holder::Person).expect("taken");
    binder.take(bdf(NVME), Holder::ThisProcess).expect("served");
    binder.give_back(bdf(NVME)).expect("served no more");
    let record = binder.records.read(bdf(NVME)).expect("read").expect("a record");
    assert_eq!((record.person, record.process), (true, None));
}

#[test]
fn device_that_another_process_serves_is_refused_with_its_number() {
    let fake = FakeSysfs::new();
    let mut other = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().expect("cat");
    let start = std::fs::read_to_string(format!("/proc/{}/stat", other.id())).expect("stat");
    let start_time = start.split_whitespace().nth(21).and_then(|ticks| ticks.parse().ok()).expect("start time");
    let binder = left_by(&fake, false, Some(Process { pid: other.id(), start_time }));
    let named = format!("process {}", other.id());
    let taking = binder.take(bdf(NVME), Holder::ThisProcess).expect_err("served").to_string();
    assert!(taking.contains(&named), "{taking}");
    let giving = binder.give_back(bdf(NVME)).expect_err("served").to_string();
    assert!(giving.contains(&named), "{giving}");
    assert_eq!(binder.repair().expect("repaired"), []);
    other.kill().expect("kill");
    other.wait().expect("wait");
    assert_eq!(binder.repair().expect("repaired").len(), 1);
}

#[test]
fn device_left_by_a_dead_stub_is_given_back_by_repair_once() {
    let fake = FakeSysfs::new();
    let binder = left_by(&fake, false, Some(DEAD));
    let expected = Repaired { bdf: bdf(NVME), driver: Some("nvme".into()) };
    assert_eq!(binder.repair().expect("repaired"), [expected]);
    assert_eq!(binder.repair().expect("repaired"), []);
}

#[test]
fn device_that_a_person_took_is_not_given_back_by_repair() {
    let fake = FakeSysfs::new();
    let binder = left_by(&fake, true, Some(DEAD));
    assert_eq!(binder.repair().expect("repaired"), []);
    let record = binder.records.read(bdf(NVME)).expect("read").expect("a record");
    assert_eq!((record.person, record.process), (true, None));
}

#[test]
fn record_of_a_device_that_left_the_machine_is_forgotten() {
    let fake = FakeSysfs::new();
    let binder = left_by(&fake, true, None);
    std::fs::remove_file(fake.root().join("bus/pci/devices").join(NVME)).expect("removed");
    assert_eq!(binder.give_back(bdf(NVME)).expect("forgotten"), None);
    assert_eq!(binder.records.devices::<Bdf>().expect("records"), []);
}

#[test]
fn record_of_a_dead_stub_for_a_device_that_left_the_machine_is_forgotten_by_repair() {
    let fake = FakeSysfs::new();
    let binder = left_by(&fake, false, Some(DEAD));
    std::fs::remove_file(fake.root().join("bus/pci/devices").join(NVME)).expect("removed");
    assert_eq!(binder.repair().expect("repaired").len(), 1);
    assert_eq!(binder.records.devices::<Bdf>().expect("records"), []);
}
