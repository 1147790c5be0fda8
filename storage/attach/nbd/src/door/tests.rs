//! The door between a client that speaks NBD by hand and one replica that answers everything.

use super::*;
use basalt_wire::block::{BLOCK_BYTES, crc32c};
use basalt_wire::buffer::{IoBuf, Payload};
use basalt_wire::frame::{Refusal, Reply as WireReply, ReplyResult, RequestOp};
use basalt_wire::ids::{Generation, LogIndex, NodeId, ShardId, Term};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::mpsc::{Receiver, channel};

const TO: Address = Address { node: NodeId(1), shard: ShardId(0) };

/// A reactor with one replica of every group behind it.
#[derive(Default)]
struct World {
    sent: BTreeMap<u64, Vec<u8>>,
    closed: BTreeSet<u64>,
    paused: BTreeSet<u64>,
    queued: usize,
    requests: VecDeque<Request>,
    events: VecDeque<TenantEvent>,
    blocks: BTreeMap<(VolumeId, u64), Vec<u8>>,
    fenced: BTreeMap<VolumeId, Epoch>,
    dials: usize,
    resets: usize,
    /// Requests are kept instead of answered.
    silent: bool,
    notices: Vec<String>,
    /// Requests to freeze a generation and to drop a snapshot.
    frozen: usize,
    /// Gates that were closed and opened, and whether none can be.
    gates: usize,
    opened: usize,
    gates_lost: bool,
    dropped: usize,
    /// Times that a replica was asked who leads.
    asked: u32,
}

/// Streams in tests are numbered in order, and known by their number.
fn stream(number: u64) -> StreamId {
    StreamId::for_test(number)
}

fn number(of: StreamId) -> u64 {
    (0..1000).find(|n| stream(*n) == of).expect("test streams have small numbers")
}

impl Host for World {
    fn send(&mut self, stream: StreamId, bytes: Bytes) {
        self.sent.entry(number(stream)).or_default().extend_from_slice(&bytes);
    }

    fn queued(&self, _: StreamId) -> usize {
        self.queued
    }

    fn pause(&mut self, stream: StreamId, paused: bool) {
        if paused {
            self.paused.insert(number(stream));
        } else {
            self.paused.remove(&number(stream));
        }
    }

    fn close(&mut self, stream: StreamId) {
        assert!(self.closed.insert(number(stream)), "{stream:?} was closed twice");
        self.events.push_back(TenantEvent::Closed { stream });
    }

    fn peer(&self, stream: StreamId) -> String {
        format!("client {}", number(stream))
    }

    fn dial(&mut self, to: Address) {
        self.dials += 1;
        let event = TenantEvent::LinkUp { to, credit_bytes: 1 << 20, credit_requests: 64 };
        self.events.push_back(event);
    }

    fn reset(&mut self, to: Address) {
        self.resets += 1;
        self.dial(to);
    }

    fn request(&mut self, to: Address, request: Request) {
        assert_eq!(to, TO);
        self.requests.push_back(request);
    }

    fn notice(&mut self, _: bool, text: String) {
        self.notices.push(text);
    }
}

