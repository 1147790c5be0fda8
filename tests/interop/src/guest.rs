//! A Linux kernel as a process (User Mode Linux), for the kernel's own NBD client.
//!
//! The guest's root file system is the host's, read-only, so it has every program that the host has.
//! Host and guest share an Ethernet segment in a network namespace of its own: nothing of it is seen
//! outside, and it goes when the last process in it does. A guest runs one job, a shell script, which
//! may ask the host for something ([`Guest::run`]) and waits until it is done, so that no test depends
//! on who is faster.

use crate::process::{Program, run};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The host's address, as the guest sees it.
const HOST: &str = "10.77.0.1";
/// Where jobs expect NBD.
const NBD_PORT: u16 = 10809;
/// Where the host takes a job's requests.
const ORDERS_PORT: u16 = 10810;
/// Programs that every job needs, and their Debian packages.
const PROGRAMS: [(&str, &str); 7] = [
    ("linux.uml", "user-mode-linux"),
    ("nbd-client", "nbd-client"),
    ("insmod", "kmod"),
    ("ip", "iproute2"),
    ("unshare", "util-linux"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
];

/// Says what is missing for a guest on this machine.
///
/// # Errors
/// Names everything that is missing, with the Debian package that has it.
pub fn check_machine() -> Result<()> {
    let mut missing = Vec::new();
    // SAFETY: reads the process's own user id.
    if unsafe { libc::geteuid() } != 0 {
        missing.push("the rights of root, for a network namespace and mounts".to_owned());
    }
    if !Path::new("/dev/net/tun").exists() {
        missing.push("/dev/net/tun (the kernel's module tun)".to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    for (program, package) in PROGRAMS {
        if !std::env::split_paths(&path).any(|folder| folder.join(program).is_file()) {
            missing.push(format!("{program} (Debian package {package})"));
        }
    }
    ensure!(
        missing.is_empty(),
        "a guest kernel can not run here, it needs: {}",
        missing.join(", ")
    );
    Ok(())
}

/// The Ethernet segment between the host and a guest.
pub struct Segment {
    namespace: Arc<File>,
}

impl Segment {
    /// A new one.
    ///
    /// # Errors
    /// Says what the machine lacks for it.
    pub fn new() -> Result<Segment> {
        check_machine()?;
        // A namespace belongs to a thread: this one makes it, and its file keeps it.
        let made = std::thread::spawn(|| -> Result<File> {
            // SAFETY: changes the network namespace of this thread alone, which ends below.
            let made = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            let problem = std::io::Error::last_os_error();
            ensure!(made == 0, "no network namespace can be made: {problem}");
            run("ip", &["link", "set", "lo", "up"])?;
            run("ip", &["tuntap", "add", "dev", "tap0", "mode", "tap"])?;
            run("ip", &["addr", "add", &format!("{HOST}/24"), "dev", "tap0"])?;
            run("ip", &["link", "set", "tap0", "up"])?;
            File::open("/proc/thread-self/ns/net").context("the namespace has no file")
        });
        let namespace = made.join().map_err(|_| anyhow!("the thread panicked"))??;
        Ok(Segment { namespace: Arc::new(namespace) })
    }

    /// Listens for the guest on a port.
    ///
    /// # Errors
    /// If something listens there already.
    pub fn listen(&self, port: u16) -> Result<TcpListener> {
        let namespace = self.namespace.clone();
        let bound = std::thread::spawn(move || -> Result<TcpListener> {
            // SAFETY: changes the network namespace of this thread alone, which ends below.
            let entered = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
            ensure!(entered == 0, "can not enter it: {}", std::io::Error::last_os_error());
            TcpListener::bind((HOST, port)).with_context(|| format!("{HOST}:{port}"))
        });
        bound.join().map_err(|_| anyhow!("the thread panicked"))?
    }

    /// Listens where jobs expect NBD.
    ///
    /// # Errors
    /// If something listens there already.
    pub fn listen_nbd(&self) -> Result<TcpListener> {
        self.listen(NBD_PORT)
    }
}

/// A running guest.
pub struct Guest {
    process: Program,
    orders: TcpListener,
    memory: PathBuf,
    log: PathBuf,
}

impl Guest {
    /// Boots a guest for a job of the folder `guest`, which finds `settings` in its environment. What
    /// it prints is appended to `folder/guest.log`.
    ///
    /// # Errors
    /// If it can not be started.
    pub fn boot(segment: &Segment, folder: &Path, job: &str, settings: &[&str]) -> Result<Guest> {
        let orders = segment.listen(ORDERS_PORT)?;
        orders.set_nonblocking(true)?;
        let scripts = concat!(env!("CARGO_MANIFEST_DIR"), "/guest");
        let (memory, log) = (folder.join("guest-memory"), folder.join("guest.log"));
        std::fs::create_dir_all(&memory)?;
        // Processes and mounts of the guest go with the first process of its namespaces, and that one
        // with this process. Its memory is a file of a file system of its own.
        let start = format!(
            "mount -t tmpfs -o size=640M tmpfs {0} && TMPDIR={0} HOME={0} exec linux.uml \"$@\"",
            memory.display()
        );
        let mut process = Program::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", &start, "guest"])
            .args(["mem=512M", "con0=null,fd:1", "con=null", "quiet", "panic=-1"])
            .args(["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"])
            .args(["vec0:transport=tap,ifname=tap0,gro=1"])
            .args([&format!("init={scripts}/init.sh"), &format!("BASALT_JOB={scripts}/{job}")])
            .args([&format!("BASALT_HOST={HOST}"), &format!("BASALT_ORDERS={ORDERS_PORT}")])
            .network(segment.namespace.clone())
            .log(log.clone());
        for setting in settings {
            process = process.args([setting]);
        }
        let process = process.start()?;
        Ok(Guest { process, orders, memory, log })
    }

    /// Runs the job to its end. `order` carries out what the job asks for, given as words.
    ///
    /// # Errors
    /// If the job fails, the guest dies, or neither ends within `patience`.
    pub fn run(
        &mut self,
        patience: Duration,
        mut order: impl FnMut(&[&str]) -> Result<()>,
    ) -> Result<()> {
        let began = Instant::now();
        while !self.turn(&mut order)? {
            self.ensure_before(began, patience)?;
        }
        Ok(())
    }

    /// Runs the job, which is to go on for ever, until a condition of the host's holds.
    ///
    /// # Errors
    /// If the job ends, the guest dies, or `patience` is over.
    pub fn run_until(&mut self, patience: Duration, holds: impl Fn() -> bool) -> Result<()> {
        let began = Instant::now();
        while !holds() {
            let ended = self.turn(&mut |words| bail!("nobody expected '{}'", words.join(" ")))?;
            ensure!(!ended, "the job ended too early{}", self.process.log_tail());
            self.ensure_before(began, patience)?;
        }
        Ok(())
    }

    /// Takes one request, or waits a moment; true once the job has ended well.
    fn turn(&mut self, order: &mut impl FnMut(&[&str]) -> Result<()>) -> Result<bool> {
        let alive = self.process.alive();
        match self.orders.accept() {
            Ok((stream, _)) => match serve(stream, order)?.as_deref() {
                Some("0") => Ok(true),
                Some(_) => bail!("the job failed{}", self.process.log_tail()),
                None => Ok(false),
            },
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                ensure!(alive, "the guest died{}", self.process.log_tail());
                std::thread::sleep(Duration::from_millis(20));
                Ok(false)
            }
            Err(e) => Err(e).context("the guest's requests can not be taken"),
        }
    }

    fn ensure_before(&self, began: Instant, patience: Duration) -> Result<()> {
        let log = || self.process.log_tail();
        ensure!(began.elapsed() < patience, "the job takes over {patience:?}{}", log());
        Ok(())
    }

    /// What its jobs said so far, a line a step.
    pub fn said(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().filter(|line| line.starts_with('[')).map(|line| format!("{line}\n")).collect()
    }

    /// Ends it as a power cut does.
    ///
    /// # Errors
    /// If it can not be killed.
    pub fn cut_power(mut self) -> Result<()> {
        self.process.kill()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may be gone already, and a folder that stays is removed with the test's.
        let _ = self.process.kill();
        let _ = std::fs::remove_dir(&self.memory);
    }
}

/// Carries out one request; the job's status if that is what it tells.
fn serve(
    stream: TcpStream,
    order: &mut impl FnMut(&[&str]) -> Result<()>,
) -> Result<Option<String>> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).context("a request without an end")?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let (answer, status) = match words.as_slice() {
        ["ended", status] => ("ok".to_owned(), Some((*status).to_owned())),
        words => match order(words) {
            Ok(()) => ("ok".to_owned(), None),
            Err(e) => (format!("{e:#}").replace('\n', " "), None),
        },
    };
    let mut stream = &stream;
    writeln!(stream, "{answer}").context("the guest does not take an answer")?;
    Ok(status)
}
