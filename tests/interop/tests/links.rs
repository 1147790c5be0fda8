//! Strangers, wrong keys and tickets on every TCP port of a cluster that has a secret: nothing but the health
//! service answers them.

use anyhow::{Context, Result, bail, ensure};
use basalt_api::dial::channel_as;
use basalt_api::random::request_id;
use basalt_api::v1::admin_client::AdminClient;
use basalt_api::v1::{AttachVolumeRequest, GetClusterRequest, IssueTicketRequest, LinkTicket};
use basalt_interop::cluster::{Cluster, PATIENCE, Shape};
use basalt_interop::ports::listening;
use basalt_interop::process::{Program, run, secret_file, work_dir};
use basalt_link::{Access, DialStep, Dialler, Grant, Keys, LinkAuth, Proven, Ticket};
use basalt_security::authority::{Authority, Subject};
use basalt_security::keyring::Source;
use basalt_security::secret::Purpose;
use basalt_security::{Credentials, Keyring, Role, Secrets};
use basalt_wire::codec::{DecodeLimits, Decoder, Encoder};
use basalt_wire::command::BlockRange;
use basalt_wire::frame::{
    Frame, Hello, PROTOCOL_VERSION, Priority, Refusal, ReplyResult, Request, RequestOp,
    Role as LinkRole,
};
use basalt_wire::ids::{
    Address, ClusterId, Epoch, Generation, GroupId, Incarnation, NodeId, RequestId, ShardId, Term,
    VolumeId,
};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// A connection to a data port.
struct Link {
    stream: TcpStream,
    decoder: Decoder,
}

impl Link {
    fn connect(port: u16) -> Result<Link> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Link { stream, decoder: Decoder::new(DecodeLimits::CLIENT) })
    }

    fn send(&mut self, frame: &Frame) -> Result<()> {
        let mut encoder = Encoder::new();
        encoder.push(frame);
        Ok(self.stream.write_all(&encoder.take().concat())?)
    }

    /// The next frame; nothing if the other side has ended the link.
    fn receive(&mut self) -> Result<Option<Frame>> {
        let mut buffer = [0; 16 << 10];
        loop {
            if let Some(frame) = self.decoder.next()? {
                return Ok(Some(frame));
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(len) => self.decoder.push(buffer[..len].to_vec().into()),
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return Ok(None),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Fails if anything but a refusal comes before the link ends. The text of the refusal.
    fn must_end(&mut self) -> Result<String> {
        let mut text = String::new();
        while let Some(frame) = self.receive()? {
            match frame {
                Frame::Welcome(welcome) if !welcome.refusal.is_empty() => text = welcome.refusal,
                Frame::Challenge(_) => {}
                other => bail!("a stranger was answered: {other:?}"),
            }
        }
        Ok(text)
    }

    fn ask(&mut self, (volume, epoch): (u64, u64), op: RequestOp) -> Result<ReplyResult> {
        let (id, group) = (RequestId(1), GroupId(0));
        let (volume, epoch, incarnation) = (VolumeId(volume), Epoch(epoch), Incarnation(1));
        self.send(&Frame::Request(Request {
            id,
            group,
            volume,
            epoch,
            incarnation,
            priority: Priority::BestEffort,
            traced: false,
            op,
        }))?;
        match self.receive()?.context("the link was ended")? {
            Frame::Reply(reply) => Ok(reply.result),
            other => bail!("no reply but {other:?}"),
        }
    }
}

/// A node's data port, and how one is greeted that is meant.
#[derive(Clone, Copy)]
struct Target {
    port: u16,
    cluster: ClusterId,
    address: Address,
}

fn client() -> LinkRole {
    LinkRole::Client { name: "stranger".to_owned() }
}

fn peer(number: u32) -> LinkRole {
    LinkRole::Peer { from: Address { node: NodeId(number), shard: ShardId(0) }, boot: 1 }
}

impl Target {
    fn greet(self, auth: &LinkAuth, role: LinkRole) -> Result<(Dialler, Hello)> {
        Dialler::start(auth, self.cluster, self.address, role, basalt_link::nonce())
            .map_err(anyhow::Error::msg)
    }

    /// Opens a link, as whoever knows these keys does; with what was sent. Nothing but the text if it is
    /// refused.
    fn open(self, auth: &LinkAuth, role: LinkRole) -> Result<Result<Opened, String>> {
        let mut link = Link::connect(self.port)?;
        let (mut dialler, hello) = self.greet(auth, role)?;
        let mut sent = vec![Frame::Hello(hello)];
        link.send(&sent[0])?;
        loop {
            let Some(frame) = link.receive()? else { return Ok(Err("ended".to_owned())) };
            match dialler.receive(frame) {
                DialStep::Send(frame) => {
                    link.send(&frame)?;
                    sent.push(frame);
                }
                DialStep::Open(_, proven) => return Ok(Ok(Opened { link, proven, sent })),
                DialStep::Refused(why) => {
                    link.must_end()?;
                    return Ok(Err(why));
                }
                DialStep::Unexpected => bail!("an unexpected frame"),
            }
        }
    }

    fn must_refuse(self, who: &str, auth: &LinkAuth, role: LinkRole, why: &str) -> Result<()> {
        match self.open(auth, role)? {
            Ok(_) => bail!("{who} was let in"),
            Err(text) => {
                ensure!(text.contains(why), "{who}: '{text}' does not tell of '{why}'");
                Ok(())
            }
        }
    }
}

struct Opened {
    link: Link,
    proven: Option<Proven>,
    sent: Vec<Frame>,
}

fn keys(secrets: &Secrets) -> Result<Keys> {
    Keys::new(&secrets.keys(Purpose::DataPath)).map_err(anyhow::Error::msg)
}

fn seconds() -> Result<u64> {
    Ok(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs())
}

/// Raw bytes of no sense, and good openings without or with wrong proofs.
fn strangers_on_data(target: Target) -> Result<()> {
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 64], &[0xff; 4096]] {
        let mut link = Link::connect(target.port)?;
        link.stream.write_all(bytes)?;
        link.must_end()?;
    }
    for role in [client(), peer(1), peer(2), peer(3)] {
        let open = LinkAuth::Open;
        if role != peer(target.address.node.0) {
            target.must_refuse("one without proof", &open, role, "--secret-file")?;
        }
    }
    // A request as if the link were open already.
    let mut early = Link::connect(target.port)?;
    let (_, hello) = target.greet(&LinkAuth::Open, client())?;
    early.send(&Frame::Hello(hello))?;
    let (volume, incarnation) = (VolumeId(1), Incarnation(1));
    let (id, group, epoch, op) = (RequestId(1), GroupId(0), Epoch(1), RequestOp::Leader);
    // It may be refused before this is sent.
    let _ = early.send(&Frame::Request(Request {
        id,
        group,
        volume,
        epoch,
        incarnation,
        priority: Priority::BestEffort,
        traced: false,
        op,
    }));
    early.must_end()?;
    let other = LinkAuth::Secret(keys(&Secrets::new())?);
    target.must_refuse("another secret", &other, client(), "not accepted")?;
    let old = Hello { version: PROTOCOL_VERSION - 1, ..target.greet(&LinkAuth::Open, client())?.1 };
    let mut link = Link::connect(target.port)?;
    link.send(&Frame::Hello(old))?;
    let text = link.must_end()?;
    ensure!(text.contains("is not spoken here"), "{text}");
    Ok(())
}

