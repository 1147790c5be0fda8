//! Who comes to an understanding with whom: handshakes in memory.

use basalt_security::authority::{Authority, Subject};
use basalt_security::keyring::{Keyring, Source};
use basalt_security::principal::Holder;
use basalt_security::secret::write_private;
use basalt_security::verify::{NodeVerifier, provider};
use basalt_security::{Role, Secrets};
use rustls::pki_types::ServerName;
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

const HOUR: Duration = Duration::from_secs(3600);

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path =
            std::env::temp_dir().join(format!("basalt-keyring-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a folder");
        Folder(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn subject(name: &str, role: Role) -> Subject {
    Subject { name: name.to_owned(), role, addresses: Vec::new(), lifetime: 24 * HOUR }
}

fn keyring(secret: &Path, name: &str, role: Role) -> Keyring {
    Keyring::open(Source::Secret(secret.to_owned()), subject(name, role)).expect("a keyring")
}

/// Whom the server sees, or which side refused and why.
fn shake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Result<Option<Holder>, String> {
    let name = ServerName::try_from("node").expect("a name");
    let mut client = ClientConnection::new(client, name).expect("a client");
    let mut server = ServerConnection::new(server).expect("a server");
    for _ in 0..10 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).expect("memory");
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).expect("memory");
            server.process_new_packets().map_err(|e| format!("server: {e}"))?;
        }
        bytes.clear();
        while server.wants_write() {
            server.write_tls(&mut bytes).expect("memory");
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).expect("memory");
            client.process_new_packets().map_err(|e| format!("client: {e}"))?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking(), "no end of it");
    let shown = server.peer_certificates().and_then(|chain| chain.first());
    Ok(shown.map(|one| Holder::of(one).expect("ours")))
}

fn between(client: &Keyring, server: &Keyring) -> Result<Option<Holder>, String> {
    shake(client.client(), server.server().expect("it holds the secret"))
}

#[test]
fn holders_of_one_secret_know_each_other_and_no_others() {
    let folder = Folder::new("one");
    let (ours, theirs) = (folder.file("ours"), folder.file("theirs"));
    Secrets::new().create(&ours).expect("written");
    Secrets::new().create(&theirs).expect("written");
    let node = keyring(&ours, "node-1", Role::Node);
    for role in Role::ALL {
        let client = keyring(&ours, "me", role);
        let seen = between(&client, &node).expect("known").expect("it shows a certificate");
        assert_eq!((seen.name.as_str(), seen.role), ("me", role));
        let now = SystemTime::now();
        assert!(node.accepts(&seen, now) && !node.accepts(&seen, now + 25 * HOUR));
        let stranger = keyring(&theirs, "me", role);
        assert!(between(&stranger, &node).expect_err("unknown").starts_with("client"));
        // The server, too, would not have taken it.
        let blind = blind_to_servers(&theirs, role);
        assert!(
            shake(blind, node.server().expect("a server")).expect_err("x").starts_with("server")
        );
    }
}

/// A client of another cluster that believes every authority of ours.
fn blind_to_servers(secret: &Path, role: Role) -> Arc<ClientConfig> {
    let secrets = Secrets::load(secret).expect("a secret");
    let authority = Authority::of(secrets.first()).expect("made");
    let issued = authority.issue(&subject("me", role), SystemTime::now()).expect("issued");
    let ours = Secrets::load(&secret.with_file_name("ours")).expect("a secret");
    let mut roots = RootCertStore::empty();
    roots.add(Authority::of(ours.first()).expect("made").certificate().clone()).expect("added");
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("spoken")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(NodeVerifier::of_authorities(roots)))
        .with_client_auth_cert(issued.chain.clone(), issued.private_key());
    let mut config = config.expect("usable");
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

#[test]
fn whoever_is_no_node_can_not_pose_as_one_and_what_is_over_is_over() {
    let folder = Folder::new("pose");
    let secret = folder.file("secret");
    let secrets = Secrets::new();
    secrets.create(&secret).expect("written");
    let client = keyring(&secret, "me", Role::Admin);
    let authority = Authority::of(secrets.first()).expect("made");
    let now = SystemTime::now();
    let server = |role, at| {
        let issued = authority.issue(&subject("x", role), at).expect("issued");
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate().clone()).expect("added");
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .expect("spoken")
            .with_client_cert_verifier(clients.build().expect("usable"))
            .with_single_cert(issued.chain.clone(), issued.private_key());
        let mut config = config.expect("usable");
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    };
    shake(client.client(), server(Role::Node, now)).expect("a node");
    for role in [Role::Viewer, Role::Operator, Role::Admin, Role::Csi] {
        let why = shake(client.client(), server(role, now)).expect_err("no node");
        assert!(why.starts_with("client"), "{why}");
    }
    let why = shake(client.client(), server(Role::Node, now - 48 * HOUR)).expect_err("over");
    assert!(why.contains("xpired"), "{why}");
    shake(client.client(), server(Role::Node, now + HOUR / 2))
        .expect("a clock that is ahead a little");
}

