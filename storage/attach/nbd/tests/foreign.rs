//! Foreign clients against sessions over real sockets: a missing client is a failure that names the
//! Debian package to install.

mod clients;
mod server;

use basalt_nbd::{SessionConfig, TlsFiles, TlsPolicy, TlsServer};
use clients::{Scratch, attempt, conformance, noise, run};
use server::Server;
use std::path::Path;
use std::sync::Arc;

const MIB: u64 = 1 << 20;

fn plain(exports: &[(&str, u64, bool)]) -> (Arc<Server>, String) {
    let server = Arc::new(Server::new(SessionConfig::default(), None, exports));
    let addr = server.serve_tcp();
    (server, format!("nbd://{addr}"))
}

#[test]
fn conformance_over_tcp_and_unix() {
    let (server, uri) = plain(&[("vol", 256 * MIB, false)]);
    conformance(&[&format!("{uri}/vol")]);
    let scratch = Scratch::new("unix");
    let path = scratch.path("sock");
    server.serve_unix(Path::new(&path));
    conformance(&[&format!("nbd+unix:///vol?socket={path}")]);
}

#[test]
fn nbdinfo_tells_what_we_are() {
    let (_server, uri) = plain(&[("vol", 64 * MIB, false), ("fixed", 8 * MIB, true)]);
    let list = run("libnbd-bin", "nbdinfo", &["--list", "--json", &uri]);
    for part in ["\"vol\"", "\"fixed\"", "the volume vol", "\"block_size_preferred\": 4096"] {
        assert!(list.contains(part), "{part} is not in {list}");
    }
    let info = run("libnbd-bin", "nbdinfo", &["--json", &format!("{uri}/fixed")]);
    for part in ["\"is_read_only\": true", "\"can_multi_conn\": true", "\"export-size\": 8388608"] {
        assert!(info.contains(part), "{part} is not in {info}");
    }
    let map = run("libnbd-bin", "nbdinfo", &["--map", "--totals", &format!("{uri}/vol")]);
    assert!(map.contains("100.0%") && map.contains("hole,zero"), "{map}");
    let wrong = attempt("libnbd-bin", "nbdinfo", &[&format!("{uri}/nothing")]);
    assert!(!wrong.status.success(), "an export that is not there was shown");
}

#[test]
fn nbdcopy_in_and_out() {
    let (_server, uri) = plain(&[("vol", 96 * MIB, false)]);
    let uri = format!("{uri}/vol");
    let scratch = Scratch::new("copy");
    let (source, target) = (scratch.path("in"), scratch.path("out"));
    let mut data = noise(96 * MIB as usize);
    data[10 << 20..20 << 20].fill(0);
    std::fs::write(&source, &data).expect("a writable scratch directory");
    run("libnbd-bin", "nbdcopy", &["--connections=4", "--requests=64", &source, &uri]);
    run("libnbd-bin", "nbdcopy", &["--connections=4", "--requests=64", &uri, &target]);
    let sums = run("coreutils", "sha256sum", &[&source, &target]);
    let sums: Vec<&str> = sums.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(sums[0], sums[1]);
    let map = run("libnbd-bin", "nbdinfo", &["--map", &uri]);
    assert!(map.contains("hole,zero"), "zeros were not stored as holes: {map}");
}

