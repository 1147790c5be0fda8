//! A cluster of real processes on loopback, for tests.
//!
//! Everything is killed when the [`Cluster`] is dropped, on a panic too. [`Cluster::finish`] stops
//! the nodes in order and removes all files; a cluster dropped without it (a test that failed) keeps
//! its logs and says where they are.

use crate::lan::Lan;
use crate::ports::free_port;
use crate::process::{Program, run, run_with, secret_file, wait_until, work_dir};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long anything may take that should take a second: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Nodes, 1 to 5.
    pub nodes: usize,
    /// Size of each node's device.
    pub device: &'static str,
    /// Size of a log segment.
    pub segment: &'static str,
    /// Volume groups.
    pub groups: usize,
    /// More arguments of every node.
    pub node_args: Vec<String>,
    /// More arguments of every `basalt-attach`.
    pub attach_args: Vec<String>,
    /// Where each node is a host, by its number; nothing: all of them are on loopback.
    pub lan: Option<Arc<Lan>>,
    /// A secret of its own, instead of that of all tests.
    pub secret: Option<PathBuf>,
    /// Variables of the environment of all programs.
    pub variables: Vec<(String, String)>,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            nodes: 3,
            device: "4GiB",
            segment: "16MiB",
            groups: 16,
            node_args: Vec::new(),
            attach_args: Vec::new(),
            lan: None,
            secret: None,
            variables: Vec::new(),
        }
    }
}

/// Where a node listens.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// The gRPC API.
    pub grpc: u16,
    /// The data path.
    pub data: u16,
    /// NBD.
    pub nbd: u16,
}

/// A node of the cluster. Its name is `node-1`, `node-2`, ...
pub struct Node {
    /// Its name.
    pub name: String,
    /// Where it is reached: an address.
    pub host: String,
    /// Where it listens.
    pub ports: Ports,
    /// Its data directory.
    pub folder: PathBuf,
    /// Its process: to be killed, stopped, continued, restarted.
    pub process: Program,
}

impl Node {
    /// The address of its gRPC API.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.ports.grpc)
    }

    /// Where it serves NBD.
    pub fn nbd_address(&self) -> String {
        format!("{}:{}", self.host, self.ports.nbd)
    }

    /// Where it serves a volume that is attached to it.
    pub fn uri(&self, volume: &str) -> String {
        format!("nbd://{}/{volume}", self.nbd_address())
    }

    /// Waits until its gRPC API can be reached.
    ///
    /// # Errors
    /// If that does not happen.
    pub fn wait_answers(&mut self) -> Result<()> {
        let address = self.address();
        wait_until("the node answers", PATIENCE, || {
            ensure!(self.process.alive(), "{} ended{}", self.name, self.process.log_tail());
            Ok(TcpStream::connect(&address).is_ok())
        })
    }

    /// Stops it in its tracks, as a machine that hangs.
    ///
    /// # Errors
    /// If it does not run.
    pub fn freeze(&self) -> Result<()> {
        self.process.signal(libc::SIGSTOP)
    }

    /// Lets it go on after [`Node::freeze`].
    ///
    /// # Errors
    /// If it does not run.
    pub fn thaw(&self) -> Result<()> {
        self.process.signal(libc::SIGCONT)
    }
}

/// A running `basalt-attach`.
pub struct Attached {
    /// Its process.
    pub process: Program,
    /// Where it listens.
    pub port: u16,
}

impl Attached {
    /// Where it serves a volume.
    pub fn uri(&self, volume: &str) -> String {
        format!("nbd://127.0.0.1:{}/{volume}", self.port)
    }
}

/// A cluster of real processes.
pub struct Cluster {
    /// The nodes: those that it began with, and those that were added since.
    pub nodes: Vec<Node>,
    folder: PathBuf,
    shape: Shape,
    /// Nodes that were ever started; the next one is named after the number that follows.
    started: usize,
    finished: bool,
}

impl Cluster {
    /// Starts and bootstraps a cluster of three nodes, and waits until it is healthy. `name` tells it
    /// from the clusters of other tests.
    ///
    /// # Errors
    /// If a program is missing, or does not come up.
    pub fn start(name: &str) -> Result<Cluster> {
        Cluster::start_with(name, &Shape::default())
    }

    /// As [`Cluster::start`], in another shape.
    ///
    /// # Errors
    /// If a program is missing, or does not come up.
    pub fn start_with(name: &str, shape: &Shape) -> Result<Cluster> {
        let cluster = Cluster::unbootstrapped(name, shape)?;
        let addresses: Vec<String> = cluster.nodes.iter().map(Node::address).collect();
        let groups = shape.groups.to_string();
        let mut words = vec!["cluster", "bootstrap", "--groups", &groups];
        for address in &addresses {
            words.extend(["--node", address]);
        }
        cluster.basalt(&words)?;
        cluster.wait_healthy()?;
        Ok(cluster)
    }

