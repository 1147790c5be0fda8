//! The rules of tokens.

use basalt_api::v1::ErrorReason;
use basalt_meta::{
    CreateToken, ENTRY_VERSION, Entry, MetaState, Op, Outcome, RevokeToken, TokenRecord,
    UseJoinToken, encode,
};

#[derive(Default)]
struct Machine {
    state: MetaState,
    index: u64,
}

impl Machine {
    fn propose(&mut self, request_id: &str, now_ms: i64, op: Op) -> Outcome {
        self.index += 1;
        let request_id = request_id.to_owned();
        let entry =
            Entry { version: ENTRY_VERSION, request_id, now_ms, op: Some(op), ..Entry::default() };
        self.state.apply(self.index, &encode(&entry))
    }

    fn token(&mut self, op: Op) -> TokenRecord {
        match self.propose("", 5000, op) {
            Outcome::Token(token) => token,
            other => panic!("expected a token, got {other:?}"),
        }
    }

    fn reason(&mut self, now_ms: i64, op: Op) -> ErrorReason {
        match self.propose("", now_ms, op) {
            Outcome::Refused(refused) => refused.reason,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }
}

fn request(id: &str, role: &str, byte: u8) -> CreateToken {
    CreateToken {
        id: id.to_owned(),
        role: role.to_owned(),
        sha256: vec![byte; 32],
        ttl_ms: 60_000,
        creator: "certificate:me".to_owned(),
    }
}

fn create(id: &str, role: &str, byte: u8) -> Op {
    Op::CreateToken(request(id, role, byte))
}

fn revoke(id: &str) -> Op {
    Op::RevokeToken(RevokeToken { id: id.to_owned() })
}

#[test]
fn a_token_is_found_by_its_hash_until_it_is_revoked() {
    let mut machine = Machine::default();
    let token = machine.token(create("ci", "operator", 1));
    assert_eq!((token.create_time_ms, token.expires_ms), (5000, 65_000));
    assert_eq!(machine.state.token_of(&[1; 32]), Some(&token));
    assert_eq!(machine.state.token_of(&[2; 32]), None);
    machine.token(create("backup", "viewer", 2));
    let names: Vec<&str> = machine.state.tokens_after("").map(|t| t.id.as_str()).collect();
    assert_eq!(names, ["backup", "ci"]);
    assert_eq!(machine.token(revoke("ci")), token);
    assert_eq!(machine.state.token_of(&[1; 32]), None);
    assert_eq!(machine.reason(1, revoke("ci")), ErrorReason::TokenNotFound);
    machine.token(create("ci", "operator", 1));
}

#[test]
fn what_can_not_be_a_token_is_refused() {
    let mut machine = Machine::default();
    machine.token(create("ci", "admin", 1));
    let base = || request("new", "viewer", 9);
    let bad = [
        CreateToken { id: "Bad".to_owned(), ..base() },
        CreateToken { role: "root".to_owned(), ..base() },
        CreateToken { role: "node".to_owned(), ..base() },
        CreateToken { sha256: vec![1; 31], ..base() },
        CreateToken { ttl_ms: 999, ..base() },
        CreateToken { ttl_ms: u64::MAX, ..base() },
    ];
    for create in bad {
        assert_eq!(machine.reason(1, Op::CreateToken(create)), ErrorReason::InvalidField);
    }
    // Neither the name nor the token itself may be another's.
    assert_eq!(machine.reason(1, create("ci", "viewer", 9)), ErrorReason::TokenExists);
    assert_eq!(machine.reason(1, create("other", "viewer", 1)), ErrorReason::TokenExists);
    let long = CreateToken { creator: "ä".repeat(100), ..base() };
    assert!(machine.token(Op::CreateToken(long)).creator.len() <= 128);
}

#[test]
fn asking_twice_creates_once() {
    let mut machine = Machine::default();
    let first = machine.propose("r1", 5000, create("ci", "viewer", 1));
    assert_eq!(machine.propose("r1", 9000, create("ci", "viewer", 1)), first);
    let Outcome::Token(token) = first else { panic!("a token") };
    assert_eq!(token.expires_ms, 65_000);
}

#[test]
fn a_join_token_counts_once() {
    let mut machine = Machine::default();
    let join = |id: &str| Op::UseJoinToken(UseJoinToken { id: id.to_owned() });
    assert_eq!(machine.propose("", 1000, join("a")), Outcome::Nothing);
    assert_eq!(machine.reason(1000, join("a")), ErrorReason::JoinTokenUsed);
    assert_eq!(machine.propose("", 1000, join("b")), Outcome::Nothing);
    // It is remembered whatever clock a proposer has.
    assert_eq!(machine.propose("", i64::MAX, join("c")), Outcome::Nothing);
    assert_eq!(machine.reason(1000, join("a")), ErrorReason::JoinTokenUsed);
    assert_eq!(machine.reason(1000, join("no id")), ErrorReason::InvalidField);
}

#[test]
fn tokens_are_kept_with_the_state() {
    let mut machine = Machine::default();
    machine.token(create("ci", "operator", 1));
    machine.token(create("backup", "viewer", 2));
    machine.propose("r1", 5000, create("third", "csi", 3));
    for id in ["b", "a"] {
        machine.propose("", 1, Op::UseJoinToken(UseJoinToken { id: id.to_owned() }));
    }
    let pieces: Vec<Vec<u8>> = machine.state.chunks().collect();
    let read = MetaState::from_chunks(&pieces).expect("whole");
    assert_eq!(read, machine.state);
    assert_eq!(read.token_of(&[2; 32]).expect("kept").id, "backup");
}
