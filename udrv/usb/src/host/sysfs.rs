//! What the kernel says of a device, without opening it.

use std::path::PathBuf;

/// A device's folder below /sys/bus/usb/devices.
pub(super) struct Sysfs(PathBuf);

impl Sysfs {
    pub(super) fn new(bus: u8, ports: &[u8]) -> Self {
        let name = if ports.is_empty() {
            format!("usb{bus}")
        } else {
            let ports: Vec<String> = ports.iter().map(u8::to_string).collect();
            format!("{bus}-{}", ports.join("."))
        };
        Self(PathBuf::from("/sys/bus/usb/devices").join(name))
    }

    pub(super) fn folder(&self) -> &std::path::Path {
        &self.0
    }

    /// An attribute's text, if there is any.
    pub(super) fn text(&self, attribute: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.0.join(attribute)).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// Device and configuration descriptors, as the device sent them.
    pub(super) fn descriptors(&self) -> std::io::Result<Vec<u8>> {
        std::fs::read(self.0.join("descriptors"))
    }

    /// The driver bound to an interface of a configuration.
    pub(super) fn driver(&self, configuration: u8, interface: u8) -> Option<String> {
        let device = self.0.file_name()?.to_str()?;
        // The root hub `usb1` has the interface `1-0:1.0`.
        let device = device.strip_prefix("usb").map_or_else(|| device.to_owned(), |bus| format!("{bus}-0"));
        let driver = self.0.join(format!("{device}:{configuration}.{interface}/driver"));
        Some(std::fs::read_link(driver).ok()?.file_name()?.to_string_lossy().into_owned())
    }
}
