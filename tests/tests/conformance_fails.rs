//! The conformance suite notices each fault, by the check that states the promise it breaks, and by no other.

use std::collections::BTreeSet;
use std::sync::Arc;
use udrv_backend::AnyBackend;
use udrv_backend::conformance::{Outcome, Subject, checks};
use udrv_tests::broken::{Broken, Fault};
use udrv_tests::vectors::{KNOWLEDGE, vectors};

fn failures(fault: Fault) -> BTreeSet<&'static str> {
    let kept: AnyBackend = Arc::new(vectors().expect("a model"));
    let open = || -> udrv_backend::Result<AnyBackend> {
        Ok(match fault {
            Fault::DropDoesNothing => Arc::clone(&kept),
            fault => Arc::new(Broken::new(Arc::new(vectors()?), fault)),
        })
    };
    let subject = Subject { open: &open, knowledge: KNOWLEDGE };
    let failed = checks().into_iter().filter(|check| matches!(check.run(&subject), Outcome::Failed(_)));
    failed.map(|check| check.name).collect()
}