/// What was listened to on a good link, played again; and proofs that are no proofs.
fn replays_on_data(target: Target, ours: &LinkAuth) -> Result<()> {
    let other = if target.address.node.0 == 1 { peer(2) } else { peer(1) };
    let good = target.open(ours, client())?.map_err(anyhow::Error::msg)?;
    let [_, Frame::Proof(proof)] = good.sent[..] else { bail!("a handshake has two messages") };
    let mut tampered = proof;
    tampered[31] ^= 1;
    for proof in [proof, tampered, [0; 32]] {
        let mut link = Link::connect(target.port)?;
        link.send(&good.sent[0])?;
        ensure!(matches!(link.receive()?, Some(Frame::Challenge(_))), "the same Hello again");
        link.send(&Frame::Proof(proof))?;
        let text = link.must_end()?;
        ensure!(text.contains("the proof is wrong"), "{text}");
    }
    // The name of a key is no secret: it does not help to know it.
    let known = keys(&Secrets::load(&secret_file())?)?.first_id();
    for role in [client(), other] {
        let wrong = LinkAuth::Secret(keys(&Secrets::new())?);
        let (mut dialler, mut hello) = target.greet(&wrong, role)?;
        let claim = hello.claim.as_mut().context("a claim")?;
        claim.by = basalt_wire::frame::ClaimBy::Secret { key: known.0 };
        let mut link = Link::connect(target.port)?;
        link.send(&Frame::Hello(hello))?;
        let challenge = link.receive()?.context("a challenge")?;
        let DialStep::Send(proof) = dialler.receive(challenge) else { bail!("no proof") };
        link.send(&proof)?;
        let text = link.must_end()?;
        ensure!(text.contains("the proof is wrong"), "{text}");
    }
    Ok(())
}

