//! The store on a real directory.

use basalt_store::{
    CheckpointBatch, Identity, MemberRecord, Records, ReplicaRecord, ScrubPlaceRecord, ScrubRecord,
    Store, StoreError,
};
use std::path::PathBuf;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("basalt-store-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn identity(cluster: u64, port: u16) -> Identity {
    let member = MemberRecord {
        node: 1,
        name: "a".to_owned(),
        grpc: format!("127.0.0.1:{port}"),
        data: "127.0.0.1:2".to_owned(),
        nbd: String::new(),
    };
    Identity::new(cluster, 1, vec![member], vec![vec![1]; 4], vec![1])
}

#[test]
fn an_identity_is_taken_once_and_survives() {
    let scratch = Scratch::new("identity");
    {
        let store = Store::open(&scratch.0).expect("opens");
        assert_eq!(store.identity().expect("reads"), None);
        store.adopt(identity(u64::MAX, 1)).expect("the first");
        store.adopt(identity(u64::MAX, 1)).expect("the same again");
        assert!(matches!(store.adopt(identity(8, 1)), Err(StoreError::Belongs { .. })));
        store.update(identity(u64::MAX, 9)).expect("a new address");
        let mut other = identity(u64::MAX, 1);
        other.node = 2;
        assert!(matches!(store.adopt(other), Err(StoreError::Belongs { .. })));
        assert!(matches!(store.update(identity(8, 9)), Err(StoreError::Belongs { .. })));
        assert_eq!(store.boot().expect("counts"), 1);
        assert!(!store.opened().expect("reads"));
        store.mark_opened().expect("writes");
    }
    let store = Store::open(&scratch.0).expect("opens again");
    assert_eq!(store.identity().expect("reads"), Some(identity(u64::MAX, 9)));
    assert_eq!(store.boot().expect("counts on"), 2);
    assert!(store.opened().expect("reads"));
}

#[test]
fn replicas_come_and_go_and_outlive_a_change_of_addresses() {
    let scratch = Scratch::new("replicas");
    let late = ReplicaRecord { group: 3, term: 7, index: 90 };
    let kept = |store: &Store| store.identity().expect("reads").expect("a member").replicas;
    {
        let store = Store::open(&scratch.0).expect("opens");
        assert!(matches!(store.hold(late), Err(StoreError::NoMember)));
        assert!(matches!(store.release(3), Err(StoreError::NoMember)));
        store.adopt(identity(8, 1)).expect("the first");
        let founded: Vec<u32> = kept(&store).iter().map(|replica| replica.group).collect();
        assert_eq!(founded, [0, 1, 2, 3, u32::MAX]);
        store.release(3).expect("forgotten");
        store.release(3).expect("forgotten already");
        assert_eq!(store.hold(late).expect("remembered"), late);
        let again = ReplicaRecord { term: 9, ..late };
        assert_eq!(store.hold(again).expect("held already"), late);
        store.release(1).expect("forgotten");
        store.update(identity(8, 9)).expect("a new address");
        store.adopt(identity(8, 10)).expect("a bootstrap that goes on");
    }
    let store = Store::open(&scratch.0).expect("opens again");
    let held: Vec<u32> = kept(&store).iter().map(|replica| replica.group).collect();
    assert_eq!(held, [0, 2, 3, u32::MAX]);
    assert_eq!(kept(&store)[2], late);
}

#[test]
fn a_member_that_has_begun_stays_one() {
    let scratch = Scratch::new("begun");
    let begun = |store: &Store| store.identity().expect("reads").expect("a member").begun;
    {
        let store = Store::open(&scratch.0).expect("opens");
        assert!(matches!(store.begin(), Err(StoreError::NoMember)));
        store.adopt(identity(8, 1)).expect("the first");
        assert!(!begun(&store), "it was told of its cluster only");
    }
    let store = Store::open(&scratch.0).expect("opens again");
    assert!(!begun(&store));
    store.begin().expect("writes");
    store.begin().expect("written already");
    store.update(identity(8, 9)).expect("a new address");
    store.adopt(identity(8, 10)).expect("a bootstrap that goes on");
    assert!(begun(&store));
}

#[test]
fn the_place_of_a_scrub_survives() {
    let scratch = Scratch::new("scrub");
    let place = ScrubPlaceRecord { group: 3, volume: u64::MAX, chunk: 7, left: 2 };
    {
        let store = Store::open(&scratch.0).expect("opens");
        assert_eq!(store.scrubbed().expect("reads"), None);
        store.note_scrub(ScrubRecord::new(77, Some(place))).expect("writes");
    }
    let store = Store::open(&scratch.0).expect("opens again");
    assert_eq!(store.scrubbed().expect("reads"), Some(ScrubRecord::new(77, Some(place))));
    store.note_scrub(ScrubRecord::new(78, None)).expect("writes");
    assert_eq!(store.scrubbed().expect("reads"), Some(ScrubRecord::new(78, None)));
}

