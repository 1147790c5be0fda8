//! What `basalt-attach` tells Prometheus: at `/metrics` of an address of its own, which nobody but this machine reaches
//! unless it asks everybody for a certificate.

use crate::metrics::{CONTENT_TYPE, Writer, sessions, text, traces};
use crate::process::Usage;
use anyhow::{Context, Result, bail};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE as CONTENT_TYPE_NAME;
use axum::routing::get;
use basalt_api::stream::Stream;
use basalt_nbd::{DoorCommand, DoorStatus};
use basalt_node::Mailbox;
use basalt_security::Keyring;
use basalt_security::principal::Holder;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;

/// The NBD door among the reactor's tenants.
const DOOR: usize = 0;
/// How long the door may take to tell what it knows.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a handshake may take, and how many may be under way.
const HANDSHAKE: Duration = Duration::from_secs(5);
const HANDSHAKES: usize = 16;
/// How long a connection stands.
const CONNECTION: Duration = Duration::from_secs(600);

/// Where metrics are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricsListen(pub SocketAddr);

impl FromStr for MetricsListen {
    type Err = String;

    fn from_str(text: &str) -> Result<MetricsListen, String> {
        if let Ok(port) = text.parse::<u16>() {
            return Ok(MetricsListen((IpAddr::V4(Ipv4Addr::LOCALHOST), port).into()));
        }
        text.parse().map(MetricsListen).map_err(|_| {
            format!("'{text}' is neither a port (9400) nor an address with one (127.0.0.1:9400)")
        })
    }
}

/// What was heard of the cluster.
#[derive(Debug)]
pub struct Heard {
    cluster: String,
    host: String,
    began: Instant,
    map_version: AtomicU64,
    /// Milliseconds from the beginning to the last answer.
    last: AtomicU64,
}

impl Heard {
    /// Nothing yet, of a cluster by a host.
    pub fn new(cluster: String, host: String) -> Heard {
        let (map_version, last) = (AtomicU64::new(0), AtomicU64::new(0));
        Heard { cluster, host, began: Instant::now(), map_version, last }
    }

    /// A node has answered just now, with this map.
    pub fn of(&self, version: u64) {
        self.map_version.fetch_max(version, Ordering::Relaxed);
        self.last.store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
    }
}

/// All that is told.
#[derive(Debug)]
struct Told {
    heard: Arc<Heard>,
    door: Option<DoorStatus>,
}

impl Collector for Told {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (mut to, heard) = (Writer::new(encoder), &self.heard);
        let about = vec![
            ("cluster", heard.cluster.clone()),
            ("host", heard.host.clone()),
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ];
        to.gauges("basalt_attach_info", "The program; always 1", [(about, 1)])?;
        let up = heard.began.elapsed();
        to.gauge("basalt_uptime_seconds", "Since the process was started", up.as_secs())?;
        to.gauge(
            "basalt_attach_map_version",
            "Version of the map by which it finds groups",
            heard.map_version.load(Ordering::Relaxed),
        )?;
        let last = Duration::from_millis(heard.last.load(Ordering::Relaxed));
        to.gauge(
            "basalt_attach_cluster_silent_seconds",
            "Since a node last told it the map, by which nodes know that the host lives, too",
            up.saturating_sub(last).as_secs(),
        )?;
        sessions(self.door.as_ref(), &mut to)?;
        traces(&mut to)
    }
}

/// What the program tells of one volume that nobody uses, for tests of what is asked for.
pub fn sample() -> String {
    let export = basalt_nbd::ExportStatus {
        name: "demo".to_owned(),
        volume: basalt_wire::ids::VolumeId(1),
        epoch: basalt_wire::ids::Epoch(1),
        size_bytes: 1 << 20,
        read_only: false,
        ready: true,
        connections: Vec::new(),
        client: Default::default(),
        latencies: Default::default(),
        stages: Vec::new(),
    };
    let door = Some(DoorStatus { exports: vec![export], connections: 0 });
    let heard = Arc::new(Heard::new("c".to_owned(), "h".to_owned()));
    text(Told { heard, door }).unwrap_or_default()
}

/// A socket that listens for who wants to know.
pub struct Listener {
    socket: TcpListener,
    /// Who asks shows a certificate of this authority; without one everybody on this machine is told.
    keyring: Option<Arc<Keyring>>,
}

impl Listener {
    /// Listens.
    ///
    /// # Errors
    /// If others than this machine could ask and nobody would ask them who they are, or the address is taken.
    pub async fn bind(listen: MetricsListen, keyring: Option<Arc<Keyring>>) -> Result<Listener> {
        let MetricsListen(at) = listen;
        let keyring = match at.ip().is_loopback() {
            true => None,
            false => keyring.filter(|keyring| keyring.server().is_some()),
        };
        if !at.ip().is_loopback() && keyring.is_none() {
            bail!(Usage(format!(
                "--metrics {at} can be reached from other machines, which are told over TLS alone and by their \
                 certificates: give the cluster's secret (--secret-file), or listen on 127.0.0.1"
            )));
        }
        let socket = TcpListener::bind(at).await;
        let socket = socket.with_context(|| format!("--metrics can not listen on {at}"))?;
        Ok(Listener { socket, keyring })
    }

