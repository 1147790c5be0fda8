//! A node with a volume attached to it is cut off, frozen or killed while a client writes to its NBD door. The volume
//! is attached elsewhere, by itself or by whoever asks first, and written anew there. Then the old node is let go: of
//! what its client wrote since, nothing lands.

use crate::admin::{Admin, may_repeat};
use crate::measure::distribution;
use crate::nbd::NbdClient;
use anyhow::{Context, Result, anyhow, bail, ensure};
use basalt_api::dial::plain;
use basalt_api::error::reason_of;
use basalt_api::random::request_id;
use basalt_api::v1::{AttachVolumeRequest, ErrorReason, MemberState, Node};
use basalt_interop::cluster::{Cluster, PATIENCE, Shape};
use basalt_interop::lan::Lan;
use basalt_interop::process::wait_until;
use std::collections::BTreeSet;
use std::fmt::{Display, Formatter};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const VOLUME: &str = "fenced";
const BLOCK: usize = 4096;
const BLOCKS: u64 = 256;
/// Writes that the old client keeps under way.
const DEPTH: usize = 16;
/// How long it writes before its node is lost.
const BEFORE: Duration = Duration::from_millis(700);
/// Writes that it sends when its node is lost already.
const LATE: u64 = 64;
/// How long nothing may come from the old node after it was let go, until that is believed.
const AFTER: Duration = Duration::from_secs(3);
const OLD: u8 = 0x0d;

/// What is done to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Cut {
    /// SIGSTOP, and SIGCONT later.
    Freeze,
    /// Its cable is pulled, and put in again later. The client is on its side.
    Network,
    /// SIGKILL, and started again later.
    Kill,
}

/// What is done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What to the nodes.
    pub cut: Cut,
    /// How often.
    pub rounds: usize,
    /// More options of nodes, such as shorter silences.
    pub node_args: Vec<String>,
}

/// One round.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// Whether the volume moved by itself; else another host was given it on demand.
    pub by_itself: bool,
    /// From the loss until the node was declared dead.
    pub decided: Duration,
    /// From there until the attachment was another one.
    pub attached: Duration,
    /// From there until the first write elsewhere was acknowledged.
    pub written: Duration,
    /// Writes of the old client that were refused, or never answered.
    pub refused: usize,
}

impl Display for Round {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let seconds = |time: Duration| time.as_secs_f64();
        write!(
            f,
            "{}: dead after {:.2} s, attached elsewhere {:.3} s later, first write there {:.3} s later, {:.2} s in \
             all; {} writes of the old client came to nothing",
            if self.by_itself { "by itself" } else { "on demand" },
            seconds(self.decided),
            seconds(self.attached),
            seconds(self.written),
            seconds(self.decided + self.attached + self.written),
            self.refused
        )
    }
}

/// The rounds together.
pub fn summary(cut: Cut, rounds: &[Round]) -> String {
    let of = |time: &dyn Fn(&Round) -> Duration| {
        let times: Vec<Duration> = rounds.iter().map(time).collect();
        let [p50, _, max] = distribution(&times).map(|time| time.as_secs_f64());
        format!("p50 {p50:.2} s, max {max:.2} s")
    };
    format!(
        "{cut:?}, {} rounds: death to decision {}; decision to first write elsewhere {}; death to first write {}; \
         nothing of the old writers landed",
        rounds.len(),
        of(&|r| r.decided),
        of(&|r| r.attached + r.written),
        of(&|r| r.decided + r.attached + r.written),
    )
}

