//! Other people's storage stacks on top of an export of the three-node cluster: nbdkit with filters
//! that check what passes through them, QEMU's block layer, servers that serve the export on.

use anyhow::{Context, Result, ensure};
use basalt_interop::cluster::{Attached, Cluster, PATIENCE};
use basalt_interop::process::{Program, run, wait_until};
use std::path::PathBuf;
use std::process::Command;

/// Two served volumes of this size.
const SIZE: &str = "128MiB";
const BYTES: u64 = 128 << 20;

struct Served {
    cluster: Cluster,
    attached: [Attached; 2],
}

impl Served {
    fn start(test: &str) -> Result<Served> {
        let cluster = Cluster::start(test)?;
        let attach = |volume: &str| {
            cluster.basalt(&["volume", "create", volume, "--size", SIZE])?;
            cluster.attach(volume, &format!("client-{volume}"), false)
        };
        let attached = [attach("one")?, attach("two")?];
        Ok(Served { cluster, attached })
    }

    fn one(&self) -> String {
        self.attached[0].uri("one")
    }

    fn two(&self) -> String {
        self.attached[1].uri("two")
    }

    fn path(&self, name: &str) -> String {
        self.cluster.folder().join(name).to_string_lossy().into_owned()
    }

    /// A file of the volumes' size: data, a hole, data that ends in the middle of a block.
    fn image(&self) -> Result<String> {
        let image = self.path("image");
        shell(&format!(
            "head -c 24M /dev/urandom > {image}; truncate -s {BYTES} {image};
             head -c 100001 /dev/urandom | dd of={image} bs=1M seek=60 conv=notrunc status=none"
        ))?;
        Ok(image)
    }

    fn finish(mut self) -> Result<()> {
        for attached in &mut self.attached {
            attached.process.stop(PATIENCE)?;
        }
        self.cluster.finish()
    }
}

fn shell(script: &str) -> Result<String> {
    run("bash", &["-o", "pipefail", "-euc", script])
}

/// What a program says when it refuses, which it must.
fn refusal(program: &str, args: &[&str]) -> Result<String> {
    let asked = Command::new("timeout").args(["-k", "5", "60", program]).args(args).output()?;
    ensure!(asked.status.code() == Some(1), "{program} {args:?} ended with {}", asked.status);
    Ok(String::from_utf8_lossy(&asked.stderr).into_owned())
}

/// qemu-io's commands on an image of a format.
fn qemu_io(format: &str, uri: &str, commands: &[&str]) -> Result<()> {
    let mut words = vec!["-f", format, uri];
    for command in commands {
        words.extend(["-c", command]);
    }
    let said = run("qemu-io", &words)?;
    ensure!(!said.contains("failed"), "{said}");
    Ok(())
}

#[test]
fn nbdkit_passes_everything_through() -> Result<()> {
    let served = Served::start("nbdkit")?;
    let (image, one, two) = (served.image()?, served.one(), served.two());
    run("nbdcopy", &["--destination-is-zero", "--connections=4", &image, &one])?;
    let map = run("nbdinfo", &["--map", "--totals", &one])?;
    ensure!(map.contains("hole,zero"), "holes were filled: {map}");

    // nbdkit's NBD plugin is the client; the filters stand between it and nbdcopy.
    let through = |filter: &str, uri: &str, script: &str| -> Result<String> {
        let (filter, setting) = filter.split_once(' ').unwrap_or((filter, "shared=1"));
        let (filter, plugin) = (format!("--filter={filter}"), format!("uri={uri}"));
        let words = ["-U", "-", &filter, "nbd", &plugin, setting, "--run", script];
        run("nbdkit", &words).with_context(|| format!("the filter {filter}"))
    };
    // checkwrite compares what is written with what is there, and fails the copy at a difference.
    let copy = format!("nbdcopy {image} $uri");
    through("checkwrite", &one, &copy)?;
    ensure!(
        through("checkwrite", &two, &copy).is_err(),
        "checkwrite finds an empty volume equal to an image"
    );
    // Nothing of what nbdcopy does may break the sizes that the server told.
    through("blocksize-policy blocksize-error-policy=error", &two, &copy)?;
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, &two])?;
    // Writes stay in front of the export.
    let write = "qemu-io -f raw -c 'write -P 9 0 2M' -c 'read -P 9 0 2M' -c 'write -z 4M 1M' $uri";
    let said = through("cow", &one, write)?;
    ensure!(!said.contains("failed"), "{said}");
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, &one])?;
    served.finish()
}

