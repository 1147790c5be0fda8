//! Links between reactors: up, lost, found again; the life and end of a reactor.

mod common;

use basalt_core::event::Effect;
use basalt_device::DeviceSpec;
use basalt_node::{FormatPolicy, NodeError, ReactorHandle, Routes, start};
use common::*;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

fn links_up(node: &ReactorHandle) -> usize {
    status(node).links.iter().filter(|link| link.up).count()
}

fn cluster(routes: &Routes) -> Vec<ReactorHandle> {
    (1..=3).map(|n| start(node_config(n, &[1, 2, 3], routes)).unwrap()).collect()
}

#[test]
fn three_reactors_find_each_other_and_a_killed_one_comes_back() {
    let routes = routes(&[1, 2, 3]);
    let mut nodes = cluster(&routes);
    for node in &nodes {
        wait_for("links to both peers", || links_up(node) == 2 && status(node).accepted == 2);
    }
    nodes.remove(2).kill().unwrap();
    for node in &nodes {
        wait_for("the dead peer is noticed", || links_up(node) == 1);
    }
    nodes.push(start(node_config(3, &[1, 2, 3], &routes)).unwrap());
    for node in &nodes {
        wait_for("links to both peers again", || links_up(node) == 2 && status(node).accepted == 2);
    }
    for node in &nodes {
        node.stop().unwrap();
    }
}

/// Passes bytes between two nodes until it is told to swallow them.
struct Wire {
    swallow: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl Wire {
    fn new(listener: TcpListener, to: std::net::SocketAddr) -> Wire {
        use std::io::{Read, Write};
        use std::sync::atomic::Ordering::SeqCst;
        let swallow = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let flag = swallow.clone();
        std::thread::spawn(move || {
            for from in listener.incoming().flatten() {
                let Ok(to) = TcpStream::connect(to) else { continue };
                for (mut a, mut b) in [
                    (from.try_clone().unwrap(), to.try_clone().unwrap()),
                    (to.try_clone().unwrap(), from.try_clone().unwrap()),
                ] {
                    let flag = flag.clone();
                    std::thread::spawn(move || {
                        let mut buffer = [0; 65536];
                        while let Ok(len) = a.read(&mut buffer) {
                            if len == 0 {
                                let _ = b.shutdown(std::net::Shutdown::Both);
                                return;
                            }
                            if !flag.load(SeqCst) && b.write_all(&buffer[..len]).is_err() {
                                return;
                            }
                        }
                    });
                }
            }
        });
        Wire { swallow }
    }
}

#[test]
fn a_silent_peer_is_noticed_and_dialled_again() {
    let wired = TcpListener::bind(loopback()).unwrap();
    let mut near = routes(&[1, 2]);
    let wire_addr = wired.local_addr().unwrap();
    let wire = Wire::new(wired, near[&address(2)]);
    let far = near.clone();
    near.insert(address(2), wire_addr);
    let quick = |n, routes| {
        let mut config = node_config(n, &[1, 2], routes);
        config.limits.ping_every = Duration::from_millis(20);
        config.limits.silence = Duration::from_millis(100);
        start(config).unwrap()
    };
    let (one, _two) = (quick(1, &near), quick(2, &far));
    wait_for("the link is up", || links_up(&one) == 1);
    wire.swallow.store(true, std::sync::atomic::Ordering::SeqCst);
    wait_for("silence is noticed", || links_up(&one) == 0);
    wait_for_reason(&one, "silent for 100ms");
    wire.swallow.store(false, std::sync::atomic::Ordering::SeqCst);
    wait_for("the link is up again", || links_up(&one) == 1);
}

#[test]
fn a_route_that_changes_moves_the_link() {
    let mut table = routes(&[1, 2]);
    let right = table[&address(2)];
    let elsewhere = TcpListener::bind(loopback()).unwrap();
    table.insert(address(2), elsewhere.local_addr().unwrap());
    let one = start(node_config(1, &[1, 2], &table)).unwrap();
    table.insert(address(2), right);
    let two = start(node_config(2, &[1, 2], &table)).unwrap();
    wait_for("node 2 reaches node 1", || links_up(&two) == 1);
    assert_eq!(links_up(&one), 0);
    one.routes(table);
    wait_for("node 1 reaches node 2", || links_up(&one) == 1);
}

#[test]
fn a_peer_that_answers_in_anothers_name_is_refused() {
    let mut table = routes(&[1, 2, 3]);
    let _two = start(node_config(2, &[1, 2, 3], &table)).unwrap();
    table.insert(address(3), table[&address(2)]);
    let one = start(node_config(1, &[1, 2, 3], &table)).unwrap();
    wait_for_reason(&one, "refused: this is node 2 shard 0, not node 3 shard 0");
    assert_eq!(links_up(&one), 1);
}

#[test]
fn a_graceful_stop_is_told() {
    let mut config = node_config(1, &[1], &routes(&[1]));
    let notices = Notices::default();
    config.notices = notices.sink();
    let node = start(config).unwrap();
    assert_eq!(node.ended(), None);
    node.stop().unwrap();
    assert!(notices.any(|n| matches!(n, Effect::Drained)));
    assert_eq!(node.ended(), Some(Ok(())));
    assert!(matches!(node.status(), Err(NodeError::Ended(_))));
}

#[test]
fn a_panic_is_reported_not_survived() {
    let mut config = node_config(1, &[1], &routes(&[1]));
    let notices = Notices::default();
    config.notices = notices.sink();
    let node = start(config).unwrap();
    node.panic_for_test("by the test");
    wait_for("the end is told", || node.ended().is_some());
    assert!(node.ended().unwrap().unwrap_err().contains("by the test"));
    wait_for("an alarm", || {
        notices.any(
            |n| matches!(n, Effect::Notice { alarm: true, text } if text.contains("by the test")),
        )
    });
    assert!(node.stop().is_err());
}

#[test]
fn a_start_that_can_not_work_says_why() {
    let taken = TcpListener::bind(loopback()).unwrap();
    let mut config = node_config(1, &[1], &routes(&[1]));
    config.data_listen = Some(taken.local_addr().unwrap());
    let error = start(config).err().unwrap().to_string();
    assert!(error.contains("can not listen on 127.0.0.1"), "{error}");

    let mut config = node_config(1, &[1], &routes(&[1]));
    config.shard.as_mut().unwrap().format = FormatPolicy::Never;
    let error = start(config).err().unwrap().to_string();
    assert!(error.contains("blank"), "{error}");

    let mut config = node_config(1, &[1], &routes(&[1]));
    config.shard.as_mut().unwrap().device = DeviceSpec::path("/nonexistent/device");
    let error = start(config).err().unwrap().to_string();
    assert!(error.contains("/nonexistent/device"), "{error}");

    let mut config = node_config(1, &[1], &routes(&[1]));
    config.shard.as_mut().unwrap().device = DeviceSpec::memory(8 << 20);
    let error = start(config).err().unwrap().to_string();
    assert!(error.contains("segments"), "{error}");

    let mut config = node_config(1, &[1], &routes(&[1]));
    config.address = Some(address(2));
    assert!(matches!(start(config), Err(NodeError::Config(_))));
}