/// What a holder of a good ticket may try.
fn tickets_on_data(target: Target, held: &Held, others: u64) -> Result<()> {
    const DENIED: ReplyResult = ReplyResult::Refused(Refusal::NotPermitted);
    let shown = |ticket: &Ticket| LinkAuth::Tickets(vec![ticket.clone()]);
    let ours = keys(&Secrets::load(&secret_file())?)?;
    let grant =
        Grant { volume: VolumeId(held.volume), epoch: Epoch(held.epoch), access: Access::Write };
    let made = |cluster, expires| {
        ours.issue(cluster, "host", vec![grant], expires).map_err(anyhow::Error::msg)
    };
    let (now, cluster) = (seconds()?, target.cluster);
    target.must_refuse("old", &shown(&made(cluster, now - 1)?), client(), "expired")?;
    let foreign = made(ClusterId(cluster.0 ^ 1), now + 60)?;
    target.must_refuse("foreign", &shown(&foreign), client(), "another cluster")?;
    let other = if target.address.node.0 == 1 { peer(2) } else { peer(1) };
    target.must_refuse("a client as a peer", &shown(&held.ticket), other, "for clients")?;
    let mut changed = 0;
    for at in 0..held.ticket.body().len() {
        let mut body = held.ticket.body().to_vec();
        body[at] ^= 1;
        let Ok(ticket) = Ticket::new(body.into(), held.ticket.secret()) else { continue };
        target.must_refuse("a changed ticket", &shown(&ticket), client(), "")?;
        changed += 1;
    }
    ensure!(changed > 20, "only {changed} changed tickets still look like tickets");

    let write = || RequestOp::Unmap {
        term: Term(1),
        generation: Generation(1),
        range: BlockRange { block: 0, count: 1 },
    };
    let fence = || RequestOp::Fence { term: Term(1), generation: Generation(1) };
    let own = (held.volume, held.epoch);
    let opened = target.open(&shown(&held.ticket), client())?;
    let Opened { mut link, proven, .. } = opened.map_err(anyhow::Error::msg)?;
    ensure!(link.ask(own, RequestOp::Leader)? != DENIED, "its own volume");
    ensure!(link.ask((others, 1), RequestOp::Leader)? == DENIED, "the volume of another host");
    ensure!(link.ask((others, 1), write())? == DENIED);
    ensure!(link.ask((held.volume, held.epoch + 1), fence())? == DENIED, "a session to come");
    ensure!(link.ask(own, RequestOp::Delete { term: Term(1) })? == DENIED, "a deletion");
    let reader = target.open(&shown(&held.reader), client())?;
    let mut reader = reader.map_err(anyhow::Error::msg)?.link;
    ensure!(reader.ask(own, RequestOp::Leader)? != DENIED, "it reads");
    ensure!(reader.ask(own, write())? == DENIED, "and does not write");
    // What was shown on one link is none on another.
    let listened = proven.context("proven")?.present(&held.ticket);
    reader.send(&Frame::Present(listened))?;
    ensure!(reader.receive()?.is_none(), "a ticket of another link was taken");
    Ok(())
}

/// A host's session with a volume: its tickets.
struct Held {
    volume: u64,
    epoch: u64,
    ticket: Ticket,
    reader: Ticket,
}

fn read(ticket: LinkTicket) -> Result<Ticket> {
    Ticket::new(ticket.body.into(), &ticket.key).map_err(anyhow::Error::msg)
}

fn credentials(role: Role) -> Result<Credentials> {
    let (name, lifetime) = ("host".to_owned(), Duration::from_secs(3600));
    let subject = Subject { name, role, addresses: Vec::new(), lifetime };
    let keyring = Keyring::open(Source::Secret(secret_file()), subject)?;
    Ok(Credentials { keyring: Some(Arc::new(keyring)), token: None })
}

/// Attaches a volume as a host does, which needs no secret for it.
async fn attach(address: &str, volume: &str) -> Result<Held> {
    let mut api = AdminClient::new(channel_as(address, PATIENCE, &credentials(Role::Csi)?)?);
    let request = AttachVolumeRequest {
        name: format!("volumes/{volume}"),
        host: "probe".to_owned(),
        request_id: request_id("probe"),
        ..AttachVolumeRequest::default()
    };
    let attached = api.attach_volume(request).await?.into_inner();
    let epoch = attached.epoch;
    let ask = |epoch| IssueTicketRequest {
        name: format!("volumes/{volume}"),
        host: "probe".to_owned(),
        epoch,
        read_only: true,
    };
    let reader = api.issue_ticket(ask(epoch)).await?.into_inner();
    let stale = api.issue_ticket(ask(epoch + 1)).await.expect_err("no such session");
    ensure!(stale.code() == tonic::Code::Aborted, "{stale}");
    let volume = attached.volume.context("a volume")?.id;
    let ticket = read(attached.ticket.context("a ticket")?)?;
    Ok(Held { volume, epoch, ticket, reader: read(reader)? })
}

