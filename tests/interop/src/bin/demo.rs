//! `make demo`: what Basalt does, on this machine, in a minute.
//!
//! Three nodes on loopback, a volume of 1 GiB served over NBD, fio writing and verifying through it
//! while one node is killed with SIGKILL and brought back. Every step is a command that a user would
//! give; the lines printed with `$` can be copied.

use anyhow::{Context, Result, bail, ensure};
use basalt_interop::fio::{FioJob, FioResult, RunningFio};
use basalt_interop::ports::{free_port, free_port_preferring};
use basalt_interop::process::{Program, bin_dir, run, wait_until};
use std::fs::{File, TryLockError};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Bytes that fio writes, each verified afterwards.
const WRITTEN_BYTES: u64 = 1 << 30;
/// Bytes a second that fio writes at most, so that the kill falls into the middle of the run and
/// three nodes, fio and the rest fit two cores.
const RATE_BYTES: u64 = 48 << 20;
/// How long the killed node stays away.
const AWAY: Duration = Duration::from_secs(3);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn interrupted(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

fn main() {
    let exit = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--exit") => true,
        Some(other) => {
            eprintln!("demo: unknown argument '{other}'; --exit ends after the result");
            std::process::exit(2);
        }
    };
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler only stores to an atomic, which is safe in a signal handler.
        unsafe { libc::signal(signal, interrupted as *const () as libc::sighandler_t) };
    }
    if let Err(error) = demo(exit) {
        eprintln!("\ndemo: {error:#}");
        std::process::exit(1);
    }
}

/// A folder of this demo's own: the first that no other demo has locked.
struct Slot {
    folder: PathBuf,
    _lock: File,
}

