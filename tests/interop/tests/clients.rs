//! Foreign clients against the three-node cluster, through `basalt-attach`: every client works on
//! its own volume, so that none depends on what another left.

use anyhow::{Context, Result, ensure};
use basalt_interop::cluster::{Attached, Cluster, PATIENCE, Shape};
use basalt_interop::fio::FioJob;
use basalt_interop::process::{Program, run, wait_until};
use std::path::{Path, PathBuf};

const GIB: u64 = 1 << 30;

/// A cluster with one volume, served.
struct Served {
    cluster: Cluster,
    attached: Attached,
    uri: String,
}

fn serve(test: &str, size: &str) -> Result<Served> {
    let shape = Shape { device: "6GiB", ..Shape::default() };
    let cluster = Cluster::start_with(test, &shape)?;
    cluster.basalt(&["volume", "create", "disk", "--size", size])?;
    let attached = cluster.attach("disk", "client", false)?;
    let uri = attached.uri("disk");
    Ok(Served { cluster, attached, uri })
}

impl Served {
    fn path(&self, name: &str) -> PathBuf {
        self.cluster.folder().join(name)
    }

    fn finish(mut self) -> Result<()> {
        self.attached.process.stop(PATIENCE)?;
        self.cluster.finish()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

fn shell(script: &str) -> Result<String> {
    run("bash", &["-o", "pipefail", "-euc", script])
}

#[test]
fn nbdcopy_and_nbdinfo() -> Result<()> {
    let served = serve("nbdcopy", "1GiB")?;
    let uri = &served.uri;
    let info = run("nbdinfo", &["--json", uri])?;
    for word in ["\"export-size\": 1073741824", "\"can_multi_conn\": true", "base:allocation"] {
        ensure!(info.contains(word), "nbdinfo does not say {word}: {info}");
    }
    let list = run("nbdinfo", &["--list", uri])?;
    ensure!(list.contains("export=\"disk\""), "the export is not listed: {list}");
    let map = run("nbdinfo", &["--map", "--totals", uri])?;
    ensure!(map.contains("hole,zero"), "a new volume is not a hole: {map}");

    let (data, back) = (served.path("data"), served.path("back"));
    shell(&format!("head -c {GIB} /dev/urandom > {}", text(&data)))?;
    run("nbdcopy", &["--connections=4", "--requests=64", text(&data), uri])?;
    run("nbdcopy", &["--connections=4", uri, text(&back)])?;
    let sums = shell(&format!("sha256sum {} {}", text(&data), text(&back)))?;
    let sums: Vec<&str> = sums.lines().filter_map(|line| line.split(' ').next()).collect();
    ensure!(sums.len() == 2 && sums[0] == sums[1], "the hashes differ: {sums:?}");
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&data), uri])?;
    served.finish()
}

#[test]
fn qemu_img_and_qemu_io() -> Result<()> {
    let served = serve("qemu", "256MiB")?;
    let (uri, image) = (&served.uri, served.path("image"));
    shell(&format!("head -c 64M /dev/urandom > {0}; truncate -s 256M {0}", text(&image)))?;
    let convert = ["convert", "-n", "-W", "-m", "16", "-f", "raw", "-O", "raw", text(&image), uri];
    run("qemu-img", &convert)?;
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&image), uri])?;
    let io = |commands: &[&str]| -> Result<String> {
        let mut words = vec!["-f", "raw", uri.as_str()];
        for command in commands {
            words.extend(["-c", command]);
        }
        let said = run("qemu-io", &words)?;
        ensure!(!said.contains("verification failed"), "{said}");
        Ok(said)
    };
    io(&["write -P 0x5a -f 0 1M", "write -z -u 1M 4M", "write -P 0xa5 2560 512", "flush"])?;
    io(&[
        "read -P 0x5a 0 2560",
        "read -P 0xa5 2560 512",
        "read -P 0x5a 3072 1045504",
        "read -P 0 1M 4M",
    ])?;
    io(&[
        "discard 0 1M",
        "read -P 0 0 1M",
        "aio_write -P 7 8M 1M",
        "aio_write -P 8 9M 1M",
        "aio_flush",
    ])?;
    io(&["read -P 7 8M 1M", "read -P 8 9M 1M"])?;
    let map = run("qemu-img", &["map", "--output=json", "-f", "raw", uri])?;
    ensure!(map.contains("\"data\": false"), "the discarded range is still data: {map}");
    served.finish()
}