#[test]
fn images_of_qemu_and_a_bench() -> Result<()> {
    let served = Served::start("images")?;
    let (one, two) = (served.one(), served.two());
    for more in ["-c2000 -w -d32 -s4096 --pattern=17", "-c1000 -w -d16 -s4096 --flush-interval=16"]
    {
        let more: Vec<&str> = more.split(' ').collect();
        run("qemu-img", &[&["bench", "-f", "raw", "-t", "none"], &more[..], &[&one]].concat())?;
    }
    qemu_io("raw", &one, &["read -P 0 0 1000k", "read -P 17 4M 3000k"])?;
    // An image on top of the export, committed into it.
    let overlay = served.path("overlay");
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &one, "-F", "raw", &overlay])?;
    qemu_io("qcow2", &overlay, &["write -P 5 1M 3M", "write -z 5M 1M", "read -P 17 4M 512k"])?;
    run("qemu-img", &["commit", "-q", &overlay])?;
    qemu_io("raw", &one, &["read -P 5 1M 3M", "read -P 0 5M 1M", "read -P 17 4M 512k"])?;
    // An image inside the export.
    run("qemu-img", &["create", "-q", "-f", "qcow2", &two, "96M"])?;
    let inside = ["write -P 6 10M 3M", "discard 11M 1M", "write -z 12M 64k", "flush"];
    qemu_io("qcow2", &two, &inside)?;
    qemu_io("qcow2", &two, &["read -P 6 10M 1M", "read -P 0 11M 1M", "read -P 6 12352k 512k"])?;
    run("qemu-img", &["check", "-f", "qcow2", &two])?;
    served.finish()
}

#[test]
fn served_on_by_qemu_nbd() -> Result<()> {
    let served = Served::start("served-on")?;
    let (socket, image) = (served.path("socket"), served.image()?);
    let uri = format!("nbd+unix:///?socket={socket}");
    let mut server = Program::new("qemu-nbd")
        .args(["--persistent", "--shared=0", "-k", &socket, "-f", "raw", &served.one()])
        .log(PathBuf::from(served.path("qemu-nbd.log")))
        .start()?;
    wait_until("qemu-nbd serves", PATIENCE, || {
        ensure!(server.alive(), "qemu-nbd ended{}", server.log_tail());
        Ok(run("nbdinfo", &["--size", &uri]).is_ok())
    })?;
    run("nbdcopy", &["--connections=4", &image, &uri])?;
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, &uri])?;
    server.stop(PATIENCE)?;
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, &served.one()])?;
    served.finish()
}

#[test]
fn what_is_not_there_is_refused_properly() -> Result<()> {
    let served = Served::start("refused")?;
    let one = served.one();
    for context in ["qemu:dirty-bitmap:b0", "qemu:allocation-depth", "base:nonsense"] {
        let said = refusal("nbdinfo", &[&format!("--map={context}"), &one])?;
        ensure!(said.contains("does not support metadata context"), "{context}: {said}");
    }
    let port = served.attached[0].port;
    let bitmap = format!(
        "driver=nbd,host=127.0.0.1,port={port},export=one,x-dirty-bitmap=qemu:dirty-bitmap:b0"
    );
    let said = refusal("qemu-img", &["map", "--image-opts", &bitmap])?;
    ensure!(said.contains("Could not open"), "a bitmap that is not there: {said}");
    let said = refusal("nbdinfo", &[&served.attached[0].uri("nothing")])?;
    ensure!(said.contains("nothing"), "an export that is not there: {said}");
    // All of it left the export as it was.
    qemu_io("raw", &one, &["write -P 1 0 64k", "read -P 1 0 64k"])?;
    served.finish()
}