impl Slot {
    fn take() -> Result<Slot> {
        let base = bin_dir().parent().context("the programs stand in no folder")?.to_path_buf();
        for number in 1..=16 {
            let folder = base.join(format!("demo/{number}"));
            std::fs::create_dir_all(&folder)
                .with_context(|| format!("can not create {}", folder.display()))?;
            let lock = File::create(folder.join("lock"))?;
            match lock.try_lock() {
                Ok(()) => {
                    // What a demo before left: nobody holds the lock, so nobody uses it.
                    for entry in std::fs::read_dir(&folder)?.flatten() {
                        if entry.path().is_dir() {
                            std::fs::remove_dir_all(entry.path())?;
                        }
                    }
                    return Ok(Slot { folder: folder.canonicalize()?, _lock: lock });
                }
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
        }
        bail!("16 demos run already");
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                // Whatever stays behind is removed by the next demo.
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// The running cluster. Fields are dropped in order: the front door before the nodes.
struct Demo {
    attach: Option<Program>,
    nodes: Vec<Program>,
    cluster: String,
    secret: String,
    uri: String,
    _slot: Slot,
}

fn step(text: &str) {
    println!("\x1b[1m==> {text}\x1b[0m");
}

fn start_node(folder: &Path, number: usize, ports: (u16, u16), secret: &str) -> Result<Program> {
    let folder = folder.join(format!("node-{number}"));
    std::fs::create_dir_all(&folder)?;
    Program::new("basaltd")
        .args(["--name", &format!("node-{number}")])
        .args(["--data-dir", &folder.to_string_lossy()])
        .args(["--device-size", "8GiB", "--secret-file", secret])
        .args(["--listen", &format!("127.0.0.1:{}", ports.0)])
        .args(["--data-listen", &format!("127.0.0.1:{}", ports.1)])
        .log(folder.join("log"))
        .start()
}

impl Demo {
    fn start() -> Result<Demo> {
        let slot = Slot::take()?;
        let ports: Vec<(u16, u16)> =
            (0..3).map(|_| Ok((free_port()?, free_port()?))).collect::<Result<_>>()?;
        step("a secret, by which nodes and users know each other");
        let folder = slot.folder.join("keys");
        std::fs::create_dir_all(&folder)?;
        let secret = folder.join("secret").to_string_lossy().into_owned();
        println!("    $ basalt secret new {secret}");
        run("basalt", &["secret", "new", &secret])?;
        println!("    $ export BASALT_SECRET_FILE={secret}");
        step("three nodes, each with a device of its own (a file, O_DIRECT)");
        let nodes = ports
            .iter()
            .enumerate()
            .map(|(i, ports)| start_node(&slot.folder, i + 1, *ports, &secret))
            .collect::<Result<Vec<_>>>()?;
        let addresses: Vec<String> =
            ports.iter().map(|(grpc, _)| format!("127.0.0.1:{grpc}")).collect();
        let cluster = addresses.join(",");
        for address in &addresses {
            wait_until("a node answers", Duration::from_secs(60), || {
                Ok(std::net::TcpStream::connect(address).is_ok())
            })?;
        }
        let mut words = vec!["cluster", "bootstrap"];
        for address in &addresses {
            words.extend(["--node", address]);
        }
        println!("    $ basalt {}", words.join(" "));
        let first = ["--secret-file", &secret, "--cluster", &addresses[0]];
        run("basalt", &[&first, &words[..]].concat())?;
        println!("    $ export BASALT_CLUSTER={cluster}");
        println!("    $ basalt volume create demo --size 1GiB");
        let all = ["--secret-file", &secret, "--cluster", &cluster];
        let create = ["volume", "create", "demo", "--size", "1GiB"];
        run("basalt", &[&all[..], &create].concat())?;
        let port = free_port_preferring(10809)?;
        let listen = format!("127.0.0.1:{port}");
        println!("    $ basalt-attach --volume demo --listen {listen}");
        let attach = Program::new("basalt-attach")
            .more_args(&all)
            .args(["--volume", "demo", "--listen", &listen])
            .log(slot.folder.join("node-1/attach.log"))
            .start()?;
        let uri = format!("nbd://{listen}/demo");
        wait_until("the volume is served", Duration::from_secs(60), || {
            Ok(run("nbdinfo", &["--size", &uri]).is_ok())
        })?;
        Ok(Demo { attach: Some(attach), nodes, cluster, secret, uri, _slot: slot })
    }

    /// fio writes and verifies; half way a node is killed, and brought back a little later.
    fn load(&mut self) -> Result<FioResult> {
        let mut job = FioJob::verified_writes(&self.uri, WRITTEN_BYTES);
        job.rate_bytes = Some(RATE_BYTES);
        let mut fio = job.start()?;
        self.progress(&mut fio, WRITTEN_BYTES / 2)?;
        println!("\n    half of it is written: kill -9 {}    (node-3)", self.nodes[2].id());
        self.nodes[2].kill()?;
        let killed = Instant::now();
        while killed.elapsed() < AWAY && !fio.ended()? && !INTERRUPTED.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(100));
        }
        println!("    node-3 starts again and catches up");
        self.nodes[2].restart()?;
        self.progress(&mut fio, WRITTEN_BYTES)?;
        println!("\n    fio reads everything back and verifies it");
        fio.finish()
    }

    /// Shows how far fio has come, until it has written `until` bytes.
    fn progress(&self, fio: &mut RunningFio, until: u64) -> Result<()> {
        let terminal = std::io::stdout().is_terminal();
        loop {
            let written = fio.written_bytes();
            if terminal {
                print!("\r    {:>4} of {} MiB written", written >> 20, WRITTEN_BYTES >> 20);
                std::io::stdout().flush()?;
            }
            if written >= until || fio.ended()? {
                return Ok(());
            }
            ensure!(!INTERRUPTED.load(Ordering::SeqCst), "interrupted");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn report(&self, result: &FioResult) -> Result<()> {
        step("result");
        for (name, side) in [("write", &result.write), ("verify", &result.read)] {
            println!(
                "    {name:<7}{:>9} requests of 4 KiB {:>8.0} IOPS   \
                 p50 {:>6.0} µs   p99 {:>7.0} µs   p99.9 {:>7.0} µs",
                side.requests, side.iops, side.p50_us, side.p99_us, side.p999_us
            );
        }
        println!("    longest stall {:.0} ms, with a node killed by SIGKILL", result.max_ms());
        println!("    verification errors: 0");
        println!(
            "    (writes held at {} MiB/s so that the kill falls into the middle)",
            RATE_BYTES >> 20
        );
        wait_until("the killed node has caught up", Duration::from_secs(60), || {
            let all = ["--secret-file", &self.secret, "--cluster", &self.cluster];
            Ok(run("basalt", &[&all[..], &["cluster", "status", "--check"]].concat()).is_ok())
        })?;
        println!("    the node that was killed has caught up");
        Ok(())
    }
}

fn demo(exit: bool) -> Result<()> {
    let mut demo = Demo::start()?;
    step(&format!(
        "fio writes 1 GiB through {} and verifies it; node-3 is killed half way",
        demo.uri
    ));
    let result = demo.load()?;
    demo.report(&result)?;
    if !exit {
        step("it stays up until Ctrl-C; try, in another terminal:");
        println!("    export BASALT_SECRET_FILE={}", demo.secret);
        println!("    export BASALT_CLUSTER={}", demo.cluster);
        println!("    basalt cluster status --groups");
        println!("    basalt volume list -o json");
        println!("    nbdinfo {}", demo.uri);
        println!("    nbdcopy {} - | sha256sum", demo.uri);
        println!("    qemu-io -f raw {} -c 'write -P 0x5a 0 1M' -c 'read -P 0x5a 0 1M'", demo.uri);
        println!("    kill -9 {}    # any node: the volume goes on", demo.nodes[1].id());
        while !INTERRUPTED.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(200));
        }
        println!();
    }
    step("stopping");
    if let Some(mut attach) = demo.attach.take() {
        attach.stop(Duration::from_secs(10))?;
    }
    for node in &mut demo.nodes {
        node.stop(Duration::from_secs(10))?;
    }
    Ok(())
}
