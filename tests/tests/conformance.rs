//! The suite of `udrv_backend::conformance` on the models, in this process and through the stub. On the kernel's VFIO it
//! runs in the virtual machine (tests/vm/30-conformance-*.sh).

use std::path::PathBuf;
use std::sync::Arc;
use stub_driver::serve::{DeviceServer, Export, Opened};
use udrv_backend::conformance::{Knowledge, Outcome, Subject, checks};
use udrv_backend::{AnyBackend, Result};

/// Runs every check, and panics with all that failed. Returns the names of those that did not apply.
fn assert_conforms(open: &dyn Fn() -> Result<AnyBackend>, knowledge: Knowledge) -> Vec<&'static str> {
    let subject = Subject { open, knowledge };
    let mut failed = String::new();
    let mut not_applicable = Vec::new();
    for check in checks() {
        match check.run(&subject) {
            Outcome::Passed => {}
            Outcome::NotApplicable(_) => not_applicable.push(check.name),
            Outcome::Failed(why) => failed += &format!("\n{}: {why}", check.name),
        }
    }
    assert!(failed.is_empty(), "promises broken:{failed}");
    not_applicable
}

/// What edu gives no occasion for: it has one vector, no reset, and nothing to map.
const NOT_FOR_EDU: [&str; 9] = [
    "region_file_holds_the_region",
    "every_vector_signals_its_own_trigger",
    "vectors_armed_in_any_order_are_signalled",
    "vectors_outside_a_range_keep_their_trigger",
    "hole_is_silent_and_its_neighbours_are_not",
    "reset_gives_registers_their_reset_value",
    "reset_keeps_triggers_armed",
    "reset_leaves_the_line_unmasked",
    "reset_keeps_memory_mapped",
];

fn edu() -> Result<AnyBackend> {
    Ok(Arc::new(udrv_edu::model::edu()))
}

/// What the serial port gives no occasion for: it has a pin and no messages, no DMA, and nothing to map; what its registers are
/// after a reset is specified for none that keeps what is written.
const NOT_FOR_UART16550: [&str; 13] = [
    "region_file_holds_the_region",
    "armed_index_excludes_the_others",
    "masking_what_cannot_be_masked_is_refused",
    "every_vector_signals_its_own_trigger",
    "vectors_armed_in_any_order_are_signalled",
    "vectors_outside_a_range_keep_their_trigger",
    "hole_is_silent_and_its_neighbours_are_not",
    "raised_message_signals_its_vector",
    "messages_merge_and_none_is_lost",
    "dma_reaches_mapped_memory",
    "dma_does_not_reach_unmapped_memory",
    "dma_access_is_limited_to_what_was_given",
    "reset_gives_registers_their_reset_value",
];

fn uart16550() -> Result<AnyBackend> {
    Ok(Arc::new(udrv_uart16550::model::uart16550()))
}

fn vectors() -> Result<AnyBackend> {
    Ok(Arc::new(udrv_tests::vectors::vectors()?))
}

/// A stub that serves a device, opened anew for each lease or kept, and the address of its socket.
struct Stub {
    _server: DeviceServer,
    socket: PathBuf,
    folder: PathBuf,
}

impl Stub {
    fn serving(export: Export) -> Self {
        let folder = std::env::temp_dir().join(format!("udrv-conformance-{}-{}", std::process::id(), export.name()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let socket = folder.join("device.sock");
        Self { _server: DeviceServer::start(export, &socket).expect("a server"), socket, folder }
    }

    fn open(&self) -> Result<AnyBackend> {
        udrv::open(&format!("unix:{}", self.socket.display()))
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        // A folder left behind in the temporary folder harms nobody.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn edu_model_in_process_conforms() {
    assert_eq!(assert_conforms(&edu, udrv_edu::conformance::KNOWLEDGE), NOT_FOR_EDU);
}

#[test]
fn vectors_model_in_process_conforms() {
    assert!(assert_conforms(&vectors, udrv_tests::vectors::KNOWLEDGE).is_empty());
}

#[test]
fn uart16550_model_in_process_conforms() {
    assert_eq!(assert_conforms(&uart16550, udrv_uart16550::conformance::KNOWLEDGE), NOT_FOR_UART16550);
}

#[test]
fn uart16550_model_through_the_stub_conforms() {
    let stub = Stub::serving(Export::shared("uart16550", uart16550().expect("a model")));
    assert_eq!(assert_conforms(&|| stub.open(), udrv_uart16550::conformance::KNOWLEDGE), NOT_FOR_UART16550);
}

#[test]
fn edu_model_through_the_stub_conforms() {
    let stub = Stub::serving(Export::shared("edu", edu().expect("a model")));
    assert_eq!(assert_conforms(&|| stub.open(), udrv_edu::conformance::KNOWLEDGE), NOT_FOR_EDU);
}

#[test]
fn vectors_model_through_the_stub_conforms() {
    let export = Export::shared("vectors", vectors().expect("a model")).mapped(true);
    let stub = Stub::serving(export);
    assert!(assert_conforms(&|| stub.open(), udrv_tests::vectors::KNOWLEDGE).is_empty());
}

#[test]
fn device_opened_for_each_lease_through_the_stub_without_mapping_conforms() {
    let open = || Ok(Opened { device: vectors()?, held: None });
    let stub = Stub::serving(Export::opened_by("unmapped", "model:vectors", open));
    let skipped = assert_conforms(&|| stub.open(), udrv_tests::vectors::KNOWLEDGE);
    assert_eq!(skipped, ["region_file_holds_the_region"], "nothing may be mapped unless the stub was told so");
}

#[test]
fn stub_behind_a_stub_conforms() {
    let inner = Stub::serving(Export::shared("inner", vectors().expect("a model")).mapped(true));
    let address = inner.socket.display().to_string();
    let open = move || Ok(Opened { device: udrv::open(&format!("unix:{address}"))?, held: None });
    let outer = Stub::serving(Export::opened_by("outer", "unix:inner", open).mapped(true));
    assert!(assert_conforms(&|| outer.open(), udrv_tests::vectors::KNOWLEDGE).is_empty());
}