#[test]
fn the_protocol_feature_by_feature() -> Result<()> {
    let served = serve("conformance", "64MiB")?;
    let script =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../storage/attach/nbd/tests/conformance.py");
    let said = run("/usr/bin/python3", &["-B", script, &served.uri])?;
    println!("{said}");
    served.finish()
}

#[test]
fn fio_verifies() -> Result<()> {
    let served = serve("fio", "512MiB")?;
    let job = FioJob::verified_writes(&served.uri, 256 << 20);
    let result = job.run()?;
    println!(
        "4 KiB random writes: {:.0} IOPS, p99 {:.0} µs",
        result.write.iops, result.write.p99_us
    );
    let small = FioJob { block_bytes: 512, size_bytes: 4 << 20, seed: 2, ..job.clone() };
    small.run().context("512-byte requests")?;
    let large = FioJob { block_bytes: 1 << 20, depth: 8, seed: 3, ..job };
    large.run().context("1 MiB requests")?;
    served.finish()
}

/// Takes the mount, the loop device and the FUSE mount away again, in this order.
struct Mounted {
    folder: PathBuf,
    looped: String,
    _fuse: Program,
}

impl Mounted {
    fn mount(uri: &str, folder: PathBuf) -> Result<Mounted> {
        for name in ["fuse", "ext4"] {
            std::fs::create_dir_all(folder.join(name))?;
        }
        let file = folder.join("fuse/disk");
        let fuse = Program::new("nbdfuse")
            .args([text(&file), uri])
            .log(folder.join("nbdfuse.log"))
            .start()?;
        let appeared = file.clone();
        wait_until("nbdfuse shows the disk", PATIENCE, || Ok(appeared.exists()))?;
        let looped = run("losetup", &["-f", "--show", text(&file)])?.trim().to_owned();
        let mounted = Mounted { folder, looped, _fuse: fuse };
        Ok(mounted)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // On the way out after a failure some of it may not be there.
        let _ = run("umount", &[text(&self.folder.join("ext4"))]);
        let _ = run("losetup", &["-d", &self.looped]);
        let _ = run("fusermount3", &["-u", text(&self.folder.join("fuse"))]);
    }
}

#[test]
fn an_ext4_file_system() -> Result<()> {
    // SAFETY: reads the process's own user id.
    ensure!(unsafe { libc::geteuid() } == 0, "this test mounts a file system: run it as root");
    let served = serve("ext4", "512MiB")?;
    let folder = served.path("mount");
    let mount = folder.join("ext4");
    let mounted = Mounted::mount(&served.uri, folder.clone())?;
    run("mkfs.ext4", &["-q", "-F", &mounted.looped])?;
    run("mount", &[&mounted.looped, text(&mount)])?;
    let source = format!("{}/../..", env!("CARGO_MANIFEST_DIR"));
    shell(&format!(
        "for i in 1 2 3 4; do mkdir {m}/$i; cp -r {source}/storage {source}/docs {m}/$i; done;
         head -c 64M /dev/urandom > {m}/big; cp {m}/big {m}/copy; rm -r {m}/2; sync",
        m = text(&mount)
    ))?;
    let before = shell(&format!("cd {} && find . -type f | sort | xargs sha256sum", text(&mount)))?;
    run("umount", &[text(&mount)])?;
    run("e2fsck", &["-f", "-n", &mounted.looped])?;
    drop(mounted);

    let mounted = Mounted::mount(&served.uri, folder)?;
    run("mount", &["-o", "ro", &mounted.looped, text(&mount)])?;
    let after = shell(&format!("cd {} && find . -type f | sort | xargs sha256sum", text(&mount)))?;
    ensure!(before == after, "the files differ after a new mount");
    ensure!(before.lines().count() > 50, "hardly a file was there");
    drop(mounted);
    served.finish()
}
