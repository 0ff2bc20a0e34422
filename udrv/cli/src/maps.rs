//! Every driver's register map, by the driver's name and by the device's IDs. USB drivers have none: they make transfers.

use udrv_backend::register::RegisterMap;
use udrv_edu::registers as edu;
use udrv_nvme::registers as nvme;
use udrv_uart16550::registers as uart16550;

static MAPS: [&RegisterMap; 3] = [&edu::MAP, &nvme::MAP, &uart16550::MAP];

/// The map of the driver of this name.
pub fn named(name: &str) -> Result<&'static RegisterMap, String> {
    let names = || MAPS.map(|map| map.device).join(", ");
    MAPS.into_iter().find(|map| map.device == name).ok_or_else(|| format!("expected one of {}", names()))
}

/// The map of the driver that such a device has.
pub fn of(vendor: u16, device: u16, class: u32) -> Option<&'static RegisterMap> {
    match class {
        _ if (vendor, device) == (edu::VENDOR, edu::DEVICE) => Some(&edu::MAP),
        nvme::CLASS => Some(&nvme::MAP),
        uart16550::CLASS => Some(&uart16550::MAP),
        _ => None,
    }
}
