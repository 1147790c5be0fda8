//! The state of the metadata group: replaced whole, or not at all.

use basalt_store::Store;
use std::path::PathBuf;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path =
            std::env::temp_dir().join(format!("basalt-metadata-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn pieces(store: &Store) -> Vec<Vec<u8>> {
    let mut pieces = Vec::new();
    let count = store.read_metadata(|piece| {
        pieces.push(piece.to_vec());
        Ok(())
    });
    assert_eq!(count, Ok(pieces.len() as u32));
    pieces
}

fn state(tag: u8, count: u32) -> Vec<Vec<u8>> {
    (0..count).map(|n| vec![tag; 1000 + n as usize]).collect()
}

#[test]
fn a_state_takes_the_place_of_another() {
    let folder = Folder::new("replaced");
    let store = Store::open(&folder.0).expect("a new store");
    assert_eq!(pieces(&store), Vec::<Vec<u8>>::new());
    for (tag, count) in [(1, 40), (2, 3), (3, 0), (4, 7)] {
        store.save_metadata(state(tag, count).into_iter()).expect("saved");
        assert_eq!(pieces(&store), state(tag, count));
    }
    store.close();
    assert!(
        store.read_metadata(|_| Ok(())).is_err() && store.save_metadata([].into_iter()).is_err()
    );
    // Checkpoints come and go beside it, and a start drops nothing of it.
    let store = Store::open(&folder.0).expect("opened again");
    assert_eq!(pieces(&store), state(4, 7));
    let whole = |batch: &mut basalt_store::CheckpointBatch<'_>| batch.put(b"M", b"manifest");
    store.replace_checkpoint(Vec::new(), |_, _| true, whole).expect("replaced");
    assert_eq!(pieces(&store), state(4, 7));
    drop(store);
    let store = Store::open(&folder.0).expect("opened again");
    assert_eq!(pieces(&store), state(4, 7));
    let stopped = store.read_metadata(|_| Err("enough".to_owned()));
    assert_eq!(stopped, Err("enough".to_owned()));
}

/// A state whose pieces end in the middle, as in a crash, leaves the one before, and nothing that the next one keeps.
#[test]
fn a_state_that_breaks_off_leaves_the_one_before() {
    let folder = Folder::new("broken");
    let store = Store::open(&folder.0).expect("a new store");
    store.save_metadata(state(1, 5).into_iter()).expect("saved");
    let breaks = std::panic::AssertUnwindSafe(|| {
        let piece = |n: u32| if n < 8 { vec![2; 500] } else { panic!("the process ends here") };
        let _ = store.save_metadata((0..20).map(piece));
    });
    assert!(std::panic::catch_unwind(breaks).is_err());
    assert_eq!(pieces(&store), state(1, 5));
    drop(store);
    let store = Store::open(&folder.0).expect("opened again");
    assert_eq!(pieces(&store), state(1, 5));
    store.save_metadata(state(3, 2).into_iter()).expect("saved");
    assert_eq!(pieces(&store), state(3, 2), "nothing of the broken one is left");
}
