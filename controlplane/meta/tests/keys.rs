//! The rules of the metadata group for encrypted volumes and their keys.

use basalt_api::v1::ErrorReason;
use basalt_meta::{
    ClassRecord, CloneSource, CreateSnapshot, CreateVolume, DeleteVolume, ENTRY_VERSION, Entry,
    KeyRecord, MetaState, Op, Outcome, PurgeVolume, PutClass, Refused, RewrapKeys, SettleClone,
    SettleFlatten, SettleSnapshot, UpdateVolume, VolumeRecord, WrappedKey, encode,
};
use proptest::prelude::*;

const SIZE: u64 = 1 << 20;

#[derive(Default)]
struct Machine {
    state: MetaState,
    index: u64,
    drawn: u8,
}

/// A wrapped key; `mark` stands for what is in it.
fn key(mark: u8) -> WrappedKey {
    WrappedKey { uid: vec![mark; 16], version: 1, secret: vec![1; 8], wrapped: vec![mark; 92] }
}

impl Machine {
    fn propose(&mut self, request_id: &str, op: Op, volume_key: Option<WrappedKey>) -> Outcome {
        self.index += 1;
        let request_id = request_id.to_owned();
        let entry = Entry {
            version: ENTRY_VERSION,
            now_ms: 1,
            request_id,
            op: Some(op),
            volume_key,
            ..Entry::default()
        };
        self.state.apply(self.index, &encode(&entry))
    }

    /// As a proposer does it: a key is drawn if the change takes one.
    fn run(&mut self, op: Op) -> Outcome {
        self.drawn += 1;
        let wants = matches!(&op, Op::CreateVolume(create) if self.state.wants_key(create));
        let drawn = wants.then(|| key(self.drawn));
        self.propose("", op, drawn)
    }

    fn volume(&mut self, op: Op) -> VolumeRecord {
        match self.run(op) {
            Outcome::Volume(volume) => volume.into_inner(),
            other => panic!("expected a volume, got {other:?}"),
        }
    }