/// Carries it out.
///
/// # Errors
/// If the volume does not move, or something of an old writer lands or is acknowledged.
pub fn run(name: &str, plan: &Plan, tell: impl Fn(&Round)) -> Result<Vec<Round>> {
    let lan = match plan.cut {
        Cut::Network => Some(Arc::new(Lan::new(3)?)),
        Cut::Freeze | Cut::Kill => None,
    };
    let node_args = plan.node_args.clone();
    let shape = Shape { device: "512MiB", segment: "4MiB", node_args, lan, ..Shape::default() };
    let cluster = Cluster::start_with(name, &shape)?;
    let size = (BLOCKS * BLOCK as u64).to_string();
    cluster.basalt(&["volume", "create", VOLUME, "--size", &size, "--failover", "node"])?;
    cluster.basalt(&["volume", "attach", VOLUME, "--host", "node-1"])?;
    let mut course = Course { cluster, cut: plan.cut, lan: shape.lan, round: 0 };
    let mut rounds = Vec::new();
    for number in 0..plan.rounds {
        let round = course.round().with_context(|| format!("round {number}"))?;
        tell(&round);
        rounds.push(round);
    }
    course.cluster.finish()?;
    Ok(rounds)
}

/// A `basalt-attach` is killed: how long another host that asks for its volume is refused.
///
/// # Errors
/// If it gets the volume while the first one lives, or never.
pub fn run_host(name: &str, node_args: &[String]) -> Result<Duration> {
    let node_args = node_args.to_vec();
    let cluster = Cluster::start_with(name, &Shape { node_args, ..Shape::default() })?;
    let size = (BLOCKS * BLOCK as u64).to_string();
    cluster.basalt(&["volume", "create", VOLUME, "--size", &size])?;
    let mut attached = cluster.attach(VOLUME, "fence-host", false)?;
    let mut client = NbdClient::open(attached.port, VOLUME, PATIENCE)?;
    client.write(0, &[OLD; BLOCK])?;
    let admin = Admin::without(&cluster, "")?;
    wait_until("it is known to serve", PATIENCE, || {
        let attachment = admin.volume_as_heard(VOLUME)?.attachment.context("it is attached")?;
        Ok(attachment.host_state() == MemberState::Up)
    })?;
    let course = Course { cluster, cut: Cut::Kill, lan: None, round: 0 };
    let died = Instant::now();
    attached.process.kill()?;
    let target = course.attach_on_demand(&admin, "fence-host")?;
    let refused = died.elapsed();
    let mut owner = course.open_elsewhere(&target)?;
    ensure!(owner.read(0, BLOCK as u32)? == [OLD; BLOCK], "what was written before is not there");
    owner.write(0, &[0; BLOCK])?;
    course.cluster.finish()?;
    Ok(refused)
}

struct Course {
    cluster: Cluster,
    cut: Cut,
    lan: Option<Arc<Lan>>,
    round: u8,
}

impl Course {
    fn round(&mut self) -> Result<Round> {
        self.round += 1;
        let by_itself = self.round % 2 == 1;
        let host = self.host(&Admin::without(&self.cluster, "")?)?;
        let at = self.cluster.place_of(&host)?;
        let others = Admin::without(&self.cluster, &host)?;
        let policy = if by_itself { "node" } else { "none" };
        self.cluster.basalt(&["volume", "update", VOLUME, "--failover", policy])?;
        let mut writer = Writer::start(self.client(at)?);
        std::thread::sleep(BEFORE);
        let (lost, clock) = (Instant::now(), now_ms());
        self.lose(at)?;
        writer.late();
        let new_host = match by_itself {
            true => self.wait_moved(&others, &host)?,
            false => self.attach_on_demand(&others, &host)?,
        };
        let mut owner = self.open_elsewhere(&new_host)?;
        owner.write(0, &self.content(0))?;
        let all = lost.elapsed();
        for block in 1..BLOCKS {
            owner.write(block * BLOCK as u64, &self.content(block))?;
        }
        let (decided, attached) = self.times(&others, &host, clock)?;
        self.let_go(at)?;
        let refused = writer.end()?;
        self.verify(&mut owner)?;
        std::thread::sleep(AFTER);
        self.verify(&mut owner)?;
        drop(owner);
        self.wait_back(&host)?;
        let written = all.saturating_sub(decided + attached);
        Ok(Round { by_itself, decided, attached, written, refused })
    }

    /// Who has the volume, as far as a node has heard: also while nobody leads.
    fn host(&self, admin: &Admin) -> Result<String> {
        let volume = admin.volume_as_heard(VOLUME)?;
        Ok(volume.attachment.context("it is attached")?.host)
    }