impl World {
    /// What the replica answers.
    fn answer(&mut self, request: Request) -> WireReply {
        self.asked += u32::from(matches!(request.op, RequestOp::Leader));
        let Request { id, group, volume, epoch, op, .. } = request;
        let index = LogIndex(1);
        let newest = self.fenced.get(&volume).copied().unwrap_or_default();
        let result = match op {
            RequestOp::Leader => ReplyResult::Leader { leader: Some(NodeId(1)), term: Term(1) },
            _ if epoch < newest => ReplyResult::Refused(Refusal::Fenced),
            RequestOp::Fence { .. } => {
                self.fenced.insert(volume, epoch);
                ReplyResult::Done { index }
            }
            RequestOp::Write { range, payload, .. } => {
                let data = payload.contiguous();
                for (n, block) in data.chunks(BLOCK_BYTES).enumerate() {
                    self.blocks.insert((volume, range.block + n as u64), block.to_vec());
                }
                ReplyResult::Done { index }
            }
            RequestOp::Unmap { range, .. } => {
                (0..range.count).for_each(|n| {
                    self.blocks.remove(&(volume, range.block + u64::from(n)));
                });
                ReplyResult::Done { index }
            }
            RequestOp::Read { range, .. } => {
                let mut buf = IoBuf::zeroed(range.count as usize * BLOCK_BYTES);
                for (n, target) in buf.chunks_mut(BLOCK_BYTES).enumerate() {
                    if let Some(block) = self.blocks.get(&(volume, range.block + n as u64)) {
                        target.copy_from_slice(block);
                    }
                }
                let checksums = buf.chunks(BLOCK_BYTES).map(crc32c).collect();
                let payload = Payload::from(buf.freeze());
                ReplyResult::Data { index, checksums, payload }
            }
            RequestOp::Extents { range, .. } => {
                ReplyResult::Extents { index, runs: vec![(range.count, true)] }
            }
            RequestOp::CloseGate { .. } | RequestOp::OpenGate { .. } if self.gates_lost => {
                ReplyResult::Refused(Refusal::GateLost)
            }
            RequestOp::CloseGate { .. } => {
                assert_eq!(self.frozen, 0, "gates are closed before anything is frozen");
                self.gates += 1;
                ReplyResult::Done { index }
            }
            RequestOp::OpenGate { .. } => {
                assert_eq!(self.frozen, self.gates, "all are frozen before a gate is opened");
                self.opened += 1;
                ReplyResult::Done { index }
            }
            RequestOp::Freeze { .. } => {
                self.frozen += 1;
                ReplyResult::Done { index }
            }
            RequestOp::DropSnapshot { .. } => {
                self.dropped += 1;
                ReplyResult::Done { index }
            }
            RequestOp::Delete { .. } => {
                self.blocks.retain(|(of, _), _| *of != volume);
                ReplyResult::Done { index }
            }
            RequestOp::Fill { .. } => ReplyResult::Done { index },
            RequestOp::Revert { .. }
            | RequestOp::Changes { .. }
            | RequestOp::Clone { .. }
            | RequestOp::Detach { .. } => ReplyResult::Refused(Refusal::Invalid),
        };
        WireReply::new(id, group, result)
    }
}

struct Test {
    core: Core,
    world: World,
    now: Time,
    streams: u64,
    /// On which socket streams are accepted.
    listener: usize,
}

impl Test {
    fn new(config: DoorConfig) -> Test {
        let (core, world) = (Core::new(config), World::default());
        Test { core, world, now: Time(1), streams: 0, listener: 0 }
    }

    /// Carries out an event and everything that follows from it.
    fn event(&mut self, event: TenantEvent) {
        self.world.events.push_back(event);
        self.settle();
    }

    fn settle(&mut self) {
        loop {
            while let Some(event) = self.world.events.pop_front() {
                self.core.event(self.now, event, &mut self.world);
            }
            self.core.end_turn(self.now, &mut self.world);
            if !self.world.silent {
                while let Some(request) = self.world.requests.pop_front() {
                    let reply = self.world.answer(request);
                    self.world.events.push_back(TenantEvent::Reply { from: TO, reply });
                }
            }
            if self.world.events.is_empty() {
                return;
            }
        }
    }

    fn command(&mut self, command: DoorCommand) {
        self.event(TenantEvent::Command(Box::new(command)));
    }

    fn attach(&mut self, name: &str, volume: u64, epoch: u64) -> Receiver<Result<(), DoorError>> {
        let (reply, answer) = reply();
        let config = volume_config(volume, epoch);
        let (name, description) = (name.to_owned(), String::new());
        self.command(DoorCommand::Attach {
            name,
            description,
            read_only: false,
            config,
            view: false,
            reply,
        });
        answer
    }

    fn detach(&mut self, name: &str) -> Result<(), DoorError> {
        let (reply, answer) = reply();
        self.command(DoorCommand::Detach { name: name.to_owned(), reply });
        answer.try_recv().expect("a detach is answered at once")
    }

