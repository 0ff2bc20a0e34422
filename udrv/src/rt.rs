//! Real time, as far as a process can have it: a driver's threads before all ordinary ones (SCHED_FIFO, sched(7)), on
//! processors of its own choice, with its memory kept in (mlockall(2)).
//!
//! It makes preemption rare, not impossible: the kernel's own interrupts and its threads of higher priority go first, and
//! `sched_rt_runtime_us` (950 ms of each second unless set otherwise) is a limit on all. What it comes to is measured by
//! `cargo xtask bench rt`.
#![expect(unsafe_code, reason = "sched_setscheduler(2) and sched_setaffinity(2) have no safe wrapper here")]

use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{Resource, getrlimit};
use std::str::FromStr;
use udrv_backend::{Error, Result};

/// Above ordinary threads; as high as the kernel's own interrupt threads (kernel/sched/syscalls.c, `sched_set_fifo`).
const PRIORITY: libc::c_int = 50;

/// Which processors, in the form of cpuset(7): `0`, `2,3`, `0,4-7`. Without any, all that the process may use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Processors(Vec<usize>);

impl FromStr for Processors {
    type Err = Error;

    fn from_str(list: &str) -> Result<Self> {
        let wrong = || Error::Protocol {
            peer: "--rt".into(),
            found: format!("`{list}`"),
            expected: format!("a list of processors below {}, such as 1 or 0,2-3", libc::CPU_SETSIZE),
        };
        let mut processors = Vec::new();
        for part in list.split(',').filter(|_| !list.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let [first, last] = [first, last].map(|number| number.trim().parse::<usize>().ok());
            let range = first.zip(last).filter(|(first, last)| first <= last && *last < libc::CPU_SETSIZE as usize);
            let (first, last) = range.ok_or_else(wrong)?;
            processors.extend(first..=last);
        }
        Ok(Self(processors))
    }
}

/// Makes the calling thread, and those that it starts from now on, real-time threads on these processors, and keeps the
/// memory of the whole process in.
///
/// A thread that only computes then keeps its processor from all ordinary ones: mind [`crate::irq::Delivery::Poll`].
///
/// # Errors
/// [`Error::Unavailable`] where the process may not, with the limit or capability that would let it, and what to do. What
/// was done before that stays.
pub fn enter(processors: &Processors) -> Result<()> {
    if !processors.0.is_empty() {
        stay_on(&processors.0)?;
    }
    keep_memory()?;
    go_first()
}

fn refused(what: &str, error: &std::io::Error, advice: String) -> Error {
    Error::Unavailable { device: "real time".into(), why: format!("{what}: {error}"), advice }
}

fn stay_on(processors: &[usize]) -> Result<()> {
    // SAFETY: a cpu_set_t is an array of integers; all zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for processor in processors {
        // SAFETY: `Processors` has no number that is not below CPU_SETSIZE.
        unsafe { libc::CPU_SET(*processor, &mut set) };
    }
    // SAFETY: the set is read for the length that is given; 0 is this thread.
    if unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) } == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    let allowed = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let allowed = allowed.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or("?").trim();
    let advice = format!("name processors that this process may use, which are {allowed} (sched_setaffinity(2))");
    Err(refused(&format!("staying on processors {processors:?}"), &error, advice))
}

fn keep_memory() -> Result<()> {
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE).map_err(|errno| {
        let limit = limit(Resource::RLIMIT_MEMLOCK);
        let advice = format!(
            "RLIMIT_MEMLOCK is {limit} bytes: raise it (ulimit -l unlimited, as root; or `memlock` in \
             /etc/security/limits.conf), or run with CAP_IPC_LOCK"
        );
        refused("keeping memory in (mlockall)", &errno.into(), advice)
    })
}

fn go_first() -> Result<()> {
    // SAFETY: all zeros is a valid sched_param, which has other members on some systems.
    let mut param: libc::sched_param = unsafe { std::mem::zeroed() };
    param.sched_priority = PRIORITY;
    // SAFETY: the parameter is read only; 0 is this thread.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const param) } == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    let limit = limit(Resource::RLIMIT_RTPRIO);
    let advice = format!(
        "RLIMIT_RTPRIO is {limit} and {PRIORITY} is needed: raise it (ulimit -r {PRIORITY}, as root; or `rtprio` in \
         /etc/security/limits.conf), or run with CAP_SYS_NICE; if it is neither, the control group has no real-time budget"
    );
    Err(refused(&format!("SCHED_FIFO with priority {PRIORITY}"), &error, advice))
}

fn limit(resource: Resource) -> String {
    match getrlimit(resource) {
        Ok((soft, _)) if soft == libc::RLIM_INFINITY => "unlimited".into(),
        Ok((soft, _)) => soft.to_string(),
        Err(errno) => errno.to_string(),
    }
}