    /// A client at the door of a node, on the node's side of a cable.
    fn client(&self, at: usize) -> Result<NbdClient> {
        let mut opened = None;
        wait_until("the volume is served", PATIENCE, || {
            let (address, space) = (self.cluster.nodes[at].nbd_address(), self.inside(at)?);
            // The thread is in the namespace, and the socket stays there.
            let client = std::thread::spawn(move || {
                enter(space.as_deref())?;
                NbdClient::open_at(&address, VOLUME, PATIENCE)
            });
            opened = client.join().map_err(|_| anyhow!("the client panicked"))?.ok();
            Ok(opened.is_some())
        })?;
        opened.context("just opened")
    }

    fn inside(&self, at: usize) -> Result<Option<Arc<File>>> {
        self.lan.as_ref().map(|lan| lan.namespace(at + 1)).transpose()
    }

    fn lose(&mut self, at: usize) -> Result<()> {
        match (&self.lan, self.cut) {
            (Some(lan), _) => lan.cut(at + 1),
            (None, Cut::Kill) => self.cluster.nodes[at].process.kill(),
            (None, _) => self.cluster.nodes[at].freeze(),
        }
    }

    fn let_go(&mut self, at: usize) -> Result<()> {
        match (&self.lan, self.cut) {
            (Some(lan), _) => lan.mend(at + 1),
            (None, Cut::Kill) => self.cluster.nodes[at].process.restart(),
            (None, _) => self.cluster.nodes[at].thaw(),
        }
    }

    fn wait_moved(&self, others: &Admin, host: &str) -> Result<String> {
        let mut now = host.to_owned();
        wait_closely("the volume is attached elsewhere", || {
            now = self.host(others)?;
            Ok(now != host)
        })?;
        Ok(now)
    }

    /// Another host asks for the volume until it gets it, which is when the node counts as dead.
    fn attach_on_demand(&self, others: &Admin, host: &str) -> Result<String> {
        let target = self.cluster.nodes.iter().find(|node| node.name != host);
        let target = target.context("another node")?.name.clone();
        let request = AttachVolumeRequest {
            name: format!("volumes/{VOLUME}"),
            host: target.clone(),
            request_id: request_id("fence"),
            ..AttachVolumeRequest::default()
        };
        let mut refusals = 0;
        wait_closely("another host gets the volume", || {
            let asked = others.call(|mut client| {
                let request = request.clone();
                async move { client.attach_volume(request).await }
            });
            match asked {
                Ok(_) => Ok(true),
                Err(status) if reason_of(&status) == Some(ErrorReason::VolumeAttached) => {
                    refusals += 1;
                    Ok(false)
                }
                Err(status) if may_repeat(&status) => Ok(false),
                Err(status) => bail!("attaching: {}", plain(&status)),
            }
        })?;
        ensure!(
            refusals > 0,
            "a node that was there a moment ago lost its volume to the first who asked"
        );
        Ok(target)
    }

    fn open_elsewhere(&self, name: &str) -> Result<NbdClient> {
        let node = &self.cluster.nodes[self.cluster.place_of(name)?];
        let (address, mut opened) = (node.nbd_address(), None);
        wait_closely("it is served there", || {
            opened = NbdClient::open_at(&address, VOLUME, PATIENCE).ok();
            Ok(opened.is_some())
        })?;
        opened.context("just opened")
    }

    /// How long the decision took, and from there the attachment: both are in the records, and all clocks here are
    /// one.
    fn times(&self, others: &Admin, host: &str, clock: i64) -> Result<(Duration, Duration)> {
        let volume = others.volume(VOLUME).map_err(|status| anyhow!("{}", plain(&status)))?;
        let since = volume.attachment.context("attached")?.since_ms;
        let node = find(&others.status()?.nodes, host)?;
        ensure!(node.member_state() == MemberState::Down, "{host} does not count as dead");
        let (decided, attached) =
            (node.member_state_since_ms - clock, since - node.member_state_since_ms);
        let millis = |time: i64| Duration::from_millis(time.max(0) as u64);
        Ok((millis(decided), millis(attached)))
    }