    fn resize(&mut self, name: &str, epoch: u64, size_bytes: u64) -> Result<(), DoorError> {
        let (reply, answer) = reply();
        let (name, description) = (name.to_owned(), String::new());
        let (epoch, generation) = (Epoch(epoch), Generation(0));
        let command =
            DoorCommand::Resize { name, epoch, description, size_bytes, generation, reply };
        self.command(command);
        answer.try_recv().expect("a resize is answered at once")
    }

    fn status(&mut self) -> DoorStatus {
        let (sender, answer) = channel();
        let reply = Box::new(move |status| sender.send(status).expect("the test waits"));
        self.command(DoorCommand::Status { reply });
        answer.try_recv().expect("a status is told at once")
    }

    /// A stream that has chosen the export of that name.
    fn connect(&mut self, name: &str) -> u64 {
        let number = self.open();
        let mut hello = 3u32.to_be_bytes().to_vec();
        hello.extend(crate::proto::OPTION_MAGIC.to_be_bytes());
        hello.extend(1u32.to_be_bytes());
        hello.extend((name.len() as u32).to_be_bytes());
        hello.extend(name.as_bytes());
        self.say(number, hello);
        self.world.sent.remove(&number);
        number
    }

    fn open(&mut self) -> u64 {
        self.streams += 1;
        let (stream, listener) = (stream(self.streams), self.listener);
        self.event(TenantEvent::Accepted { stream, listener });
        self.streams
    }

    fn say(&mut self, number: u64, bytes: Vec<u8>) {
        let bytes = Bytes::from(bytes);
        self.event(TenantEvent::Received { stream: stream(number), bytes });
    }

