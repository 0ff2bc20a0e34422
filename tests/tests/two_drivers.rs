//! Two drivers in one host on the models, one of them behind the stub. On real devices: tests/vm/73-uart16550.sh.

use std::sync::Arc;
use stub_driver::serve::{DeviceServer, Export};
use udrv_backend::AnyBackend;
use udrv_tests::two_drivers::{self, SERIAL};

#[test]
fn disk_and_serial_line_work_beside_one_another() {
    let path = std::env::temp_dir().join(format!("udrv-two-{}.sock", std::process::id()));
    let uart: AnyBackend = Arc::new(udrv_uart16550::model::uart16550());
    let server = DeviceServer::start(Export::shared("uart16550", uart), &path).expect("served");
    let uart = udrv::open(&format!("unix:{}", server.path().display())).expect("connected");
    let nvme = Arc::new(udrv_nvme::model::nvme().expect("a model"));
    let done = two_drivers::run(nvme, uart).expect("both");
    assert!(done.disk_rounds > 1, "{done:?}");
    // At most a FIFO of characters in and one out for an interrupt, four causes each time.
    assert!(done.serial_interrupts >= (SERIAL / 16 / 4) as u64, "{done:?}");
}