    /// Answers as long as the process lives.
    pub async fn serve(self, mailbox: Arc<Mailbox>, heard: Arc<Heard>) {
        let (accepted, incoming) = mpsc::channel(HANDSHAKES);
        tokio::spawn(accept(self.socket, self.keyring, accepted));
        let server = tonic::transport::Server::builder()
            .accept_http1(true)
            .timeout(PATIENCE * 2)
            .max_connection_age(CONNECTION)
            .add_routes(routes(mailbox, heard))
            .serve_with_incoming(ReceiverStream::new(incoming));
        if let Err(problem) = server.await {
            tracing::error!("metrics are told no more: {problem}");
        }
    }
}

fn routes(mailbox: Arc<Mailbox>, heard: Arc<Heard>) -> Routes {
    let answer = move || {
        let (mailbox, heard) = (mailbox.clone(), heard.clone());
        async move {
            let door = door(&mailbox).await;
            match text(Told { heard, door }) {
                Ok(text) => (StatusCode::OK, [(CONTENT_TYPE_NAME, CONTENT_TYPE)], text),
                Err(why) => {
                    (StatusCode::INTERNAL_SERVER_ERROR, [(CONTENT_TYPE_NAME, "text/plain")], why)
                }
            }
        }
    };
    let mut routes = Routes::default();
    let services = std::mem::take(routes.axum_router_mut());
    *routes.axum_router_mut() = services.route("/metrics", get(answer));
    routes
}

async fn door(mailbox: &Mailbox) -> Option<DoorStatus> {
    let (told, answer) = oneshot::channel();
    let reply = Box::new(move |status| {
        // Whoever asks may have given up.
        let _ = told.send(status);
    });
    mailbox.tenant(DOOR, Box::new(DoorCommand::Status { reply }));
    timeout(PATIENCE, answer).await.ok()?.ok()
}

async fn accept(
    socket: TcpListener,
    keyring: Option<Arc<Keyring>>,
    accepted: mpsc::Sender<io::Result<Stream>>,
) {
    loop {
        let stream = match socket.accept().await {
            Ok((stream, _)) => stream,
            Err(problem) => {
                tracing::warn!("metrics: {problem}");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        // A place for each that has not shown who it is: one more waits.
        let Ok(place) = accepted.clone().reserve_owned().await else { return };
        let keyring = keyring.clone();
        tokio::spawn(async move {
            let stream = match keyring {
                None => Some(Stream::Plain(stream)),
                Some(keyring) => timeout(HANDSHAKE, shake(stream, &keyring)).await.ok().flatten(),
            };
            if let Some(stream) = stream {
                place.send(Ok(stream));
            }
        });
    }
}

/// A connection whose other end has shown a certificate that the cluster accepts.
async fn shake(stream: TcpStream, keyring: &Keyring) -> Option<Stream> {
    let stream = TlsAcceptor::from(keyring.server()?).accept(stream).await.ok()?;
    let certificates = stream.get_ref().1.peer_certificates();
    let holder = certificates.and_then(|chain| chain.first()).map(Holder::of);
    match holder {
        Some(Ok(holder)) if keyring.accepts(&holder, SystemTime::now()) => {
            Some(Stream::tls(stream))
        }
        _ => {
            tracing::debug!("metrics are told to nobody without a certificate of the cluster");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_of_this_machine() {
        let parse = |text: &str| text.parse::<MetricsListen>();
        assert_eq!(parse("9400"), parse("127.0.0.1:9400"));
        assert!(parse("0.0.0.0:9400").is_ok_and(|listen| !listen.0.ip().is_loopback()));
        for bad in ["", "x", "70000", "127.0.0.1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn others_are_not_told_without_certificates() {
        let open = "0.0.0.0:0".parse().expect("an address");
        let refused = Listener::bind(open, None).await.err().expect("refused").to_string();
        assert!(refused.contains("--secret-file"), "{refused}");
        let own = "0".parse().expect("a port");
        assert!(Listener::bind(own, None).await.is_ok());
    }

    #[test]
    fn what_is_told_names_the_volume_and_the_host() {
        let text = sample();
        for part in [
            "basalt_attach_info{cluster=\"c\",host=\"h\",",
            "basalt_volume_session_ready{volume=\"demo\"} 1",
            "basalt_volume_request_seconds_count{volume=\"demo\",kind=\"write\"} 0",
            "basalt_attach_cluster_silent_seconds 0",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}