#[test]
fn a_second_user_is_refused() {
    let scratch = Scratch::new("lock");
    let _first = Store::open(&scratch.0).expect("opens");
    let second = Store::open(&scratch.0).err().expect("refused");
    assert!(second.to_string().contains("lock"), "{second}");
}

#[test]
fn a_closed_store_lets_go_of_its_directory() {
    let scratch = Scratch::new("closed");
    let store = Store::open(&scratch.0).expect("opened");
    assert_eq!(store.boot().expect("counted"), 1);
    store.close();
    assert!(matches!(store.boot(), Err(StoreError::Closed)));
    let read = store.read_checkpoint(|_, _| Ok(()));
    assert_eq!(read, Err(StoreError::Closed.to_string()));
    let again = Store::open(&scratch.0).expect("free, though the first one is still there");
    assert_eq!(again.boot().expect("counted"), 2);
    store.close();
}

type Seen = Vec<(Vec<u8>, usize)>;

fn note(seen: &mut Seen, key: &[u8], value: &[u8]) -> Result<(), String> {
    seen.push((key.to_vec(), value.len()));
    Ok(())
}

/// Bytes that can not be made shorter.
fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..count).map(|_| next()).collect()
}

#[test]
fn damage_in_a_file_is_found_and_goes_with_a_checkpoint_that_is_whole() {
    let scratch = Scratch::new("rot");
    let key = |n: u32| [b"P".as_slice(), &n.to_be_bytes()].concat();
    let fill = move |batch: &mut CheckpointBatch<'_>, count: u32, seed: u64| {
        batch.delete_prefix(b"");
        (0..count).for_each(|n| batch.put(&key(n), &noise(seed + u64::from(n), 1000)));
    };
    let replace = |store: &Store, carried: Vec<Vec<u8>>, count: u32, seed: u64| {
        let is_sound = |_: usize, records: &Records| records.iter().all(|(_, v)| v.len() == 1000);
        store.replace_checkpoint(carried, is_sound, move |batch| fill(batch, count, seed))
    };
    {
        let store = Store::open(&scratch.0).expect("opens");
        assert_eq!(replace(&store, vec![], 2000, 7).expect("kept"), Vec::<usize>::new());
        store.close();
    }
    // What an opening finds in its log it puts into files.
    let store = Store::open(&scratch.0).expect("opens again");
    let all: Seen = store.verify_checkpoint(b"", u64::MAX, note).expect("as it was written");
    assert_eq!((all.len(), all[0].1), (2000, 1000));
    let some: Seen = store.verify_checkpoint(&key(5), 2_500, note).expect("as it was written");
    assert_eq!(some.iter().map(|one| one.0.clone()).collect::<Vec<_>>(), [5, 6, 7].map(key));

    let files = || {
        let entries = std::fs::read_dir(&scratch.0).expect("a directory").flatten();
        let tables = entries.filter(|e| e.path().extension().is_some_and(|ext| ext == "sst"));
        let mut sizes: Vec<_> =
            tables.map(|e| (e.metadata().map_or(0, |meta| meta.len()), e.path())).collect();
        sizes.sort_unstable();
        sizes
    };
    let (size, path) = files().pop().expect("a table");
    assert!(size > 1_000_000, "{size}");
    let mut bytes = std::fs::read(&path).expect("readable");
    bytes[size as usize / 3] ^= 0x10;
    std::fs::write(&path, bytes).expect("writable");
    let found = store.verify_checkpoint::<Seen>(b"", u64::MAX, note).expect_err("damage");
    assert!(found.contains("orruption"), "{found}");

    // What stands in damaged blocks can not be taken over, and then all is as it was.
    let lost = replace(&store, (0..2000).map(key).collect(), 0, 9).expect("told");
    assert!(!lost.is_empty() && lost.len() < 20, "{lost:?}");
    let pages = store.pages();
    assert!(pages.read(&key(lost[0] as u32)).is_err());
    let sound = (1500..2000).filter(|n| !lost.contains(&(*n as usize))).map(key);
    let sound: Vec<Vec<u8>> = sound.collect();
    let whole = 1500 + sound.len();
    assert!(replace(&store, sound, 1500, 9).expect("kept").is_empty());
    let all: Seen = store.verify_checkpoint(b"", u64::MAX, note).expect("all is new");
    assert_eq!(all.len(), whole);
    let read = pages.read(&key(1999)).expect("from the new one");
    assert_eq!(read[0].1[..], noise(7 + 1999, 1000)[..]);
    assert!(!path.exists() || files().iter().all(|(_, other)| *other != path));
    let saved = store.save_checkpoint(move |batch| fill(batch, 10, 11));
    saved.expect("what changes it goes to the new one");
    store.close();
    let store = Store::open(&scratch.0).expect("opens a third time");
    let mut count = 0;
    store
        .read_checkpoint(|_, value| {
            count += 1;
            assert_eq!(value.len(), 1000);
            Ok(())
        })
        .expect("reads");
    assert_eq!(count, 10, "the last one deleted what was before");
}
