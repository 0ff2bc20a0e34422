//! `nbd-flushed JOBS ROUNDS SOCKET COMMAND...`: kills an NBD server that COMMAND starts, and looks for what was lost.

use anyhow::Context as _;
use std::process::Command;

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [jobs, rounds, socket, program, arguments @ ..] = words.as_slice() else {
        anyhow::bail!("usage: nbd-flushed JOBS ROUNDS SOCKET COMMAND...");
    };
    let server = || {
        let mut command = Command::new(program);
        command.args(arguments);
        command
    };
    let (jobs, rounds) = (jobs.parse().context("JOBS")?, rounds.parse().context("ROUNDS")?);
    let blocks = udrv_tests::flushed::run(server, socket.as_ref(), jobs, rounds)?;
    println!("killed {rounds} times: nothing was lost of {blocks} blocks flushed");
    Ok(())
}
