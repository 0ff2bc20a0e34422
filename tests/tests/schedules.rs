//! Placed interrupts: planted bugs are found and shrunk, and the edu driver survives all pairs.

use std::process::Command;
use std::sync::Arc;
use stub_driver::serve::{DeviceServer, Export, Opened};
use udrv::schedules::{Explored, Placement, Schedule, Schedules};
use udrv_backend::AnyBackend;
use udrv_tests::schedules::{edu_works, hasty, on, taking};

fn on_edu() -> Schedules {
    on(|| Arc::new(udrv_edu::model::edu()) as AnyBackend)
}

#[test]
fn explore_handler_that_acknowledges_what_it_has_not_read_fails_with_the_pair() {
    let failure = on_edu().explore(hasty).expect_err("a cause is lost between read and acknowledge");

    // One interrupt to bring the handler in, and a second, of another cause, between its two accesses.
    let [first, second] = failure.schedule.placements() else { panic!("not two placements: {failure}") };
    assert_ne!(first.irq, second.irq, "{failure}");
    assert_eq!(second.access, first.access + 2, "{failure}");
    let (what, how) =
        (failure.to_string(), format!("\nUDRV_SCHEDULE={} cargo test -p udrv-tests -- --exact ", failure.schedule));
    assert!(what.starts_with("cause 0x") && what.contains(&how), "{what}");
}

#[test]
fn explore_read_modify_write_without_a_section_fails_with_one_interrupt() {
    let failure = on_edu().explore(|run| taking(run, false)).expect_err("a cause is lost between load and store");

    assert_eq!(failure.schedule.placements().len(), 1, "{failure}");
    let again = on_edu().replay(&failure.schedule, |run| taking(run, false));
    assert_eq!(again.expect_err("it replays").error, failure.error);
}

#[test]
fn explore_read_modify_write_in_a_section_survives_all_pairs() {
    let Explored { runs, accesses } = on_edu().check(|run| taking(run, true));

    assert!(runs > accesses * accesses, "{runs} runs of {accesses} accesses");
}

#[test]
fn explore_at_random_shrinks_ten_interrupts_to_one() {
    let failure = on_edu().depth(0).random(50, 10, 1).explore(|run| taking(run, false)).expect_err("a cause is lost");

    assert_eq!(failure.found.placements().len(), 10, "{failure}");
    assert_eq!(failure.schedule.placements().len(), 1, "{failure}");
}

#[test]
fn explore_with_the_printed_line_in_the_environment_replays_that_schedule_alone() {
    let failure = on_edu().explore(|run| taking(run, false)).expect_err("a cause is lost");
    let mut again = Command::new(std::env::current_exe().expect("this test"));
    again.args(["--exact", "child_process_explores", "--nocapture"]).env("UDRV_TEST_EXPLORE", "");

    let output = again.env("UDRV_SCHEDULE", failure.schedule.to_string()).output().expect("it ran");

    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    let what = format!("{} under the schedule {}: interrupt ", failure.error, failure.schedule);
    // One run: neither searched nor shrunk.
    assert!(said.contains(&what) && !said.contains("runs)"), "no `{what}` in: {said}");
}

#[test]
fn printed_line_pasted_into_a_shell_runs_that_schedule() {
    let start = |shell: &str| {
        let output = Command::new("sh").args(["-c", shell]).env("UDRV_TEST_EXPLORE", "").output().expect("it ran");
        assert!(!output.status.success(), "{shell}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let this = std::env::current_exe().expect("this test").display().to_string();
    // Without cargo, so that the line names the program itself; in one that cargo started it names package and test.
    let first = start(&format!("unset CARGO_PKG_NAME; '{this}' --exact child_process_explores --nocapture"));
    let line = first.lines().find(|line| line.starts_with("UDRV_SCHEDULE=")).expect("a line");
    let again = start(line);

    let what = |said: &str| said.lines().find(|line| line.contains(" under the schedule ")).map(str::to_owned);
    let (first, again) = (what(&first).expect("what fails"), what(&again).expect("what fails"));
    assert!(first.contains("(shrunk from") || first.contains("(after"), "{first}");
    assert_eq!(again.split(" (").next().map(|it| it.trim_end_matches(". To replay it:")), first.split(" (").next());
}

#[test]
fn schedule_that_is_none_is_told_with_what_is_expected_and_nothing_to_replay() {
    let mut again = Command::new(std::env::current_exe().expect("this test"));
    again.args(["--exact", "child_process_explores", "--nocapture"]).env("UDRV_TEST_EXPLORE", "");

    let output = again.env("UDRV_SCHEDULE", "4").output().expect("it ran");

    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("0@4,1@7") && !said.contains("To replay"), "{said}");
}

/// Not a test by itself: what the test above starts.
#[test]
fn child_process_explores() {
    if std::env::var_os("UDRV_TEST_EXPLORE").is_some() {
        on_edu().check(|run| taking(run, false));
    }
}

#[test]
fn schedule_printed_and_read_back_is_the_same() {
    let schedule = Schedule::new(vec![Placement { irq: 1, access: 7 }, Placement { irq: 0, access: 4 }]);

    assert_eq!(schedule.to_string(), "0@4,1@7");
    assert_eq!(schedule.to_string().parse::<Schedule>().expect("its own form"), schedule);
    assert!("0@x".parse::<Schedule>().expect_err("no number").to_string().contains("0@4,1@7"));
}

#[test]
fn explore_edu_driver_survives_all_pairs() {
    let explored = on_edu().check(edu_works);

    println!("{explored:?}");
    assert!(explored.runs > 1000, "{explored:?}");
}

/// A model behind the stub's socket: one server, and a client that connects anew for each run.
fn with_served_edu(work: impl FnOnce(Schedules)) {
    let folder =
        std::env::temp_dir().join(format!("udrv-schedules-{}-{:?}", std::process::id(), std::thread::current().id()));
    std::fs::create_dir(&folder).expect("a folder");
    let open = || Ok(Opened { device: Arc::new(udrv_edu::model::edu()) as AnyBackend, held: None });
    let export = Export::opened_by("edu", "model:edu", open);
    let server = DeviceServer::start(export, &folder.join("edu.sock")).expect("served");
    let address = format!("unix:{}", server.path().display());
    work(on(move || udrv::open(&address).expect("connected")));
    drop(server);
    std::fs::remove_dir_all(&folder).expect("removed");
}

#[test]
fn explore_over_the_stub_finds_a_planted_bug_and_shrinks_it_to_one_interrupt() {
    with_served_edu(|schedules| {
        let schedules = schedules.depth(0).random(50, 10, 1);
        let failure = schedules.explore(|run| taking(run, false)).expect_err("a cause is lost");
        assert_eq!(failure.found.placements().len(), 10, "{failure}");
        assert_eq!(failure.schedule.placements().len(), 1, "{failure}");
        schedules.replay(&failure.schedule, |run| taking(run, false)).expect_err("it replays");
    });
}

#[test]
fn explore_over_the_stub_edu_driver_survives_every_access() {
    with_served_edu(|schedules| {
        let explored = schedules.depth(1).check(edu_works);
        assert!(explored.runs > 2 * explored.accesses, "{explored:?}");
    });
}
