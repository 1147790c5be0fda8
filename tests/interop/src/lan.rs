//! A network for the nodes of a cluster: each in a network namespace of its own, on one bridge, so that one can be
//! cut off without being told. Needs to be root.

use crate::process::run;
use anyhow::{Context, Result};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The namespaces, the bridge and the cables. They are taken away when it is dropped.
#[derive(Debug)]
pub struct Lan {
    /// What the names of its parts begin with.
    prefix: String,
    /// The first three bytes of its addresses.
    subnet: String,
    hosts: Vec<Arc<File>>,
}

/// Networks that this process made.
static MADE: AtomicU32 = AtomicU32::new(0);

impl Lan {
    /// A network of so many hosts.
    ///
    /// # Errors
    /// If it can not be made: for want of rights, or of the kernel's parts.
    pub fn new(hosts: usize) -> Result<Lan> {
        let number = std::process::id() % 4000 * 16 + MADE.fetch_add(1, Ordering::Relaxed) % 16;
        let (prefix, subnet) =
            (format!("bas{number}"), format!("10.{}.{}", 128 + number / 256 % 120, number % 256));
        let mut lan = Lan { prefix, subnet, hosts: Vec::new() };
        let bridge = lan.prefix.clone();
        ip(&["link", "add", &bridge, "type", "bridge"])?;
        ip(&["addr", "add", &format!("{}.254/24", lan.subnet), "dev", &bridge])?;
        ip(&["link", "set", &bridge, "up"])?;
        for host in 1..=hosts {
            lan.connect(host)?;
        }
        Ok(lan)
    }

    fn connect(&mut self, host: usize) -> Result<()> {
        let (space, cable) = (self.space(host), self.cable(host));
        ip(&["netns", "add", &space])?;
        let file = File::open(format!("/run/netns/{space}")).context("the network namespace")?;
        self.hosts.push(Arc::new(file));
        ip(&["link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &space])?;
        ip(&["link", "set", &cable, "master", &self.prefix, "up"])?;
        let address = format!("{}/24", self.address(host));
        ip(&["-n", &space, "addr", "add", &address, "dev", "eth0"])?;
        ip(&["-n", &space, "link", "set", "eth0", "up"])?;
        ip(&["-n", &space, "link", "set", "lo", "up"]).map(drop)
    }

    fn space(&self, host: usize) -> String {
        format!("{}-{host}", self.prefix)
    }

    fn cable(&self, host: usize) -> String {
        format!("{}v{host}", self.prefix)
    }

    /// The address of a host; they count from 1.
    pub fn address(&self, host: usize) -> String {
        format!("{}.{host}", self.subnet)
    }

    /// The namespace of a host.
    ///
    /// # Errors
    /// If there is none.
    pub fn namespace(&self, host: usize) -> Result<Arc<File>> {
        let found = host.checked_sub(1).and_then(|at| self.hosts.get(at));
        found.cloned().with_context(|| format!("the network has no host {host}"))
    }

    /// Pulls the cable of a host: nothing reaches it, and nothing that it sends reaches anybody.
    ///
    /// # Errors
    /// If that is not possible.
    pub fn cut(&self, host: usize) -> Result<()> {
        ip(&["link", "set", &self.cable(host), "down"]).map(drop)
    }

    /// Lets no more through to a host than so much, in the words of `tc`: "10mbit".
    ///
    /// # Errors
    /// If that is not possible.
    pub fn throttle(&self, host: usize, rate: &str) -> Result<()> {
        let cable = self.cable(host);
        let words = ["qdisc", "replace", "dev", &cable, "root", "tbf", "rate", rate];
        run("tc", &[&words[..], &["burst", "16kb", "latency", "400ms"]].concat()).map(drop)
    }

    /// Puts it in again.
    ///
    /// # Errors
    /// If that is not possible.
    pub fn mend(&self, host: usize) -> Result<()> {
        ip(&["link", "set", &self.cable(host), "up"]).map(drop)
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        // What fails here was not made, or stays: there is nobody to tell.
        for host in 1..=self.hosts.len() {
            let _ = ip(&["link", "del", &self.cable(host)]);
            let _ = ip(&["netns", "del", &self.space(host)]);
        }
        let _ = ip(&["link", "del", &self.prefix]);
    }
}

fn ip(words: &[&str]) -> Result<String> {
    run("ip", words)
}
