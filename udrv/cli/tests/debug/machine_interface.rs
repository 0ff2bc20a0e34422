//! gdb as an editor drives it, by its machine interface (gdb's manual, "The GDB/MI Interface").

use super::held;
use super::served::{Debugger, Served};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// Longest wait for anything that gdb says.
const PATIENCE: Duration = Duration::from_secs(60);

/// A gdb that is sent commands and says records, one a line.
struct Gdb {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    said: Vec<String>,
}

impl Drop for Gdb {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Gdb {
    fn start(served: &Served, program: &[String]) -> Self {
        let mut udrv = served.command();
        udrv.args(["--mi", "--"]).args(program);
        let mut child = udrv.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("udrv starts");
        let input = child.stdin.take().expect("its input");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        let (sender, lines) = channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, input, lines, said: Vec::new() }
    }

    /// The next line that has this in it: a record, or what the driver says, which is on gdb's output, too.
    fn expect(&mut self, text: &str) -> String {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => self.said.push(line),
                Err(why) => panic!("no {text} ({why}) in:\n{}", self.said.join("\n")),
            }
            match self.said.last() {
                Some(line) if line.contains(text) => return line.clone(),
                _ => {}
            }
        }
    }

    fn send(&mut self, command: &str, answer: &str) -> String {
        writeln!(self.input, "{command}").expect("gdb reads");
        self.expect(answer)
    }

    /// Nothing stops or ends for this long.
    fn stands_for(&mut self, time: Duration) {
        match self.lines.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => {}
            other => panic!("while the driver stands: {other:?}"),
        }
    }
}

#[test]
fn driver_stepped_by_an_editor_through_a_section_loses_no_interrupt() {
    let Some(served) = Served::start(Debugger::Gdb) else { return };
    held::under_load(&served.model, || {
        let mut gdb = Gdb::start(&served, &held::driver());
        gdb.expect("(gdb)");
        gdb.send(&format!("-break-insert {}", held::PLACE), "^done,bkpt={number=\"1\"");
        gdb.send("-exec-run", "^running");
        let stopped = gdb.expect("*stopped");
        assert!(stopped.contains("reason=\"breakpoint-hit\",disp=\"keep\",bkptno=\"1\""), "{stopped}");
        gdb.expect("(gdb)");
        let irqs = gdb.send("-interpreter-exec console \"udrv irqs\"", "~\"      raised ");
        assert!(irqs.contains("has a section open, entered at udrv/cli/tests/debug/held.rs:"), "{irqs}");
        gdb.expect("^done");
        gdb.expect("(gdb)");
        gdb.stands_for(held::HELD);
        for step in ["-exec-next", "-exec-step", "-exec-next"] {
            gdb.send(step, "^running");
            let stopped = gdb.expect("*stopped");
            assert!(stopped.contains("reason=\"end-stepping-range\""), "{step}: {stopped}");
        }
        gdb.send("-exec-continue", "^running");
        gdb.expect(held::WELL);
        let stopped = gdb.expect("*stopped");
        assert!(stopped.contains("reason=\"exited-normally\""), "{stopped}");
        writeln!(gdb.input, "-gdb-exit").expect("gdb reads");
    });
}