    fn refused(&mut self, op: Op) -> Refused {
        match self.run(op) {
            Outcome::Refused(refused) => refused,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    fn snapshot(&mut self, volume: &str) {
        let (volume, id) = (volume.to_owned(), "then".to_owned());
        let op = Op::CreateSnapshot(CreateSnapshot { volume, id, ..Default::default() });
        let Outcome::Snapshot(taken) = self.run(op) else { panic!("not taken") };
        let (volume, generation) = (taken.volume, taken.generation);
        self.run(Op::SettleSnapshot(SettleSnapshot { volume, generation }));
    }

    fn class(&mut self, id: &str, encrypted: bool, create: bool) -> Outcome {
        let class = ClassRecord { id: id.to_owned(), encrypted, ..ClassRecord::default() };
        self.run(Op::PutClass(PutClass { class: Some(class), create, ..PutClass::default() }))
    }

    fn key_of(&self, id: &str) -> Option<&WrappedKey> {
        self.state.key_of(self.state.volume(id)?)
    }
}

fn create(id: &str, class: &str, encrypted: bool) -> Op {
    let (id, storage_class) = (id.to_owned(), class.to_owned());
    Op::CreateVolume(CreateVolume {
        id,
        size_bytes: SIZE,
        storage_class,
        encrypted,
        ..Default::default()
    })
}

fn clone(id: &str, volume: &str, class: &str, encrypted: bool) -> Op {
    let source = CloneSource { volume: volume.to_owned(), snapshot: "then".to_owned() };
    let (id, source, storage_class) = (id.to_owned(), Some(source), class.to_owned());
    Op::CreateVolume(CreateVolume { id, source, storage_class, encrypted, ..Default::default() })
}

fn delete(id: &str) -> Op {
    let (id, with_snapshots) = (id.to_owned(), true);
    Op::DeleteVolume(DeleteVolume { id, with_snapshots, ..DeleteVolume::default() })
}

#[test]
fn a_volume_is_encrypted_by_its_own_word_or_its_class() {
    let mut m = Machine::default();
    m.class("vault", true, true);
    m.class("plain", false, true);
    assert!(m.volume(create("a", "", false)).encryption.is_none());
    let b = m.volume(create("b", "", true)).encryption.expect("it is encrypted");
    assert_eq!((b.cipher.as_str(), b.key_version), ("AES-256-XTS", 1));
    assert!(m.volume(create("c", "vault", false)).encryption.is_some());
    assert!(m.volume(create("d", "plain", true)).encryption.is_some());
    assert_eq!(m.state.keys().count(), 3);
    assert!(m.key_of("a").is_none());
    assert_ne!(m.key_of("b"), m.key_of("c"));
    // Neither is ever changed.
    let Outcome::Refused(refused) = m.class("vault", false, false) else { panic!("changed") };
    assert_eq!(refused.reason, ErrorReason::EncryptionDiffers);
    let to_vault = |id: &str| {
        let fields = vec!["storage_class".to_owned()];
        let (id, storage_class) = (id.to_owned(), "vault".to_owned());
        Op::UpdateVolume(UpdateVolume { id, fields, storage_class, ..Default::default() })
    };
    let refused = m.refused(to_vault("a"));
    assert_eq!(refused.reason, ErrorReason::EncryptionDiffers);
    assert!(refused.message.contains("Copy the data"), "{}", refused.message);
    assert_eq!(m.volume(to_vault("d")).storage_class, "vault");
}

#[test]
fn without_a_secret_there_is_no_encrypted_volume() {
    let mut m = Machine::default();
    let Outcome::Refused(refused) = m.propose("", create("a", "", true), None) else {
        panic!("it was made")
    };
    assert_eq!(refused.reason, ErrorReason::NoSecret);
    assert!(refused.message.contains("--secret-file"), "{}", refused.message);
    let short = WrappedKey { wrapped: vec![1; 91], ..key(1) };
    let Outcome::Refused(refused) = m.propose("", create("a", "", true), Some(short)) else {
        panic!("it was made")
    };
    assert_eq!(refused.reason, ErrorReason::InvalidField);
    assert!(m.state.volume("a").is_none() && m.state.keys().next().is_none());
}

#[test]
fn a_repeated_request_keeps_the_first_key() {
    let mut m = Machine::default();
    let first = m.propose("r", create("a", "", true), Some(key(1)));
    // The same request with another key: it was drawn anew for the repetition.
    assert_eq!(m.propose("r", create("a", "", true), Some(key(2))), first);
    assert_eq!(m.key_of("a"), Some(&key(1)));
}

#[test]
fn a_clone_has_the_key_of_its_family_and_the_last_one_erases_it() {
    let mut m = Machine::default();
    m.class("vault", true, true);
    m.volume(create("open", "", false));
    m.volume(create("safe", "", true));
    m.snapshot("open");
    m.snapshot("safe");
    for op in [clone("no", "open", "", true), clone("no", "open", "vault", false)] {
        assert_eq!(m.refused(op).reason, ErrorReason::EncryptionDiffers);
    }
    assert!(m.volume(clone("open2", "open", "", false)).encryption.is_none());
    let twin = m.volume(clone("twin", "safe", "", false));
    assert!(twin.encryption.is_some());
    assert_eq!(m.key_of("twin"), m.key_of("safe"));
    assert_eq!(m.state.keys().count(), 1);
    m.run(Op::SettleClone(SettleClone { volume: twin.number }));
    m.run(Op::SettleFlatten(SettleFlatten { volume: twin.number }));
    let safe = m.volume(delete("safe"));
    assert!(m.key_of("twin").is_some(), "the clone still needs it");
    m.run(Op::PurgeVolume(PurgeVolume { volume: safe.number }));
    assert!(m.key_of("twin").is_some());
    // The step that marks it as being deleted, not the one that forgets it.
    let twin = m.volume(delete("twin"));
    assert!(twin.deleting && m.state.volume("twin").is_some());
    assert_eq!(m.state.keys().count(), 0);
    let bytes: Vec<u8> = m.state.chunks().flatten().collect();
    let shown = key(0).wrapped.len();
    let drawn = (1..=m.drawn).any(|mark| bytes.windows(shown).any(|w| w == vec![mark; shown]));
    assert!(!drawn, "the state still holds a wrapped key");
}

#[test]
fn keys_are_wrapped_anew_unless_they_changed() {
    let mut m = Machine::default();
    m.volume(create("a", "", true));
    let record = m.state.keys().next().expect("a key").clone();
    let old = record.key.clone().expect("a key");
    let new = WrappedKey { secret: vec![2; 8], wrapped: vec![9; 92], ..old.clone() };
    let rewrap = |record: &KeyRecord, key: &WrappedKey, lineage| {
        let key = Some(key.clone());
        let keys = vec![KeyRecord { key, lineage, ..record.clone() }];
        Op::RewrapKeys(RewrapKeys { keys })
    };
    for (key, lineage) in [
        (WrappedKey { uid: vec![0; 16], ..new.clone() }, 1),
        (WrappedKey { wrapped: vec![9; 12], ..new.clone() }, 1),
        (new.clone(), 7),
    ] {
        m.run(rewrap(&record, &key, lineage));
        assert_eq!(m.key_of("a"), Some(&old));
    }
    m.run(rewrap(&record, &new, 1));
    assert_eq!(m.key_of("a"), Some(&new));
    // One that was made of what was there before.
    m.run(rewrap(&record, &old, 1));
    assert_eq!(m.key_of("a"), Some(&new));
    assert!(!format!("{new:?}").contains("9, 9"), "it is shown");
}

proptest! {
    /// Whatever is made, cloned and deleted in whatever order: each encrypted volume that stays has its key, no other
    /// key is kept, and the state is read back from its pieces.
    #[test]
    fn there_is_a_key_exactly_as_long_as_it_is_needed(
        steps in prop::collection::vec((0..6u8, 0..4usize, 0..4usize, any::<bool>()), 1..40)
    ) {
        let names = ["a", "b", "c", "d"];
        let mut m = Machine::default();
        for (what, one, other, encrypted) in steps {
            let (one, other) = (names[one], names[other]);
            let number = m.state.volume(one).map_or(0, |v| v.number);
            match what {
                0 => drop(m.run(create(one, "", encrypted))),
                1 => drop(m.run(clone(one, other, "", false))),
                2 => drop(m.run(delete(one))),
                3 => drop(m.run(Op::PurgeVolume(PurgeVolume { volume: number }))),
                4 => {
                    m.run(Op::SettleClone(SettleClone { volume: number }));
                    m.run(Op::SettleFlatten(SettleFlatten { volume: number }));
                }
                _ => {
                    let (volume, id) = (one.to_owned(), "then".to_owned());
                    let op = CreateSnapshot { volume, id, ..CreateSnapshot::default() };
                    if let Outcome::Snapshot(taken) = m.run(Op::CreateSnapshot(op)) {
                        let (volume, generation) = (taken.volume, taken.generation);
                        m.run(Op::SettleSnapshot(SettleSnapshot { volume, generation }));
                    }
                }
            }
            let stays: Vec<&VolumeRecord> =
                m.state.volumes().filter(|v| v.encryption.is_some() && !v.deleting).collect();
            for volume in &stays {
                prop_assert!(m.state.key_of(volume).is_some(), "{} has no key", volume.id);
            }
            for record in m.state.keys() {
                prop_assert!(stays.iter().any(|v| v.lineage == record.lineage), "nobody needs a key");
            }
            let read = MetaState::from_chunks(m.state.chunks());
            prop_assert!(read.is_ok_and(|read| read.keys().eq(m.state.keys())));
        }
    }
}
