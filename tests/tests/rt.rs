//! `udrv::rt`, in processes of their own: what is set, and what is said where it may not be.
#![expect(unsafe_code, reason = "sched_getscheduler(2) has no safe wrapper here")]

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::process::Command;
use udrv::rt::{self, Processors};

/// Runs `child_process_enters` as `who`; what it printed.
fn enter_as(processors: &str, who: &str) -> String {
    let test = std::env::current_exe().expect("this test");
    let mut child = Command::new(&test);
    if who == "no-priority" {
        // Root, but for one capability.
        child = Command::new("setpriv");
        child.arg("--bounding-set=-sys_nice").arg("--").arg(test);
    }
    child.args(["--exact", "child_process_enters", "--nocapture"]);
    let output = child.env("UDRV_TEST_RT", processors).env("UDRV_TEST_RT_AS", who).output().expect("it ran");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .find_map(|line| line.split_once("came to: "))
        .map_or_else(|| panic!("{}", String::from_utf8_lossy(&output.stderr)), |(_, rest)| rest.to_owned())
}

/// Not a test by itself.
#[test]
fn child_process_enters() {
    let (Ok(processors), Ok(who)) = (std::env::var("UDRV_TEST_RT"), std::env::var("UDRV_TEST_RT_AS")) else { return };
    match who.as_str() {
        "nobody" => {
            for resource in [Resource::RLIMIT_RTPRIO, Resource::RLIMIT_MEMLOCK] {
                setrlimit(resource, 0, 0).expect("less is always allowed");
            }
            // A thread's own, by the system call: the others of this process stay as they are.
            // SAFETY: setresuid(2) takes three numbers.
            assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) }, 0);
        }
        "no-priority" => {
            setrlimit(Resource::RLIMIT_RTPRIO, 0, 0).expect("less is always allowed");
        }
        _ => {}
    }
    let entered = processors.parse::<Processors>().and_then(|processors| rt::enter(&processors));
    let inherited = std::thread::spawn(|| {
        // SAFETY: takes a thread's number, 0 for its own.
        let policy = unsafe { libc::sched_getscheduler(0) };
        let status = std::fs::read_to_string("/proc/thread-self/status").expect("procfs");
        let field =
            |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
        format!("policy {policy} on {}", field("Cpus_allowed_list:"))
    });
    let locked = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let locked = !locked.lines().any(|line| line.starts_with("VmLck:") && line.ends_with(" 0 kB"));
    println!("came to: {entered:?}, {}, memory kept in: {locked}", inherited.join().expect("no panic"));
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[test]
fn enter_makes_threads_started_later_real_time_on_the_processors_named() {
    if !is_root() || getrlimit(Resource::RLIMIT_RTPRIO).is_err() {
        return println!("left out: only root may have real time without further ado");
    }
    let came_to = enter_as("0", "root");
    // SCHED_FIFO is 1 (sched.h).
    assert_eq!(came_to, "Ok(()), policy 1 on 0, memory kept in: true");
}

#[test]
fn enter_without_the_right_to_lock_memory_says_which_limit() {
    if !is_root() {
        return println!("left out: only root can become nobody");
    }
    let came_to = enter_as("", "nobody");
    assert!(came_to.contains("RLIMIT_MEMLOCK is 0 bytes") && came_to.contains("CAP_IPC_LOCK"), "{came_to}");
    assert!(came_to.contains("policy 0"), "{came_to}");
}

#[test]
fn enter_without_the_right_to_priority_says_which_limit() {
    if !is_root() {
        return println!("left out: only root can become nobody");
    }
    let came_to = enter_as("", "no-priority");
    assert!(came_to.contains("RLIMIT_RTPRIO is 0 and 50 is needed") && came_to.contains("CAP_SYS_NICE"), "{came_to}");
}

#[test]
fn enter_on_a_processor_that_is_not_there_says_which_are() {
    let came_to = enter_as("1023", "anyone");
    assert!(came_to.contains("staying on processors [1023]") && came_to.contains("which are 0"), "{came_to}");
}

#[test]
fn processors_are_read_from_lists_and_ranges_and_nothing_else() {
    let read = |list: &str| list.parse::<Processors>();
    assert_eq!(read("0,2-3").expect("a list"), read("0,2,3").expect("a list"));
    assert_eq!(read("").expect("all"), Processors::default());
    for wrong in ["a", "3-1", "1,", "-1", "99999", "1-99999999999999999999"] {
        let error = read(wrong).expect_err(wrong).to_string();
        assert!(error.contains(&format!("`{wrong}`")) && error.contains("such as 1 or 0,2-3"), "{error}");
    }
}
