//! The store on a real directory.

use basalt_store::{Identity, MemberRecord, Store, StoreError};
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
