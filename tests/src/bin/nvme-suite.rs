//! The suite of NVMe controllers on any device: `nvme-suite pci:0000:00:06.0`. It writes to the last MiB of namespace 1.

use udrv_backend::{AnyBackend, Error, Result};

fn main() -> anyhow::Result<()> {
    let address = std::env::args().nth(1).ok_or_else(|| anyhow::anyhow!("usage: nvme-suite ADDRESS"))?;
    let open = || -> Result<AnyBackend> {
        match address.as_str() {
            "model:nvme" => Ok(std::sync::Arc::new(udrv_nvme::model::nvme()?)),
            address if address.contains(':') => udrv::open(address),
            given => Err(Error::BadAddress { given: given.into(), expected: "pci:BDF, unix:PATH or model:nvme" }),
        }
    };
    udrv_tests::nvme::run(&open).map_err(anyhow::Error::msg)
}