#[test]
fn a_secret_follows_another_without_a_gap() {
    let folder = Folder::new("rotation");
    let (a, b) = (folder.file("a"), folder.file("b"));
    let one = Secrets::new();
    let two = one.with_next().expect("room");
    let swapped = two.promoted().expect("two");
    let last = swapped.only_first().expect("two");
    one.create(&a).expect("written");
    one.create(&b).expect("written");
    let (node_a, node_b) = (keyring(&a, "a", Role::Node), keyring(&b, "b", Role::Node));
    let old = between(&node_a, &node_b).expect("known").expect("shown");
    let both = || {
        between(&node_a, &node_b).expect("known");
        between(&node_b, &node_a).expect("known");
    };
    // Each step is taken by one node first: at no time do they refuse each other.
    for step in [&two, &swapped, &last] {
        for (file, node) in [(&a, &node_a), (&b, &node_b)] {
            step.replace(file).expect("written");
            assert_eq!(node.refresh(SystemTime::now()), Ok(true));
            assert_eq!(node.refresh(SystemTime::now()), Ok(false), "nothing is new");
            both();
        }
    }
    let now = SystemTime::now();
    let new = between(&node_a, &node_b).expect("known").expect("shown");
    assert!(node_b.accepts(&new, now) && !node_b.accepts(&old, now), "the old secret is gone");
    // What can not be used changes nothing.
    write_private(&a, b"nonsense", false).expect("written");
    assert!(node_a.refresh(now).is_err());
    both();
}

#[test]
fn certificates_are_renewed_when_half_their_time_is_over() {
    let folder = Folder::new("renewal");
    let secret = folder.file("secret");
    Secrets::new().create(&secret).expect("written");
    let (node, client) = (keyring(&secret, "a", Role::Node), keyring(&secret, "b", Role::Node));
    let first = between(&client, &node).expect("known").expect("shown");
    let now = SystemTime::now();
    assert_eq!(client.refresh(now + 11 * HOUR), Ok(false));
    assert_eq!(client.refresh(now + 12 * HOUR), Ok(true));
    // The clock of this test stands still, so it is not valid yet but for the leeway of clocks.
    let renewed = client.refresh(now + HOUR / 2);
    assert_eq!(renewed, Ok(false), "it is new");
    assert!(first.not_after > 0);
}

#[test]
fn a_machine_that_joins_believes_the_authority_of_its_token() {
    let folder = Folder::new("join");
    let (ours, theirs) = (folder.file("ours"), folder.file("theirs"));
    let secrets = Secrets::new();
    secrets.create(&ours).expect("written");
    Secrets::new().create(&theirs).expect("written");
    let fingerprint = Authority::of(secrets.first()).expect("made").fingerprint();
    let joining = Keyring::open(Source::Fingerprint(fingerprint), subject("new", Role::Node));
    let joining = joining.expect("a keyring");
    assert!(joining.server().is_none());
    let seen = between(&joining, &keyring(&ours, "a", Role::Node)).expect("known");
    assert!(seen.is_none(), "it has no certificate to show");
    let why = between(&joining, &keyring(&theirs, "a", Role::Node)).expect_err("another cluster");
    assert!(why.starts_with("client"), "{why}");
}

#[test]
fn certificates_in_files_are_read_again() {
    let folder = Folder::new("files");
    let secret = folder.file("secret");
    let secrets = Secrets::new();
    secrets.create(&secret).expect("written");
    let authority = Authority::of(secrets.first()).expect("made");
    let (ca, cert, key) = (folder.file("ca.pem"), folder.file("cert.pem"), folder.file("key.pem"));
    let issue = |name: &str| {
        let issued =
            authority.issue(&subject(name, Role::Viewer), SystemTime::now()).expect("issued");
        std::fs::write(&ca, authority.pem()).expect("written");
        std::fs::write(&cert, issued.chain_pem()).expect("written");
        write_private(&key, issued.key_pem().as_bytes(), false).expect("written");
    };
    issue("first");
    let source = Source::Files { authority: ca.clone(), own: Some((cert.clone(), key.clone())) };
    let client = Keyring::open(source, subject("unused", Role::Viewer)).expect("a keyring");
    let node = keyring(&secret, "a", Role::Node);
    let name = |seen: Option<Holder>| seen.expect("shown").name;
    assert_eq!(name(between(&client, &node).expect("known")), "first");
    issue("second");
    assert_eq!(client.refresh(SystemTime::now()), Ok(true));
    assert_eq!(name(between(&client, &node).expect("known")), "second");
    std::fs::write(&cert, authority.pem()).expect("written");
    assert!(client.refresh(SystemTime::now()).is_err(), "the key is another's");
    assert_eq!(name(between(&client, &node).expect("known")), "second");
    let bare = Source::Files { authority: ca, own: None };
    let client = Keyring::open(bare, subject("unused", Role::Viewer)).expect("a keyring");
    assert_eq!(between(&client, &node).expect("known"), None);
}
