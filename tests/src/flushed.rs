//! What an NBD server may lose when it is killed: nothing that was written before a flush that was acknowledged.
//!
//! Jobs write numbers to blocks of their own through a connection each, flush now and then, and note what was acknowledged.
//! The server is killed while they do, at a number of requests that nothing of theirs is in step with, and started again.

use anyhow::{Context as _, Result, ensure};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Bytes of a block.
const BLOCK: usize = 4096;
/// Blocks of a job.
const BLOCKS: usize = 256;
/// Writes between two flushes.
const BATCH: u64 = 8;
/// Longest wait for a server's answer, in a machine that is emulated and busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs `server`, which listens at `socket` once it has said a line, `rounds` times with `jobs` connections; ended by SIGKILL
/// each time but the last, after which everything is looked at once more. How many writes were acknowledged by a flush.
///
/// # Errors
/// The first block that is older than a flush said.
pub fn run(mut server: impl FnMut() -> Command, socket: &Path, jobs: usize, rounds: u32) -> Result<u64> {
    let mut all: Vec<Job> = (0..jobs).map(Job::new).collect();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    for round in 0..=rounds {
        let mut child = Server::start(&mut server())?;
        let requests = AtomicU64::new(0);
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let kill_at = if round == rounds { u64::MAX } else { 20 + (random >> 33) % 400 };
        std::thread::scope(|scope| -> Result<()> {
            let run = |job| scope.spawn(|| Job::run(job, socket, &requests, kill_at == u64::MAX));
            let threads: Vec<_> = all.iter_mut().map(run).collect();
            while requests.load(Ordering::Relaxed) < kill_at && !threads.iter().all(|thread| thread.is_finished()) {
                std::thread::yield_now();
            }
            if kill_at != u64::MAX {
                child.0.kill().context("killing the server")?;
            }
            for thread in threads {
                thread.join().map_err(|_| anyhow::anyhow!("a job panicked"))??;
            }
            Ok(())
        })?;
    }
    Ok(all.iter().map(|job| job.flushed.iter().filter(|number| **number > 0).count() as u64).sum())
}

/// A server, killed when dropped.
struct Server(Child);

impl Server {
    fn start(command: &mut Command) -> Result<Self> {
        let mut server = Self(command.stdout(Stdio::piped()).spawn().context("starting the server")?);
        let output = server.0.stdout.take().context("its output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).context("what the server says")?;
        ensure!(!line.is_empty(), "the server ended before it said that it is ready");
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
        let _status = self.0.wait();
    }
}

struct Job {
    first: u64,
    next: u64,
    /// The last number written to each block, acknowledged or not, and the last that a flush has made safe.
    written: Vec<u64>,
    flushed: Vec<u64>,
}

impl Job {
    fn new(index: usize) -> Self {
        Self { first: (index * BLOCKS) as u64, next: 1, written: vec![0; BLOCKS], flushed: vec![0; BLOCKS] }
    }

    /// Checks what there is, then writes until the server is killed, or not at all if `only_checks`.
    fn run(&mut self, socket: &Path, requests: &AtomicU64, only_checks: bool) -> Result<()> {
        let mut client = match Client::connect(socket) {
            Ok(client) => client,
            // Killed already, by the requests of the others.
            Err(_) if !only_checks && requests.load(Ordering::Relaxed) > 0 => return Ok(()),
            Err(error) => return Err(error),
        };
        match self.check(&mut client) {
            Ok(()) => {}
            Err(Failed::Wrong(error)) => return Err(error),
            Err(Failed::Left) if only_checks => anyhow::bail!("the server left while it was read from"),
            Err(Failed::Left) => return Ok(()),
        }
        while !only_checks && self.batch(&mut client, requests).is_ok() {}
        Ok(())
    }

    fn check(&mut self, client: &mut Client) -> std::result::Result<(), Failed> {
        for (index, (written, flushed)) in self.written.iter().zip(&mut self.flushed).enumerate() {
            if *written == 0 {
                continue;
            }
            let block = self.first + index as u64;
            let bytes = client.ask(0, block * BLOCK as u64, BLOCK as u32, &[], BLOCK).map_err(|_| Failed::Left)?;
            let numbers: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
            let found = numbers.first().copied().unwrap_or_default();
            let whole = numbers.iter().all(|number| *number == found);
            if !whole || found < *flushed || found > *written {
                return Err(Failed::Wrong(anyhow::anyhow!(
                    "block {block} holds {found} (whole: {whole}): {flushed} was flushed, {written} written last"
                )));
            }
        }
        Ok(())
    }

    /// Some writes, then a flush.
    fn batch(&mut self, client: &mut Client, requests: &AtomicU64) -> Result<()> {
        let mut acknowledged = Vec::new();
        for _ in 0..BATCH {
            let number = self.next;
            self.next += 1;
            let index = (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % BLOCKS;
            if let Some(place) = self.written.get_mut(index) {
                *place = number;
            }
            let offset = (self.first + index as u64) * BLOCK as u64;
            requests.fetch_add(1, Ordering::Relaxed);
            client.ask(1, offset, BLOCK as u32, &number.to_le_bytes().repeat(BLOCK / 8), 0)?;
            acknowledged.push((index, number));
        }
        client.ask(3, 0, 0, &[], 0)?;
        for (index, number) in acknowledged {
            if let Some(place) = self.flushed.get_mut(index) {
                *place = number;
            }
        }
        Ok(())
    }
}

enum Failed {
    Left,
    Wrong(anyhow::Error),
}

/// One connection, one request at a time.
struct Client(UnixStream);

impl Client {
    fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut client = Self(stream);
        client.take(18)?;
        client.0.write_all(&3u32.to_be_bytes())?;
        // NBD_OPT_EXPORT_NAME of the empty name.
        client.0.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\0")?;
        client.take(10)?;
        Ok(client)
    }

    fn take(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn ask(&mut self, kind: u16, offset: u64, length: u32, data: &[u8], answer: usize) -> Result<Vec<u8>> {
        let mut request = [0x2560_9513u32.to_be_bytes(), u32::from(kind).to_be_bytes()].concat();
        request.extend_from_slice(&[0; 8]);
        request.extend_from_slice(&offset.to_be_bytes());
        request.extend_from_slice(&length.to_be_bytes());
        request.extend_from_slice(data);
        self.0.write_all(&request)?;
        let head = self.take(16)?;
        ensure!(head.get(4..8) == Some(&[0; 4]), "the server answered with an error");
        self.take(answer)
    }
}
