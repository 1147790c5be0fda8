//! NBD over TLS: foreign clients against `basalt-attach` and against a node, with client
//! certificates, and files that can not be used.

use anyhow::{Context, Result, ensure};
use basalt_interop::cluster::{Cluster, PATIENCE, Shape};
use basalt_interop::ports::free_port;
use basalt_interop::process::{Program, run};
use std::path::{Path, PathBuf};

/// Certificates under a folder: `server`, `client` and `plain` are each a folder as libnbd and QEMU
/// want it, of a client with a certificate and of one without.
struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    fn make(folder: PathBuf) -> Result<Certificates> {
        std::fs::create_dir_all(&folder)?;
        let made = Certificates { folder };
        let (ca, ca_key) = (made.path("ca-cert.pem"), made.path("ca-key.pem"));
        let new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
        let new = [&new[..], &["-nodes", "-days", "2"]].concat();
        let root = ["-subj", "/CN=test authority", "-out", &ca, "-keyout", &ca_key];
        run("openssl", &[&new[..], &root].concat())?;
        for (name, usage) in [("server", "serverAuth"), ("client", "clientAuth")] {
            let (cert, key) =
                (made.path(&format!("{name}-cert.pem")), made.path(&format!("{name}-key.pem")));
            let (usage, subject) = (format!("extendedKeyUsage={usage}"), format!("/CN={name}"));
            let signed = ["-subj", &subject, "-out", &cert, "-keyout", &key, "-CA", &ca];
            let more = ["-CAkey", &ca_key, "-addext", "basicConstraints=critical,CA:FALSE"];
            let names = ["-addext", &usage, "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"];
            run("openssl", &[&new[..], &signed, &more, &names].concat())?;
        }
        std::fs::create_dir_all(made.folder.join("plain"))?;
        std::fs::copy(&ca, made.folder.join("plain/ca-cert.pem"))?;
        Ok(made)
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }

    /// The options of a server that wants certificates of its clients.
    fn server(&self) -> Vec<String> {
        let file = |name: &str| self.path(name);
        let pairs = [
            ("--tls-cert", file("server-cert.pem")),
            ("--tls-key", file("server-key.pem")),
            ("--tls-client-ca", file("ca-cert.pem")),
        ];
        pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
    }

    fn uri(&self, port: u16, folder: &str) -> String {
        format!("nbds://127.0.0.1:{port}/disk?tls-certificates={}", self.path(folder))
    }
}

fn words(all: &[String]) -> Vec<&str> {
    all.iter().map(String::as_str).collect()
}

