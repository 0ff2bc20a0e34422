//! Which step comes next, from nothing but what the kernel says now. There is no state of ours between two steps, so
//! a process that is killed anywhere leaves a state from which the next one goes on.
//!
//! Taking: record, override, unbind, bind. Giving back: unbind, override, bind, forget. The record comes before the
//! first step of the one and after the last step of the other, so that no device is ever changed without one.

use serde::{Deserialize, Serialize};

/// The driver that devices are bound to.
pub(crate) const VFIO_PCI: &str = "vfio-pci";

/// What ties a device to a driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Binding {
    /// The driver bound to it.
    pub(crate) driver: Option<String>,
    /// The only driver that may bind to it (`driver_override`), if that is restricted.
    pub(crate) driver_override: Option<String>,
}

/// One write to sysfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Restrict the device to one driver, or to none.
    Override(Option<String>),
    /// Unbind it from this driver.
    Unbind(String),
    /// Bind it to this driver.
    Bind(String),
}

/// The next step towards vfio-pci; `None` once it is there.
pub(crate) fn towards_vfio(now: &Binding) -> Option<Step> {
    match &now.driver {
        Some(driver) if driver == VFIO_PCI => None,
        _ if now.driver_override.as_deref() != Some(VFIO_PCI) => Some(Step::Override(Some(VFIO_PCI.into()))),
        Some(driver) => Some(Step::Unbind(driver.clone())),
        None => Some(Step::Bind(VFIO_PCI.into())),
    }
}

/// The next step back to what was; `None` once it is there. A driver that is neither vfio-pci nor the old one was bound
/// by another tool since, and stays.
pub(crate) fn towards(was: &Binding, now: &Binding) -> Option<Step> {
    match (&now.driver, &was.driver) {
        (driver, old) if driver == old => {
            (now.driver_override != was.driver_override).then(|| Step::Override(was.driver_override.clone()))
        }
        (Some(driver), _) => (driver == VFIO_PCI).then(|| Step::Unbind(driver.clone())),
        (None, Some(old)) if now.driver_override.as_ref().is_some_and(|only| only != old) => Some(Step::Override(None)),
        (None, old) => old.clone().map(Step::Bind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding(driver: Option<&str>, driver_override: Option<&str>) -> Binding {
        Binding { driver: driver.map(Into::into), driver_override: driver_override.map(Into::into) }
    }

    /// What the kernel makes of a step.
    fn apply(step: Step, now: &mut Binding) {
        match step {
            Step::Override(name) => now.driver_override = name,
            Step::Unbind(driver) => {
                assert_eq!(now.driver.take(), Some(driver), "unbind takes the driver that is bound");
            }
            Step::Bind(driver) => {
                assert_eq!(now.driver, None, "a device that has a driver cannot be bound");
                assert!(now.driver_override.as_ref().is_none_or(|only| *only == driver), "overridden");
                now.driver = Some(driver);
            }
        }
    }

    /// The states between the steps, the first and the last included.
    fn states(mut now: Binding, next: impl Fn(&Binding) -> Option<Step>) -> Vec<Binding> {
        let mut states = vec![now.clone()];
        while let Some(step) = next(&now) {
            apply(step, &mut now);
            assert!(!states.contains(&now), "no way back: {states:?} {now:?}");
            states.push(now.clone());
        }
        states
    }

    fn befores() -> Vec<Binding> {
        // an override that does not name the bound driver comes to bear only when the device is bound again
        let names = [None, Some("nvme"), Some(VFIO_PCI)];
        names.iter().flat_map(|driver| names.map(|only| binding(*driver, only))).collect()
    }

    #[test]
    fn taking_from_every_state_ends_on_vfio_pci() {
        for was in befores() {
            let last = states(was, towards_vfio).pop().expect("states");
            assert_eq!(last.driver.as_deref(), Some(VFIO_PCI));
        }
    }

    #[test]
    fn crash_between_any_two_steps_of_taking_is_undone() {
        for was in befores() {
            for crashed in states(was.clone(), towards_vfio) {
                let last = states(crashed.clone(), |now| towards(&was, now)).pop().expect("states");
                assert_eq!(last, was, "after a crash at {crashed:?}");
            }
        }
    }

    #[test]
    fn crash_between_any_two_steps_of_giving_back_can_be_gone_on_from_or_taken_again() {
        for was in befores() {
            let taken = states(was.clone(), towards_vfio).pop().expect("states");
            for crashed in states(taken, |now| towards(&was, now)) {
                assert_eq!(states(crashed.clone(), |now| towards(&was, now)).pop().as_ref(), Some(&was));
                let again = states(crashed, towards_vfio).pop().expect("states");
                assert_eq!(again.driver.as_deref(), Some(VFIO_PCI));
            }
        }
    }

    #[test]
    fn driver_bound_by_another_tool_since_is_left() {
        let was = binding(Some("nvme"), None);
        assert_eq!(towards(&was, &binding(Some("uio_pci_generic"), Some("uio_pci_generic"))), None);
    }
}