/// Nobody without a certificate of the cluster's is told or served anything over NBD.
fn strangers_on_nbd(port: u16, folder: &Path) -> Result<()> {
    let must_fail = |uri: String| match run("nbdinfo", &["--list", &uri]) {
        Ok(said) => bail!("{uri} was answered: {said}"),
        Err(_) => Ok(()),
    };
    must_fail(format!("nbd://127.0.0.1:{port}/"))?;
    must_fail(format!("nbds://127.0.0.1:{port}/?tls-certificates={}", folder.display()))?;
    let mut raw = TcpStream::connect(("127.0.0.1", port))?;
    raw.set_read_timeout(Some(PATIENCE))?;
    raw.write_all(&[0xff; 64])?;
    let mut said = Vec::new();
    // The greeting, and the end.
    let _ = raw.read_to_end(&mut said);
    ensure!(said.len() < 64, "{said:?}");
    Ok(())
}

/// Nobody without credentials calls anything but health; every method is tried by `access`.
async fn strangers_on_grpc(address: &str) -> Result<()> {
    let bare = channel_as(address, PATIENCE, &Credentials::default())?;
    let told = AdminClient::new(bare).get_cluster(GetClusterRequest {}).await;
    ensure!(told.is_err(), "{told:?}");
    Ok(())
}

/// The authority alone, as a client that has no certificate of its own wants it.
fn authority_only() -> Result<PathBuf> {
    let folder = work_dir().join(format!("links-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let authority = Authority::of(Secrets::load(&secret_file())?.first())?;
    std::fs::write(folder.join("ca-cert.pem"), authority.pem())?;
    Ok(folder)
}

#[test]
fn every_port_answers_only_those_who_prove_who_they_are() -> Result<()> {
    let node_args = vec!["--tls".to_owned(), "required".to_owned()];
    let cluster = Cluster::start_with("links", &Shape { node_args, ..Shape::default() })?;
    for volume in ["used", "held"] {
        cluster.basalt(&["volume", "create", volume, "--size", "64MiB"])?;
    }
    let socket = cluster.folder().join("used.sock");
    let mut served = Program::new("basalt-attach")
        .args(["--cluster", &cluster.addresses(), "--volume", "used", "--host", "links-host"])
        .args(["--listen", &format!("unix:{}", socket.display())])
        .log(cluster.folder().join("attach.log"))
        .start()?;
    let uri = format!("nbd+unix:///used?socket={}", socket.display());
    cluster.wait_served(&uri)?;
    ensure!(listening(served.id())?.is_empty(), "a host listens where it was told to");

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let held = runtime.block_on(attach(&cluster.nodes[0].address(), "held"))?;
    let shown = cluster.basalt(&["volume", "show", "used"])?;
    let used = shown["id"].as_u64().with_context(|| format!("an id in {shown}"))?;
    let status = cluster.basalt(&["cluster", "status"])?;
    let id = status["id"].as_str().with_context(|| format!("an id in {status}"))?;
    let id = ClusterId(u64::from_str_radix(id, 16)?);
    let folder = authority_only()?;
    let ours = LinkAuth::Secret(keys(&Secrets::load(&secret_file())?)?);
    let mut tried = 0;
    for (number, node) in (1..).zip(&cluster.nodes) {
        let address = Address { node: NodeId(number), shard: ShardId(0) };
        for port in listening(node.process.id())? {
            let target = Target { port, cluster: id, address };
            match port {
                port if port == node.ports.data => {
                    strangers_on_data(target)?;
                    replays_on_data(target, &ours)?;
                    tickets_on_data(target, &held, used)?;
                }
                port if port == node.ports.grpc => {
                    runtime.block_on(strangers_on_grpc(&node.address()))?;
                }
                port if port == node.ports.nbd => strangers_on_nbd(port, &folder)?,
                other => bail!("{} listens on port {other}, which nobody tries", node.name),
            }
            tried += 1;
        }
    }
    ensure!(tried == 9, "{tried} ports were tried");
    time_of_links(&cluster, id, &ours, &held)?;
    std::fs::remove_dir_all(&folder)?;
    // Whoever may goes on.
    ensure!(run("nbdinfo", &["--size", &uri])?.trim() == (64 << 20).to_string());
    cluster.wait_healthy()?;
    served.stop(PATIENCE)?;
    cluster.finish()
}

/// What a link takes to open, for the record.
fn time_of_links(cluster: &Cluster, id: ClusterId, ours: &LinkAuth, held: &Held) -> Result<()> {
    let address = Address { node: NodeId(1), shard: ShardId(0) };
    let target = Target { port: cluster.nodes[0].ports.data, cluster: id, address };
    for (by, auth) in [("secret", ours), ("ticket", &LinkAuth::Tickets(vec![held.ticket.clone()]))]
    {
        let began = Instant::now();
        for _ in 0..100 {
            target.open(auth, client())?.map_err(anyhow::Error::msg)?;
        }
        println!("a link by {by} opens in {:?}", began.elapsed() / 100);
    }
    Ok(())
}