/// What a program says that must not succeed.
fn refused(program: &str, args: &[&str]) -> Result<String> {
    match run(program, args) {
        Ok(said) => anyhow::bail!("{program} {args:?} must not succeed, and said {said}"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

fn qemu(certificates: &Certificates, folder: &str, port: u16) -> (String, String) {
    let object = format!("tls-creds-x509,id=t,endpoint=client,dir={}", certificates.path(folder));
    let image = format!(
        "driver=nbd,server.type=inet,server.host=127.0.0.1,server.port={port},export=disk,tls-creds=t"
    );
    (object, image)
}

#[test]
fn clients_of_basalt_attach_show_certificates() -> Result<()> {
    let cluster = Cluster::start_with("tls-attach", &Shape { nodes: 1, ..Shape::default() })?;
    let certificates = Certificates::make(cluster.folder().join("certificates"))?;
    cluster.basalt(&["volume", "create", "disk", "--size", "64MiB"])?;
    let (port, socket) = (free_port()?, cluster.folder().join("nbd.sock"));
    let mut attach = Program::new("basalt-attach")
        .args(["--cluster", &cluster.addresses(), "--volume", "disk", "--host", "tls-host"])
        .args(["--listen", &format!("127.0.0.1:{port}")])
        .args(["--listen", &format!("unix:{}", socket.display())])
        .more_args(&words(&certificates.server()))
        .log(cluster.folder().join("attach.log"))
        .start()?;
    // The unix socket needs no TLS, and takes it too.
    let local = format!("nbd+unix:///disk?socket={}", socket.display());
    cluster.wait_served(&local).with_context(|| attach.log_tail())?;
    let secret = certificates.uri(port, "");
    let info = run("nbdinfo", &["--json", &secret])?;
    ensure!(info.contains("\"TLS\": true"), "nbdinfo does not say that TLS is on: {info}");
    refused("nbdinfo", &[&format!("nbd://127.0.0.1:{port}/disk")])?;
    refused("nbdinfo", &["--list", &format!("nbd://127.0.0.1:{port}/")])?;
    refused("nbdinfo", &[&certificates.uri(port, "plain")])?;

    let (data, back) = (cluster.folder().join("data"), cluster.folder().join("back"));
    let (data, back) = (data.to_string_lossy(), back.to_string_lossy());
    run("bash", &["-euc", &format!("head -c 64M /dev/urandom > {data}")])?;
    run("nbdcopy", &["--connections=4", &data, &secret])?;
    run("nbdcopy", &[&secret, &back])?;
    run("cmp", &[&data, &back])?;
    run("cmp", &[&data, &back])?;
    let (object, image) = qemu(&certificates, "", port);
    let map = ["map", "--output=json", "--object", &object, "--image-opts", &image];
    run("qemu-img", &map)?;
    let io = ["--object", &object, "--image-opts", &image, "-c", "write -P 9 1M 1M"];
    let said = run("qemu-io", &[&io[..], &["-c", "read -P 9 1M 1M"]].concat())?;
    ensure!(!said.contains("failed"), "{said}");
    let (object, image) = qemu(&certificates, "plain", port);
    refused("qemu-img", &["map", "--object", &object, "--image-opts", &image])?;
    attach.stop(PATIENCE)?;
    cluster.finish()
}

#[test]
fn a_node_serves_over_tls() -> Result<()> {
    let folder = std::env::temp_dir().join(format!("basalt-tls-{}", std::process::id()));
    let certificates = Certificates::make(folder.clone())?;
    let node_args = certificates.server();
    let cluster =
        Cluster::start_with("tls-node", &Shape { nodes: 1, node_args, ..Shape::default() })?;
    cluster.basalt(&["volume", "create", "disk", "--size", "64MiB"])?;
    cluster.basalt(&["volume", "attach", "disk", "--host", "node-1"])?;
    let port = cluster.nodes[0].ports.nbd;
    cluster.wait_served(&certificates.uri(port, ""))?;
    refused("nbdinfo", &[&cluster.nodes[0].uri("disk")])?;
    cluster.finish()?;
    std::fs::remove_dir_all(folder)?;
    Ok(())
}

/// A certificate that was valid in the year 2020.
const OLD: &str = "\
-----BEGIN CERTIFICATE-----
MIIBXTCCAQKgAwIBAgIBAjAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlsb2NhbGhv
c3QwHhcNMjAwMTAxMDAwMDAwWhcNMjEwMTAxMDAwMDAwWjAUMRIwEAYDVQQDDAls
b2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAASfP7Yja4WEaVrcb1Kw
b+/hctRNSKKW2nN6LzIDvz4P+BHXb45PcPriGZ7SucHVFP1E6kzKdsRSZU3iFdvm
WFiio0UwQzAMBgNVHRMBAf8EAjAAMBQGA1UdEQQNMAuCCWxvY2FsaG9zdDAdBgNV
HQ4EFgQUgs8jrEJZ1oU/iAogz9XXokQafhkwCgYIKoZIzj0EAwIDSQAwRgIhAOzS
ytDtjEohV0k6MFBsYoIGz91fGs+qSUofG5sSa2FoAiEAoEwkaIpiWwLLgp2sTWvp
yIpUBv/23R28EjBVUGdzVGs=
-----END CERTIFICATE-----
";

#[test]
fn files_that_can_not_be_used_are_named_at_start() -> Result<()> {
    let folder = std::env::temp_dir().join(format!("basalt-tls-files-{}", std::process::id()));
    let certificates = Certificates::make(folder.clone())?;
    let (good, key) = (certificates.path("server-cert.pem"), certificates.path("server-key.pem"));
    let (other_key, missing) = (certificates.path("client-key.pem"), certificates.path("missing"));
    let (old, empty) = (certificates.path("old.pem"), certificates.path("empty.pem"));
    std::fs::write(&old, OLD)?;
    std::fs::write(&empty, "")?;
    let data = certificates.path("node");
    let directory = folder.to_string_lossy();
    let cases: [(&[&str], &str, &str); 8] = [
        (&["--tls-cert", &missing, "--tls-key", &key], &missing, "No such file"),
        (&["--tls-cert", &directory, "--tls-key", &key], &directory, "can not be read"),
        (&["--tls-cert", &empty, "--tls-key", &key], &empty, "holds no certificate"),
        (&["--tls-cert", &good, "--tls-key", &good], &good, "holds no private key"),
        (&["--tls-cert", &good, "--tls-key", &other_key], &other_key, "does not belong to"),
        (&["--tls-cert", &old, "--tls-key", &key], &old, "expired"),
        (&["--tls-cert", &good], "--tls-cert", "--tls-key"),
        (&["--tls", "allowed"], "--tls allowed", "--tls-cert"),
    ];
    for (args, named, why) in cases {
        let attach = ["--cluster", "127.0.0.1:1", "--volume", "x", "--listen", "127.0.0.1:0"];
        let node = ["--data-dir", data.as_str(), "--nbd-listen", "127.0.0.1:0"].to_vec();
        for (program, own) in [("basalt-attach", attach.to_vec()), ("basaltd", node)] {
            let said = refused(program, &[&own[..], args].concat())?;
            ensure!(said.contains(named) && said.contains(why), "{program} {args:?}: {said}");
        }
    }
    ensure!(!Path::new(&data).exists(), "a node that can not start made its directory");
    std::fs::remove_dir_all(Path::new(&*directory))?;
    Ok(())
}
