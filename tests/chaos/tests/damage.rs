//! Device files that were truncated, flipped and overwritten: named, repaired, and nothing is lost.

use anyhow::Result;
use basalt_chaos::nbd::NbdClient;
use basalt_chaos::power::ledger::{Value, content, value_of};
use basalt_chaos::random::Random;
use basalt_chaos::rot::disk::{Disk, path_of};
use basalt_interop::cluster::{Cluster, Shape};
use basalt_interop::process::wait_until;
use basalt_wire::disk::SUPERBLOCK_AREA_BYTES;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
const BLOCKS: u64 = 2048;
const BLOCK: usize = 4096;
/// What is read at a time.
const PIECE: usize = 1 << 20;
const FLIPS: u64 = 64;
const SUPERBLOCKS: u64 = SUPERBLOCK_AREA_BYTES;

fn small(name: &str) -> Cluster {
    let shape = Shape { device: "256MiB", segment: "1MiB", ..Shape::default() };
    Cluster::start_with(name, &shape).expect("a cluster")
}

fn open(path: &PathBuf) -> File {
    OpenOptions::new().read(true).write(true).open(path).expect("the device's file")
}

/// Writes every block of the volume.
fn fill(cluster: &Cluster) {
    cluster.basalt(&["volume", "create", "v", "--size", "64MiB"]).expect("a volume");
    let mut attached = cluster.attach("v", "host", false).expect("attached");
    let mut client = NbdClient::open(attached.port, "v", PATIENCE).expect("the export");
    for block in 0..BLOCKS {
        let data = content(1, block, block);
        client.send_write(block * BLOCK as u64, &data).expect("sent");
        if block % 16 == 15 {
            (0..16).for_each(|_| {
                assert_eq!(client.answer().expect("an answer").expect("open").error, 0);
            });
        }
    }
    drop(client);
    attached.process.stop(PATIENCE).expect("basalt-attach stops");
}

/// Reads every block of the volume.
fn verify(cluster: &Cluster) {
    let mut attached = cluster.attach("v", "host", false).expect("attached");
    let mut client = NbdClient::open(attached.port, "v", PATIENCE).expect("the export");
    for block in 0..BLOCKS {
        let data = client.read(block * BLOCK as u64, BLOCK as u32).expect("a read");
        assert!(data == content(1, block, block)[..], "block {block} holds something else");
    }
    drop(client);
    attached.process.stop(PATIENCE).expect("basalt-attach stops");
}

/// Flips bits of what is not zero, behind the superblocks: headers and data alike.
fn flip_some(path: &PathBuf, random: &mut Random) {
    let file = open(path);
    let mut flipped = 0;
    while flipped < FLIPS {
        let at = SUPERBLOCKS + random.below(16 << 20);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("within the file");
        if byte[0] != 0 {
            byte[0] ^= 1 << random.below(8);
            file.write_all_at(&byte, at).expect("written");
            flipped += 1;
        }
    }
    file.sync_all().expect("on the disk");
}

/// Flips a bit of each node's copy of a third of all blocks, so that every block has lost one of
/// its three copies. Gives the number of copies damaged.
fn flip_one_copy_of_everything(cluster: &Cluster, random: &mut Random) -> u64 {
    let mut damaged = 0;
    for (n, node) in cluster.nodes.iter().enumerate() {
        let disk = Disk::open(&path_of(node)).expect("the device");
        for piece_at in (SUPERBLOCKS..disk.bytes()).step_by(PIECE) {
            let bytes = PIECE.min((disk.bytes() - piece_at) as usize);
            let piece = disk.read(piece_at, bytes).expect("within the device");
            for (page, at) in piece.chunks(BLOCK).zip((piece_at..).step_by(BLOCK)) {
                let mut number = [0; 8];
                number.copy_from_slice(&page[16..24]);
                let block = u64::from_le_bytes(number);
                // The page tells what it is; it counts if every byte of it agrees.
                let known = value_of(1, block, page) == Value::Written(block);
                if known && block % 3 == n as u64 {
                    let mut page = page.to_vec();
                    page[random.below(BLOCK as u64) as usize] ^= 1 << random.below(8);
                    disk.write(at, &page).expect("written");
                    damaged += 1;
                }
            }
        }
        disk.sync().expect("on the disk");
    }
    damaged
}

