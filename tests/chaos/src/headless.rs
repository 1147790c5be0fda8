//! Every thread of every process is stopped but the reactors: nobody answers gRPC, keeps records, takes
//! checkpoints or
//! hears of changes. Volumes that are attached serve on, to clients that are connected and to new ones, also when all
//! links are broken; then the threads go on, and so does everything else.

use crate::admin::Admin;
use crate::nbd::NbdClient;
use anyhow::{Context, Result, anyhow, bail, ensure};
use basalt_api::dial::plain;
use basalt_api::v1::MemberState;
use basalt_interop::cluster::{Cluster, PATIENCE, Shape};
use basalt_interop::fio::FioJob;
use basalt_interop::process::{run as run_program, wait_until};
use std::fmt::{Display, Formatter};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const ON_NODE: &str = "on-a-node";
const ELSEWHERE: &str = "elsewhere";
const HOST: &str = "headless-host";
/// More than is written, so that each block is written once and verified.
const SIZE: u64 = 512 << 20;
/// Bytes written a second, to each volume.
const RATE: u64 = 4 << 20;
/// How long the threads go on after fio has begun, and fio after they go on again.
const MARGIN: Duration = Duration::from_secs(2);
/// How long a node without its head is given to answer what it can not.
const VAIN: Duration = Duration::from_secs(3);

/// How it went.
#[derive(Clone, Debug)]
pub struct Report {
    /// How long only the reactors ran.
    pub time: Duration,
    /// Threads that stood still, and threads that ran on.
    pub threads: (usize, usize),
    /// Requests of fio that were answered, on both volumes.
    pub requests: u64,
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} threads of four processes stood still for {:.0} s, {} reactors ran on: {} requests on two volumes were \
             answered and verified, no error, all links broken once; then everything went on",
            self.threads.0,
            self.time.as_secs_f64(),
            self.threads.1,
            self.requests
        )
    }
}

/// Has only the reactors run for so long.
///
/// # Errors
/// If a request fails, or something does not go on afterwards.
pub fn run(name: &str, time: Duration) -> Result<Report> {
    let mut cluster = Cluster::start_with(name, &Shape::default())?;
    for volume in [ON_NODE, ELSEWHERE] {
        cluster.basalt(&["volume", "create", volume, "--size", &SIZE.to_string()])?;
    }
    cluster.basalt(&["volume", "attach", ON_NODE, "--host", "node-1"])?;
    let mut attached = cluster.attach(ELSEWHERE, HOST, false)?;
    let uris = [cluster.nodes[0].uri(ON_NODE), attached.uri(ELSEWHERE)];
    cluster.wait_served(&uris[0])?;
    let jobs = uris.map(|uri| {
        let runtime = Some(time + 2 * MARGIN);
        FioJob { rate_bytes: Some(RATE), runtime, ..FioJob::verified_writes(&uri, SIZE) }
    });
    let running = jobs.iter().map(FioJob::start).collect::<Result<Vec<_>>>()?;
    std::thread::sleep(MARGIN);
    let mut processes: Vec<(u32, String)> =
        cluster.nodes.iter().map(|node| (node.process.id(), node.name.clone())).collect();
    processes.push((attached.process.id(), HOST.to_owned()));
    let began = Instant::now();
    let held = Held::stop(processes)?;
    let threads = held.threads;
    without_heads(&cluster, time.saturating_sub(began.elapsed()))?;
    let stood = began.elapsed();
    held.go_on()?;
    let mut requests = 0;
    for job in running {
        let result = job.finish()?;
        requests += result.write.requests + result.read.requests;
    }
    goes_on(&mut cluster)?;
    attached.process.stop(PATIENCE)?;
    cluster.finish()?;
    Ok(Report { time: stood, threads, requests })
}