    /// Starts nodes that wait for bootstrap.
    ///
    /// # Errors
    /// If a program is missing, or does not come up.
    pub fn unbootstrapped(name: &str, shape: &Shape) -> Result<Cluster> {
        let folder = work_dir().join(format!("interop-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("{} can not be made", folder.display()))?;
        let shape = shape.clone();
        let (nodes, count) = (Vec::new(), shape.nodes);
        let mut cluster = Cluster { nodes, folder, shape, started: 0, finished: false };
        (0..count).try_for_each(|_| cluster.start_node())?;
        cluster.nodes.iter_mut().try_for_each(Node::wait_answers)?;
        Ok(cluster)
    }

    fn start_node(&mut self) -> Result<()> {
        self.started += 1;
        let node = start_node(&self.folder, self.started, &self.shape)?;
        self.nodes.push(node);
        Ok(())
    }

    /// Starts a further node, which belongs to no cluster yet, waits until it answers and says where it
    /// stands in [`Cluster::nodes`]: last.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn spare_node(&mut self) -> Result<usize> {
        self.start_node()?;
        let at = self.nodes.len() - 1;
        self.nodes[at].wait_answers()?;
        Ok(at)
    }

    /// Starts a further node and makes it a member, in place of the node `replaces` if that is given.
    /// Says where it stands in [`Cluster::nodes`]; groups move to it from now on.
    ///
    /// # Errors
    /// If it does not come up, or the cluster does not take it.
    pub fn add_node(&mut self, replaces: Option<&str>) -> Result<usize> {
        let at = self.spare_node()?;
        let address = self.nodes[at].address();
        let mut words = vec!["node", "add", &address];
        words.extend(replaces.iter().flat_map(|old| ["--replaces", old]));
        self.basalt(&words)?;
        Ok(at)
    }

    /// Kills the node at a place of [`Cluster::nodes`] and takes its files and its place away: it is a
    /// member no more, or its machine is lost for good. Those behind it move up by one.
    ///
    /// # Errors
    /// If it can not be killed or its files not be removed.
    pub fn discard_node(&mut self, at: usize) -> Result<()> {
        let mut node = self.nodes.remove(at);
        node.process.kill()?;
        std::fs::remove_dir_all(&node.folder)
            .with_context(|| format!("{} can not be removed", node.folder.display()))
    }

    /// The place of a node in [`Cluster::nodes`].
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn place_of(&self, name: &str) -> Result<usize> {
        let place = self.nodes.iter().position(|node| node.name == name);
        place.with_context(|| format!("there is no node {name}"))
    }

    /// The secret of this cluster.
    pub fn secret(&self) -> PathBuf {
        self.shape.secret.clone().unwrap_or_else(secret_file)
    }

    /// The folder of logs and devices.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The addresses of all nodes, as `--cluster` takes them.
    pub fn addresses(&self) -> String {
        self.nodes.iter().map(Node::address).collect::<Vec<_>>().join(",")
    }

    /// Runs the command line and gives its answer.
    ///
    /// # Errors
    /// If it fails; the error has its message.
    pub fn basalt(&self, words: &[&str]) -> Result<Value> {
        self.ask(&self.addresses(), words)
    }

    /// As [`Cluster::basalt`], asking one node only: one that was removed and still runs knows nothing of
    /// what came after.
    ///
    /// # Errors
    /// If it fails; the error has its message.
    pub fn basalt_at(&self, at: usize, words: &[&str]) -> Result<Value> {
        self.ask(&self.nodes[at].address(), words)
    }

    /// As [`Cluster::basalt`], asking the nodes at some addresses.
    ///
    /// # Errors
    /// If it fails; the error has its message.
    pub fn ask(&self, addresses: &str, words: &[&str]) -> Result<Value> {
        let secret = self.secret().to_string_lossy().into_owned();
        let first = ["--secret-file", &secret, "--cluster", addresses, "-o", "json"];
        let text = run_with("basalt", &[&first, words].concat(), &self.shape.variables)?;
        serde_json::from_str(&text).with_context(|| format!("basalt printed: {text}"))
    }

    /// Waits until every node and every group works.
    ///
    /// # Errors
    /// If that does not happen; says what the cluster says.
    pub fn wait_healthy(&self) -> Result<()> {
        let seconds = PATIENCE.as_secs().to_string();
        self.basalt(&["cluster", "status", "--wait", &seconds]).map(drop)
    }

    /// Waits until an NBD export can be opened.
    ///
    /// # Errors
    /// If that does not happen.
    pub fn wait_served(&self, uri: &str) -> Result<()> {
        let mut last = None;
        wait_until(&format!("{uri} is served"), PATIENCE, || {
            let asked = run("nbdinfo", &["--size", uri]);
            let served = asked.is_ok();
            last = asked.err();
            Ok(served)
        })
        .with_context(|| last.map_or_else(String::new, |e| format!("{e:#}")))
    }

    /// Starts a `basalt-attach` for a volume, or several with commas between them, and waits until
    /// they are served. It takes the volumes from other hosts that have them if `take` is set.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn attach(&self, volume: &str, host: &str, take: bool) -> Result<Attached> {
        self.attach_on(volume, host, take, None)
    }