    /// Every block is what its owner wrote, whatever the old node did meanwhile.
    fn verify(&self, owner: &mut NbdClient) -> Result<()> {
        for block in 0..BLOCKS {
            let data = owner.read(block * BLOCK as u64, BLOCK as u32)?;
            ensure!(
                data == self.content(block),
                "block {block} holds something that its owner did not write"
            );
        }
        Ok(())
    }

    fn content(&self, block: u64) -> Vec<u8> {
        let mut data = vec![0x80 | self.round; BLOCK];
        data[..8].copy_from_slice(&block.to_le_bytes());
        data
    }

    fn wait_back(&self, host: &str) -> Result<()> {
        let all = Admin::without(&self.cluster, "")?;
        wait_until("the node counts as up again", PATIENCE, || {
            Ok(find(&all.status()?.nodes, host)?.member_state() == MemberState::Up)
        })?;
        self.cluster.wait_healthy()
    }
}

fn find(nodes: &[Node], name: &str) -> Result<Node> {
    let found = nodes.iter().find(|node| node.name == name);
    found.cloned().with_context(|| format!("no node {name}"))
}

/// As [`wait_until`], and looks more often: what is measured ends with it.
fn wait_closely(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !holds()? {
        ensure!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Has this thread go on in a network namespace.
fn enter(space: Option<&File>) -> Result<()> {
    let Some(space) = space else { return Ok(()) };
    // SAFETY: plain system call on a descriptor that is open.
    let entered = unsafe { libc::setns(space.as_raw_fd(), libc::CLONE_NEWNET) };
    ensure!(entered == 0, "can not enter: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Milliseconds since 1970.
fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// The client of the node that is lost: it writes as fast as it is answered, and has more under way when it is not.
struct Writer {
    lost: Arc<AtomicBool>,
    thread: JoinHandle<Result<Old>>,
}

/// The client when its node is lost.
struct Old {
    client: NbdClient,
    under_way: BTreeSet<u64>,
    late: BTreeSet<u64>,
}

impl Writer {
    fn start(mut client: NbdClient) -> Writer {
        let lost = Arc::new(AtomicBool::new(false));
        let told = lost.clone();
        let thread = std::thread::spawn(move || {
            let (mut under_way, mut next, mut late) = (BTreeSet::new(), 0, BTreeSet::new());
            while !told.load(Ordering::Relaxed) {
                while under_way.len() < DEPTH {
                    let offset = next % BLOCKS * BLOCK as u64;
                    next += 1;
                    match client.send_write(offset, &[OLD; BLOCK]) {
                        Ok(number) => under_way.insert(number),
                        Err(_) => break,
                    };
                }
                if !client.has_answer(Duration::from_millis(100))? {
                    continue;
                }
                let Some(answer) = client.answer()? else { break };
                ensure!(answer.error == 0, "a write failed before the node was lost");
                under_way.remove(&answer.number);
            }
            // These reach the door, or its socket, when the node is cut off already.
            for block in 0..LATE {
                match client.send_write(block * BLOCK as u64, &[OLD; BLOCK]) {
                    Ok(number) => drop(late.insert(number)),
                    Err(_) => break,
                }
            }
            Ok(Old { client, under_way, late })
        });
        Writer { lost, thread }
    }

    /// The node is lost: what is written from now on must never land.
    fn late(&mut self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    /// The node was let go. How many writes came to nothing: none that was sent late may be acknowledged.
    fn end(self) -> Result<usize> {
        let Old { mut client, mut under_way, late } =
            self.thread.join().map_err(|_| anyhow!("the writer panicked"))??;
        let mut refused = late.len();
        while let Some(answer) = client.answer().context("its door neither answers nor closes")? {
            ensure!(
                answer.error != 0 || !late.contains(&answer.number),
                "a write of a client that was shut out is acknowledged: {answer:?}"
            );
            if answer.error == 0 {
                under_way.remove(&answer.number);
            }
        }
        refused += under_way.len();
        Ok(refused)
    }
}