/// Nobody answers but the doors.
fn without_heads(cluster: &Cluster, time: Duration) -> Result<()> {
    let began = Instant::now();
    for node in &cluster.nodes {
        let admin = Admin::patient(vec![node.address()], VAIN)?;
        ensure!(admin.status().is_err(), "{} answers without its head", node.name);
    }
    let mut client = NbdClient::open_at(&cluster.nodes[0].nbd_address(), ON_NODE, PATIENCE)
        .context("a new client comes to a door without a head")?;
    client.read(0, 4096).context("a read without heads")?;
    // Links are opened anew by what the reactors hold: keys and tickets.
    let broken = cluster.nodes.iter().map(|node| break_links(node.ports.data));
    let broken = broken.sum::<Result<usize>>()?;
    ensure!(broken > 0, "no link could be broken");
    println!("{broken} ends of links were broken");
    while began.elapsed() < time {
        client.read(0, 4096).context("a read without heads")?;
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Breaks all connections of a port at once, as a switch that restarts does. How many ends there were.
fn break_links(port: u16) -> Result<usize> {
    let which = format!("( sport = :{port} or dport = :{port} )");
    let killed = run_program("ss", &["-K", "-H", "-t", "-n", "state", "established", &which])?;
    Ok(killed.lines().count())
}

/// The heads are back: nobody was buried meanwhile, and changes are made.
fn goes_on(cluster: &mut Cluster) -> Result<()> {
    cluster.wait_healthy()?;
    cluster.basalt(&["volume", "create", "after", "--size", "1MiB"])?;
    let admin = Admin::without(cluster, "")?;
    wait_until("all nodes count as up", PATIENCE, || {
        let status = admin.status()?;
        ensure!(
            status.nodes.iter().all(|node| node.member_state() != MemberState::Down),
            "a node was declared dead by one that could hear nobody: {:?}",
            status.nodes
        );
        Ok(status.nodes.iter().all(|node| node.member_state() == MemberState::Up))
    })?;
    let volume = admin.volume("after").map_err(|status| anyhow!("{}", plain(&status)))?;
    ensure!(volume.size_bytes == 1 << 20, "{volume:?}");
    Ok(())
}

/// Threads that a tracer holds. They go on when it lets go of them, or ends.
struct Held {
    /// How many are held, and how many run on.
    threads: (usize, usize),
    release: Sender<()>,
    tracer: JoinHandle<Result<()>>,
}

impl Held {
    /// Stops all threads of some processes but the reactor of each, which has the name that stands beside it.
    fn stop(processes: Vec<(u32, String)>) -> Result<Held> {
        let ((told, stopped), (release, released)) = (channel(), channel());
        // Whoever seizes a thread has to be the one to let it go.
        let tracer = std::thread::spawn(move || {
            let (mut held, mut free) = (Vec::new(), 0);
            for (process, reactor) in &processes {
                let ran = seize_all(*process, reactor, &mut held)?;
                ensure!(ran > 0, "process {process} has no thread '{reactor}'");
                free += ran;
            }
            // Whoever waits for this may have given up.
            let _ = told.send((held.len(), free));
            // That there is nobody to say so any more is as good.
            let _ = released.recv();
            held.into_iter().try_for_each(detach)
        });
        match stopped.recv() {
            Ok(threads) => Ok(Held { threads, release, tracer }),
            Err(_) => match tracer.join() {
                Ok(Err(error)) => {
                    Err(error).context("threads can not be stopped (needs to be root)")
                }
                _ => bail!("the tracer panicked"),
            },
        }
    }

    fn go_on(self) -> Result<()> {
        // The tracer waits for it as long as it lives.
        let _ = self.release.send(());
        self.tracer.join().map_err(|_| anyhow!("the tracer panicked"))?
    }
}

/// Stops the threads of a process until no new one appears. Says how many run on.
fn seize_all(process: u32, reactor: &str, held: &mut Vec<libc::pid_t>) -> Result<usize> {
    loop {
        let (before, mut free) = (held.len(), 0);
        for entry in std::fs::read_dir(format!("/proc/{process}/task"))? {
            let entry = entry?;
            let thread: libc::pid_t = entry.file_name().to_string_lossy().parse()?;
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            let name = name.trim_end();
            // What the kernel does for the ring is the reactor's.
            if name == &reactor[..reactor.len().min(15)] || name.starts_with("iou-") {
                free += usize::from(!name.starts_with("iou-"));
            } else if !held.contains(&thread) {
                seize(thread).with_context(|| format!("thread '{name}' of process {process}"))?;
                held.push(thread);
            }
        }
        if held.len() == before {
            return Ok(free);
        }
    }
}

fn trace(request: libc::c_uint, thread: libc::pid_t) -> Result<()> {
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: no memory is passed; the thread is one of a child of this process.
    let done = unsafe { libc::ptrace(request, thread, none, none) };
    ensure!(done >= 0, "ptrace: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Stops a thread, and waits until it is stopped.
fn seize(thread: libc::pid_t) -> Result<()> {
    trace(libc::PTRACE_SEIZE, thread)?;
    trace(libc::PTRACE_INTERRUPT, thread)?;
    let mut status = 0;
    // SAFETY: the status is this function's own.
    let seen = unsafe { libc::waitpid(thread, &mut status, libc::__WALL) };
    ensure!(seen == thread && libc::WIFSTOPPED(status), "it does not stop: {status:#x}");
    Ok(())
}

fn detach(thread: libc::pid_t) -> Result<()> {
    trace(libc::PTRACE_DETACH, thread)
}
