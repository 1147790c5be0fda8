//! The store on a real directory.

use basalt_store::{Identity, MemberRecord, ReplicaRecord, Store, StoreError};
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