    fn ask(&mut self, number: u64, kind: u16, cookie: u64, offset: u64, data: &[u8], len: usize) {
        let mut bytes = crate::proto::REQUEST_MAGIC.to_be_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(kind.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend((len as u32).to_be_bytes());
        bytes.extend(data);
        self.say(number, bytes);
    }

    /// Takes what was sent on a stream.
    fn heard(&mut self, number: u64) -> Vec<u8> {
        self.world.sent.remove(&number).unwrap_or_default()
    }
}

fn reply() -> (Reply<()>, Receiver<Result<(), DoorError>>) {
    let (sender, answer) = channel();
    (Box::new(move |result| sender.send(result).expect("the test waits")), answer)
}

fn volume_config(volume: u64, epoch: u64) -> VolumeConfig {
    VolumeConfig {
        volume: VolumeId(volume),
        epoch: Epoch(epoch),
        generation: Generation(1),
        lineage: volume,
        size_bytes: 64 << 20,
        map: Arc::new(PoolMap { version: 1, group_count: 4, groups: vec![vec![TO]; 4] }),
        local: None,
        limits: basalt_client::RateLimits::default(),
        cipher: None,
    }
}

fn simple(cookie: u64, error: u32) -> Vec<u8> {
    let mut bytes = crate::proto::SIMPLE_REPLY_MAGIC.to_be_bytes().to_vec();
    bytes.extend(error.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes
}

#[test]
fn what_is_written_is_read_over_any_connection() {
    let mut test = Test::new(DoorConfig::default());
    assert_eq!(test.attach("vol", 1, 1).try_recv(), Ok(Ok(())));
    let (a, b) = (test.connect("vol"), test.connect(""));
    let data = vec![7; 12288];
    test.ask(a, 1, 1, 4096, &data, data.len());
    assert_eq!(test.heard(a), simple(1, 0));
    test.ask(b, 0, 2, 4096, &[], data.len());
    assert_eq!(test.heard(b), [simple(2, 0), data].concat());
    test.ask(b, 3, 3, 0, &[], 0);
    assert_eq!(test.heard(b), simple(3, 0));
    let status = test.status();
    assert_eq!(status.exports[0].connections, ["client 1", "client 2"]);
    assert!(status.exports[0].ready);
}

#[test]
fn a_volume_that_grew_is_larger_for_old_and_new_connections() {
    let mut test = Test::new(DoorConfig::default());
    test.attach("vol", 1, 2).try_recv().expect("attached").expect("attached");
    let old = test.connect("vol");
    let (end, grown) = (64 << 20, 256 << 20);
    test.ask(old, 1, 1, end, &[7; 4096], 4096);
    assert_eq!(test.heard(old), simple(1, 28), "there is no space behind the end");
    assert_eq!(test.resize("vol", 1, grown), Err(DoorError::Unknown("vol".to_owned())));
    assert_eq!(test.resize("else", 2, grown), Err(DoorError::Unknown("else".to_owned())));
    assert_eq!(test.status().exports[0].size_bytes, end);
    assert_eq!(test.resize("vol", 2, grown), Ok(()));
    assert_eq!(test.resize("vol", 2, end), Ok(()), "a size of the past changes nothing");
    assert_eq!(test.status().exports[0].size_bytes, grown);
    for (conn, cookie) in [(old, 2), (test.connect("vol"), 3)] {
        let last = grown - 4096 * cookie;
        test.ask(conn, 1, cookie, last, &[cookie as u8; 4096], 4096);
        assert_eq!(test.heard(conn), simple(cookie, 0));
        test.ask(conn, 0, cookie, last, &[], 4096);
        assert_eq!(test.heard(conn)[16..], [cookie as u8; 4096]);
    }
    let beyond = test.connect("vol");
    test.ask(beyond, 0, 4, grown, &[], 4096);
    assert_eq!(test.heard(beyond), simple(4, 22));
}

#[test]
fn snapshots_are_kept_and_shown_beside_the_session() {
    let mut test = Test::new(DoorConfig::default());
    test.attach("vol", 1, 3).try_recv().expect("attached").expect("attached");
    let conn = test.connect("vol");
    for drop in [false, true] {
        let (reply, answer) = reply();
        let config = volume_config(1, 3);
        test.command(DoorCommand::Snapshot { config, drop, reply });
        assert_eq!(answer.try_recv(), Ok(Ok(())));
    }
    assert_eq!((test.world.frozen, test.world.dropped), (4, 4), "in each of the groups");
    assert_eq!(test.world.asked, 4, "who leads is known from the first session on");
    assert_eq!(test.status().exports.len(), 1, "nothing of it is left");
    // A view takes no epoch, neither this one's nor its volume's next.
    let (reply, answer) = reply();
    test.command(DoorCommand::Attach {
        name: "vol@monday".to_owned(),
        description: String::new(),
        read_only: false,
        config: volume_config(1, 4),
        view: true,
        reply,
    });
    assert_eq!(answer.try_recv(), Ok(Ok(())));
    let view = test.connect("vol@monday");
    test.ask(view, 0, 1, 0, &[], 4096);
    assert_eq!(test.heard(view)[..16], simple(1, 0));
    test.ask(view, 1, 2, 0, &[1; 4096], 4096);
    assert_eq!(test.heard(view), simple(2, 1), "it is read only");
    test.ask(conn, 1, 3, 0, &[1; 4096], 4096);
    assert_eq!(test.heard(conn), simple(3, 0), "the session goes on");
    test.attach("vol", 1, 4).try_recv().expect("attached").expect("attached");
}

#[test]
fn volumes_are_cut_together_or_not_at_all() {
    let mut test = Test::new(DoorConfig::default());
    test.attach("vol", 1, 3).try_recv().expect("attached").expect("attached");
    let (reply, answer) = reply();
    test.command(DoorCommand::Cut {
        configs: vec![volume_config(1, 3), volume_config(2, 1)],
        reply,
    });
    assert_eq!(answer.try_recv(), Ok(Ok(())));
    assert_eq!((test.world.gates, test.world.frozen, test.world.opened), (8, 8, 8));
    assert_eq!(test.status().exports.len(), 1, "nothing of it is left");
    test.world.gates_lost = true;
    let (reply, answer) = self::reply();
    test.command(DoorCommand::Cut { configs: vec![volume_config(1, 3)], reply });
    assert!(matches!(answer.try_recv(), Ok(Err(DoorError::Lost(BlockError::Io(_))))));
    assert_eq!(test.world.frozen, 8, "nothing more was frozen");
    assert_eq!(test.status().exports.len(), 1);
}

#[test]
fn two_exports_share_links_and_keep_their_data_apart() {
    let mut test = Test::new(DoorConfig::default());
    test.attach("one", 1, 1).try_recv().expect("attached").expect("attached");
    test.attach("two", 2, 1).try_recv().expect("attached").expect("attached");
    assert_eq!(test.world.dials, 1);
    let (a, b) = (test.connect("one"), test.connect("two"));
    for (conn, byte) in [(a, 1), (b, 2)] {
        test.ask(conn, 1, 1, 0, &[byte; 4096], 4096);
        assert_eq!(test.heard(conn), simple(1, 0));
    }
    for (conn, byte) in [(a, 1), (b, 2)] {
        test.ask(conn, 0, 1, 0, &[], 4096);
        assert_eq!(test.heard(conn)[16..], [byte; 4096]);
    }
    test.event(TenantEvent::LinkDown { to: TO });
    test.now = test.now + Duration::from_secs(1);
    test.settle();
    for (conn, byte) in [(a, 1), (b, 2)] {
        test.ask(conn, 0, 1, 0, &[], 4096);
        assert_eq!(test.heard(conn)[16..], [byte; 4096]);
    }
}

#[test]
fn an_unknown_export_ends_the_stream() {
    let mut test = Test::new(DoorConfig::default());
    let number = test.connect("nothing");
    assert!(test.world.closed.contains(&number));
    assert!(test.core.may_stop());
}

#[test]
fn detaching_answers_what_is_outstanding() {
    let mut test = Test::new(DoorConfig::default());
    test.attach("vol", 1, 1).try_recv().expect("attached").expect("attached");
    let conn = test.connect("vol");
    test.world.silent = true;
    test.ask(conn, 1, 5, 0, &[1; 4096], 4096);
    assert_eq!(test.heard(conn), []);
    assert_eq!(test.detach("vol"), Ok(()));
    assert_eq!(test.heard(conn), simple(5, 108));
    assert!(test.world.closed.contains(&conn));
    assert_eq!(test.detach("vol"), Err(DoorError::Unknown("vol".to_owned())));
    // The late reply finds nobody.
    test.world.silent = false;
    test.settle();
}

#[test]
fn a_fenced_session_withdraws_its_export() {
    let (sender, ends) = channel();
    let on_end = Box::new(move |end: ExportEnd| sender.send(end).expect("the test waits"));
    let mut test = Test::new(DoorConfig { on_end: Some(on_end), ..DoorConfig::default() });
    test.attach("vol", 1, 1).try_recv().expect("attached").expect("attached");
    let conn = test.connect("vol");
    test.world.fenced.insert(VolumeId(1), Epoch(2));
    test.ask(conn, 1, 5, 0, &[1; 4096], 4096);
    assert_eq!(test.heard(conn), simple(5, 108));
    assert!(test.world.closed.contains(&conn) && test.world.blocks.is_empty());
    let end = ends.try_recv().expect("the end was told");
    assert_eq!((end.name.as_str(), end.epoch, end.error), ("vol", Epoch(1), BlockError::Fenced));
    assert_eq!(test.status().exports.len(), 0);
    assert!(test.world.notices[0].contains("'vol' was withdrawn"));
}

#[test]
fn a_name_is_attached_once_and_moves_to_a_higher_epoch() {
    let mut test = Test::new(DoorConfig::default());
    test.attach("vol", 1, 1).try_recv().expect("attached").expect("attached");
    let conn = test.connect("vol");
    let taken = Err(DoorError::Attached("vol".to_owned()));
    assert_eq!(test.attach("vol", 1, 1).try_recv(), Ok(taken.clone()));
    assert_eq!(test.attach("vol", 2, 9).try_recv(), Ok(taken));
    assert_eq!(test.attach("vol", 1, 2).try_recv(), Ok(Ok(())));
    assert!(test.world.closed.contains(&conn));
    assert_eq!(test.status().exports[0].epoch, Epoch(2));
}

#[test]
fn a_volume_is_deleted_without_being_served() {
    let mut test = Test::new(DoorConfig::default());
    test.attach("vol", 1, 1).try_recv().expect("attached").expect("attached");
    let conn = test.connect("vol");
    test.ask(conn, 1, 5, 0, &[1; 4096], 4096);
    assert_eq!(test.world.blocks.len(), 1);
    test.detach("vol").expect("it was attached");
    let (reply, answer) = reply();
    test.command(DoorCommand::Delete { config: volume_config(1, 2), reply });
    assert_eq!(answer.try_recv(), Ok(Ok(())));
    assert!(test.world.blocks.is_empty());
}

#[test]
fn a_client_that_does_not_choose_is_cut_off() {
    let mut test = Test::new(DoorConfig::default());
    test.attach("vol", 1, 1).try_recv().expect("attached").expect("attached");
    let slow = test.open();
    let chosen = test.connect("vol");
    test.now = test.now + Duration::from_secs(11);
    test.settle();
    assert!(test.world.closed.contains(&slow) && !test.world.closed.contains(&chosen));
}

#[test]
fn who_names_no_export_makes_room_for_others() {
    let mut test = Test::new(DoorConfig { connections_max: 2, ..DoorConfig::default() });
    test.attach("vol", 1, 1).try_recv().expect("attached").expect("attached");
    let (first, second) = (test.open(), test.open());
    let third = test.connect("vol");
    assert!(test.world.closed.contains(&first) && !test.world.closed.contains(&second));
    let fourth = test.connect("vol");
    assert!(test.world.closed.contains(&second));
    // Nobody negotiates any more: those who use a volume stay.
    let fifth = test.open();
    assert!(test.world.closed.contains(&fifth));
    for conn in [third, fourth] {
        assert!(!test.world.closed.contains(&conn));
        test.ask(conn, 3, 1, 0, &[], 0);
        assert_eq!(test.heard(conn), simple(1, 0));
    }
}

#[test]
fn an_export_has_so_many_connections_and_no_more() {
    let config = DoorConfig { export_connections_max: 2, ..DoorConfig::default() };
    let mut test = Test::new(config);
    test.attach("one", 1, 1).try_recv().expect("attached").expect("attached");
    test.attach("two", 2, 1).try_recv().expect("attached").expect("attached");
    let (first, second, third) = (test.connect("one"), test.connect("one"), test.connect("one"));
    assert!(test.world.closed.contains(&third), "it is one too many");
    let other = test.connect("two");
    assert!(!test.world.closed.contains(&other), "another export has its own");
    test.event(TenantEvent::Closed { stream: stream(first) });
    let fourth = test.connect("one");
    assert!(!test.world.closed.contains(&fourth), "there is room again");
    assert!(!test.world.closed.contains(&second));
}

#[test]
fn a_session_is_begun_once() {
    let mut test = Test::new(DoorConfig::default());
    test.attach("vol", 1, 3).try_recv().expect("attached").expect("attached");
    assert_eq!(test.detach("vol"), Ok(()));
    for epoch in [2, 3] {
        let spent = Err(DoorError::Spent(Epoch(epoch)));
        assert_eq!(test.attach("vol", 1, epoch).try_recv(), Ok(spent));
    }
    assert_eq!(test.attach("vol", 1, 4).try_recv(), Ok(Ok(())));
}

#[test]
fn tls_is_demanded_except_where_no_network_reaches() {
    let mut config = DoorConfig { tls_exempt: vec![1], ..DoorConfig::default() };
    config.session.tls = crate::TlsPolicy::Required;
    let mut test = Test::new(config);
    test.attach("vol", 1, 1).try_recv().expect("attached").expect("attached");
    let tcp = test.connect("vol");
    assert!(test.world.closed.contains(&tcp));
    test.listener = 1;
    let unix = test.connect("vol");
    assert!(!test.world.closed.contains(&unix));
}

#[test]
fn a_client_that_does_not_read_is_held_back() {
    let mut test = Test::new(DoorConfig::default());
    test.attach("vol", 1, 1).try_recv().expect("attached").expect("attached");
    let conn = test.connect("vol");
    test.world.queued = 64 << 20;
    test.ask(conn, 0, 1, 0, &[], 4096);
    assert!(test.world.paused.contains(&conn));
    test.heard(conn);
    test.ask(conn, 0, 2, 0, &[], 4096);
    assert_eq!(test.heard(conn), []);
    test.world.queued = 0;
    test.event(TenantEvent::Drained { stream: stream(conn) });
    assert_eq!(test.heard(conn).len(), 16 + 4096);
    assert!(!test.world.paused.contains(&conn));
}

#[test]
fn stopping_waits_for_what_is_outstanding() {
    let mut test = Test::new(DoorConfig::default());
    test.attach("vol", 1, 1).try_recv().expect("attached").expect("attached");
    let (busy, idle) = (test.connect("vol"), test.connect("vol"));
    test.world.silent = true;
    test.ask(busy, 1, 5, 0, &[1; 4096], 4096);
    test.event(TenantEvent::Stopping);
    assert!(test.world.closed.contains(&idle) && !test.world.closed.contains(&busy));
    assert!(!test.core.may_stop());
    test.world.silent = false;
    test.settle();
    assert_eq!(test.heard(busy), simple(5, 0));
    assert!(test.core.may_stop());
    assert_eq!(test.attach("other", 2, 1).try_recv(), Ok(Err(DoorError::Stopping)));
}

#[test]
fn a_connection_that_breaks_leaves_the_others_alone() {
    let mut test = Test::new(DoorConfig::default());
    test.attach("vol", 1, 1).try_recv().expect("attached").expect("attached");
    let (a, b) = (test.connect("vol"), test.connect("vol"));
    test.world.silent = true;
    test.ask(a, 1, 5, 0, &[1; 4096], 4096);
    test.event(TenantEvent::Closed { stream: stream(a) });
    let c = test.connect("vol");
    test.world.silent = false;
    test.settle();
    assert_eq!((test.heard(a), test.heard(c)), (vec![], vec![]));
    test.ask(b, 0, 1, 0, &[], 4096);
    assert_eq!(test.heard(b)[16..], [1; 4096]);
}

#[test]
fn long_requests_wait_for_memory() {
    let config = DoorConfig { memory_max: 3 << 20, ..DoorConfig::default() };
    let mut test = Test::new(config);
    test.attach("vol", 1, 1).try_recv().expect("attached").expect("attached");
    let (a, b) = (test.connect("vol"), test.connect("vol"));
    test.ask(a, 1, 1, 0, &[1; 4096], 2 << 20);
    test.ask(b, 1, 2, 0, &[2; 4096], 2 << 20);
    assert!(!test.world.paused.contains(&a) && test.world.paused.contains(&b));
    test.say(a, vec![1; (2 << 20) - 4096]);
    assert_eq!(test.heard(a), simple(1, 0));
    assert!(!test.world.paused.contains(&b));
    test.say(b, vec![2; (2 << 20) - 4096]);
    assert_eq!(test.heard(b), simple(2, 0));
}

#[test]
fn a_request_that_never_arrives_whole_ends_its_connection() {
    let mut test = Test::new(DoorConfig::default());
    test.attach("vol", 1, 1).try_recv().expect("attached").expect("attached");
    let (stuck, idle) = (test.connect("vol"), test.connect("vol"));
    test.ask(stuck, 1, 1, 0, &[1; 4096], 2 << 20);
    for _ in 0..10 {
        test.now = test.core.next_deadline().expect("somebody is waited for").max(test.now);
        test.now = test.now + Duration::from_secs(15);
        test.settle();
        if !test.world.closed.is_empty() {
            break;
        }
    }
    assert!(test.world.closed.contains(&stuck) && !test.world.closed.contains(&idle));
}