#[test]
fn qemu_io_and_img() {
    let (_server, uri) = plain(&[("vol", 64 * MIB, false)]);
    let uri = format!("{uri}/vol");
    let mut args = vec!["-f", "raw", uri.as_str()];
    for command in [
        "write -P 0x5a -f 0 1M",
        "write -P 0xa5 512 512",
        "read -P 0x5a 0 512",
        "read -P 0xa5 512 512",
        "read -P 0x5a 1024 1k",
        "write -z -u 1M 4M",
        "read -P 0 1M 4M",
        "write -z 3584 1M",
        "read -P 0 3584 1M",
        "discard 0 1M",
        "aio_write -P 1 8M 3M",
        "aio_write -P 2 16M 3M",
        "aio_flush",
        "read -P 1 8M 3M",
        "read -P 2 16M 3M",
        "flush",
    ] {
        args.extend(["-c", command]);
    }
    let text = run("qemu-utils", "qemu-io", &args);
    assert!(!text.contains("failed"), "{text}");

    let scratch = Scratch::new("qemu");
    let image = scratch.path("image");
    let mut data = noise(64 * MIB as usize);
    data[5 << 20..30 << 20].fill(0);
    std::fs::write(&image, data).expect("a writable scratch directory");
    let convert = ["convert", "-n", "-W", "-m", "16", "-f", "raw", "-O", "raw", &image, &uri];
    run("qemu-utils", "qemu-img", &convert);
    run("qemu-utils", "qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, &uri]);
    let map = run("qemu-utils", "qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
    assert!(map.contains("\"data\": false"), "{map}");
}

#[test]
fn fio_verifies() {
    let (server, _) = plain(&[("vol", 64 * MIB, false)]);
    let scratch = Scratch::new("fio");
    let path = scratch.path("sock");
    server.serve_unix(Path::new(&path));
    let uri = format!("--uri=nbd+unix:///vol?socket={path}");
    for (bs, rw) in [("4k", "randwrite"), ("512-64k", "randrw"), ("128k", "write")] {
        let (bs, rw) = (format!("--bsrange={bs}-{bs}"), format!("--rw={rw}"));
        let bs = if bs.contains("512") { "--bsrange=512-64k" } else { &bs };
        let args = [
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            &rw,
            bs,
            "--iodepth=32",
            "--size=64m",
            "--io_size=48m",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--do_verify=1",
        ];
        let text = run("fio", "fio", &args);
        assert!(text.contains("err= 0"), "{text}");
    }
}

/// Certificates of an authority of our own, made with openssl.
fn certificates(scratch: &Scratch) -> TlsFiles {
    let authority = (scratch.path("ca-cert.pem"), scratch.path("ca-key.pem"));
    let new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
    let mut args = new.to_vec();
    args.extend(["-nodes", "-days", "2", "-subj", "/CN=test authority"]);
    args.extend(["-out", &authority.0, "-keyout", &authority.1]);
    run("openssl", "openssl", &args);
    for (name, usage) in [("server", "serverAuth"), ("client", "clientAuth")] {
        let cert = scratch.path(&format!("{name}-cert.pem"));
        let key = scratch.path(&format!("{name}-key.pem"));
        let usage = format!("extendedKeyUsage={usage}");
        let subject = format!("/CN={name}");
        let mut args = new.to_vec();
        args.extend(["-nodes", "-days", "2", "-subj", &subject, "-out", &cert, "-keyout", &key]);
        args.extend(["-CA", &authority.0, "-CAkey", &authority.1]);
        args.extend(["-addext", "basicConstraints=critical,CA:FALSE", "-addext", &usage]);
        args.extend(["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]);
        run("openssl", "openssl", &args);
    }
    let plain = scratch.0.join("plain");
    std::fs::create_dir_all(&plain).expect("a writable scratch directory");
    std::fs::copy(&authority.0, plain.join("ca-cert.pem")).expect("it was just made");
    TlsFiles {
        certificate: scratch.0.join("server-cert.pem"),
        key: scratch.0.join("server-key.pem"),
        client_authority: None,
    }
}

fn tls_uri(policy: TlsPolicy, files: TlsFiles) -> String {
    let config = SessionConfig { tls: policy, ..SessionConfig::default() };
    let tls = TlsServer::load(files).expect("openssl made the files");
    let exports = [("vol", 128 * MIB, false), ("secret", 64 * MIB, false)];
    let addr = Arc::new(Server::new(config, Some(tls), &exports)).serve_tcp();
    format!("nbd://{addr}/vol")
}

#[test]
fn tls_required_offered_and_with_client_certificates() {
    let scratch = Scratch::new("tls");
    let files = certificates(&scratch);
    let certs = ["--certs", scratch.0.to_str().expect("a path in UTF-8")];
    let with = |uri: &str, more: &[&str]| {
        conformance(&[&[uri], &certs[..], more].concat());
    };
    with(&tls_uri(TlsPolicy::Required, files.clone()), &["--tls", "required"]);
    let offered = tls_uri(TlsPolicy::Offered, files.clone());
    with(&offered, &["--tls", "offered"]);
    conformance(&[&offered, "--only", "read_and_write"]);
    let authority = Some(scratch.0.join("ca-cert.pem"));
    let checked = TlsFiles { client_authority: authority, ..files };
    with(&tls_uri(TlsPolicy::Required, checked), &["--client-cert"]);
}

#[test]
fn tls_with_other_stacks() {
    let scratch = Scratch::new("tls-qemu");
    let uri = tls_uri(TlsPolicy::Required, certificates(&scratch));
    let port = uri.rsplit(':').next().and_then(|rest| rest.split('/').next()).expect("a port");
    let object = format!("tls-creds-x509,id=t,endpoint=client,dir={}", scratch.path("plain"));
    let image = format!(
        "driver=nbd,server.type=inet,server.host=127.0.0.1,server.port={port},export=secret,tls-creds=t"
    );
    let args = ["--object", &object, "--image-opts", &image, "-c", "write -P 3 0 1M"];
    let text = run("qemu-utils", "qemu-io", &[&args[..], &["-c", "read -P 3 0 1M"]].concat());
    assert!(!text.contains("failed"), "{text}");
}

#[test]
fn missing_and_wrong_certificates_are_named() {
    let scratch = Scratch::new("tls-wrong");
    let mut files = certificates(&scratch);
    std::fs::write(&files.key, "not a key").expect("a writable scratch directory");
    let error = TlsServer::load(files.clone()).expect_err("no key").to_string();
    assert!(error.contains("server-key.pem"), "{error}");
    files.certificate = scratch.0.join("nothing.pem");
    let error = TlsServer::load(files).expect_err("no certificate").to_string();
    assert!(error.contains("nothing.pem"), "{error}");
}