    /// As [`Cluster::attach`], and also on a listening socket that the program inherits.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn attach_on(
        &self,
        volume: &str,
        host: &str,
        take: bool,
        socket: Option<TcpListener>,
    ) -> Result<Attached> {
        let port = free_port()?;
        let listen = format!("127.0.0.1:{port}");
        let log = self.folder.join(format!("attach-{host}.log"));
        let addresses = self.addresses();
        let mut program = Program::new("basalt-attach")
            .args(["--secret-file", &self.secret().to_string_lossy()])
            .args(["--cluster", &addresses, "--volume", volume])
            .args(["--listen", &listen, "--host", host])
            .variables(&self.shape.variables)
            .more_args(&self.attach_args())
            .log(log);
        if take {
            program = program.args(["--move"]);
        }
        if let Some(socket) = socket {
            program = program.socket(socket);
        }
        let mut attached = Attached { process: program.start()?, port };
        for uri in volume.split(',').map(|one| attached.uri(one)).collect::<Vec<_>>() {
            wait_until(&format!("{uri} is served"), PATIENCE, || {
                let process = &mut attached.process;
                ensure!(process.alive(), "basalt-attach ended{}", process.log_tail());
                Ok(run("nbdinfo", &["--size", &uri]).is_ok())
            })?;
        }
        Ok(attached)
    }

    fn attach_args(&self) -> Vec<&str> {
        self.shape.attach_args.iter().map(String::as_str).collect()
    }

    /// Stops every node in order; each must end with status 0.
    ///
    /// # Errors
    /// If one does not.
    pub fn stop(&mut self) -> Result<()> {
        self.nodes.iter_mut().try_for_each(|node| node.process.stop(PATIENCE))
    }

    /// Kills every node at once.
    ///
    /// # Errors
    /// If one can not be killed.
    pub fn kill(&mut self) -> Result<()> {
        for node in &self.nodes {
            node.process.signal(libc::SIGKILL)?;
        }
        self.nodes.iter_mut().try_for_each(|node| node.process.kill())
    }

    /// Starts every node again, and waits until the cluster is healthy.
    ///
    /// # Errors
    /// If that does not happen.
    pub fn restart(&mut self) -> Result<()> {
        self.nodes.iter_mut().try_for_each(|node| node.process.restart())?;
        self.wait_healthy()
    }

    /// The good end: stops the nodes in order and removes all files.
    ///
    /// # Errors
    /// If a node does not stop as it should.
    pub fn finish(mut self) -> Result<()> {
        self.stop()?;
        self.finished = true;
        Ok(())
    }

    /// The end of a test that broke a node on purpose: kills what runs and removes all files.
    pub fn discard(mut self) {
        self.finished = true;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // What fails here fails on the way out: there is nobody to tell.
        for node in &mut self.nodes {
            let _ = node.process.kill();
        }
        if self.finished {
            let _ = std::fs::remove_dir_all(&self.folder);
            return;
        }
        for node in &self.nodes {
            let _ = std::fs::remove_dir_all(&node.folder);
        }
        eprintln!("the logs of the failed cluster are in {}", self.folder.display());
    }
}

fn start_node(folder: &Path, number: usize, shape: &Shape) -> Result<Node> {
    let name = format!("node-{number}");
    let ports = Ports { grpc: free_port()?, data: free_port()?, nbd: free_port()? };
    let host = shape.lan.as_ref().map_or("127.0.0.1".to_owned(), |lan| lan.address(number));
    let log = folder.join(format!("{name}.log"));
    let data = folder.join(&name);
    let secret = shape.secret.clone().unwrap_or_else(secret_file);
    let more: Vec<&str> = shape.node_args.iter().map(String::as_str).collect();
    let mut program = Program::new("basaltd")
        .more_args(&more)
        .variables(&shape.variables)
        .args(["--name", &name, "--data-dir", &data.to_string_lossy()])
        .args(["--secret-file", &secret.to_string_lossy()])
        .args(["--device-size", shape.device, "--segment-size", shape.segment])
        .args(["--listen", &format!("{host}:{}", ports.grpc)])
        .args(["--data-listen", &format!("{host}:{}", ports.data)])
        .args(["--nbd-listen", &format!("{host}:{}", ports.nbd)])
        .log(log);
    if let Some(lan) = &shape.lan {
        // Its clients, which are tests of other things, show no certificates.
        program = program.network(lan.namespace(number)?).args(["--insecure-nbd"]);
    }
    let process = program.start()?;
    Ok(Node { name, host, ports, folder: data, process })
}