fn no_panic(cluster: &Cluster) {
    for node in &cluster.nodes {
        let log = cluster.folder().join(format!("{}.log", node.name));
        let text = std::fs::read_to_string(log).expect("a log");
        assert!(!text.contains("panicked"), "{} panicked", node.name);
    }
}

fn log_of(cluster: &Cluster, node: usize) -> String {
    let path = cluster.folder().join(format!("{}.log", cluster.nodes[node].name));
    std::fs::read_to_string(path).expect("a log")
}

#[test]
fn one_copy_of_everything_is_damaged_while_all_nodes_are_down() -> Result<()> {
    let mut cluster = small("one-copy");
    fill(&cluster);
    cluster.stop()?;
    let damaged = flip_one_copy_of_everything(&cluster, &mut Random::new(5));
    cluster.restart()?;
    verify(&cluster);
    println!(
        "damage: one copy of {damaged} blocks flipped while the nodes were down, all read right"
    );
    assert!(damaged >= BLOCKS, "only {damaged} copies were found");
    no_panic(&cluster);
    cluster.stop()?;
    cluster.discard();
    Ok(())
}

#[test]
fn one_copy_of_everything_rots_under_running_nodes() -> Result<()> {
    let cluster = small("rot");
    fill(&cluster);
    let damaged = flip_one_copy_of_everything(&cluster, &mut Random::new(6));
    verify(&cluster);
    println!("damage: one copy of {damaged} blocks rotted under running nodes, all read right");
    assert!(damaged >= BLOCKS, "only {damaged} copies were found");
    no_panic(&cluster);
    cluster.finish()
}

#[test]
fn bits_flipped_anywhere_on_one_device_lose_nothing() -> Result<()> {
    let mut cluster = small("flipped");
    fill(&cluster);
    cluster.stop()?;
    flip_some(&path_of(&cluster.nodes[1]), &mut Random::new(7));
    cluster.nodes.iter_mut().try_for_each(|node| node.process.restart())?;
    let status = cluster.wait_healthy();
    println!(
        "damage: {FLIPS} bits flipped on one device: {}",
        match status {
            Ok(()) => "healthy again".to_owned(),
            Err(error) => format!("{error:#}"),
        }
    );
    verify(&cluster);
    no_panic(&cluster);
    assert!(cluster.nodes[0].process.alive() && cluster.nodes[2].process.alive());
    cluster.discard();
    Ok(())
}

#[test]
fn a_device_that_lost_its_beginning_or_its_end_is_refused_by_name() -> Result<()> {
    for name in ["truncated", "overwritten"] {
        let mut cluster = small(name);
        fill(&cluster);
        cluster.nodes[2].process.stop(PATIENCE)?;
        let before = log_of(&cluster, 2).len();
        let path = path_of(&cluster.nodes[2]);
        if name == "truncated" {
            open(&path).set_len(4 << 20)?;
        } else {
            let mut random = Random::new(3);
            let garbage: Vec<u8> = (0..SUPERBLOCKS).map(|_| random.bits() as u8).collect();
            open(&path).write_all_at(&garbage, 0)?;
        }
        cluster.nodes[2].process.restart()?;
        let path = path.to_string_lossy().into_owned();
        let names_it = |line: &&str| line.contains("ERROR") && line.contains(&path);
        let mut said = None;
        wait_until("the node names its device", PATIENCE, || {
            let log = log_of(&cluster, 2);
            said = log[before..].lines().find(names_it).map(str::to_owned);
            Ok(said.is_some())
        })?;
        println!("damage: {name}: {}", said.unwrap_or_default());
        verify(&cluster);
        no_panic(&cluster);
        let others = cluster.nodes[..2].iter_mut().all(|node| node.process.alive());
        assert!(others, "another node ended");
        cluster.discard();
    }
    Ok(())
}
