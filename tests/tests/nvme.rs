//! The NVMe suite on the model, in this process and through the stub.

use std::sync::Arc;
use stub_driver::serve::{DeviceServer, Export};
use udrv_backend::AnyBackend;

#[test]
fn nvme_driver_on_the_model_passes_the_suite() {
    udrv_tests::nvme::run(&|| Ok(Arc::new(udrv_nvme::model::nvme()?))).expect("the suite");
}

#[test]
fn nvme_driver_through_the_stub_passes_the_suite() {
    let path = std::env::temp_dir().join(format!("udrv-nvme-{}.sock", std::process::id()));
    let model: AnyBackend = Arc::new(udrv_nvme::model::nvme().expect("a model"));
    let server = DeviceServer::start(Export::shared("nvme", model), &path).expect("served");
    udrv_tests::nvme::run(&|| udrv::open(&format!("unix:{}", server.path().display()))).expect("the suite");
}
