//! Foreign programs, run under a hard limit of time.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs a client under a hard limit of time; its output if it ended well, a panic if not.
pub fn run(package: &str, program: &str, args: &[&str]) -> String {
    let output = attempt(package, program, args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// Runs a client under a hard limit of time.
pub fn attempt(package: &str, program: &str, args: &[&str]) -> Output {
    let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .any(|dir| dir.join(program).is_file())
        || Path::new(program).is_file();
    assert!(found, "{program} is missing: install the Debian package {package}");
    Command::new("timeout")
        .args(["-k", "5", "120", program])
        .args(args)
        .output()
        .expect("coreutils' timeout is there")
}

/// A directory that is removed at the end.
pub struct Scratch(pub PathBuf);

impl Scratch {
    /// Makes it.
    pub fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("basalt-nbd-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a writable temporary directory");
        Scratch(path)
    }

    /// The path of a file in it.
    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("a path in UTF-8").to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Bytes that compress badly and repeat nowhere (xorshift).
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Runs the conformance script.
pub fn conformance(args: &[&str]) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/conformance.py");
    let all: Vec<&str> = ["-B", script].into_iter().chain(args.iter().copied()).collect();
    run("python3-libnbd", "/usr/bin/python3", &all);
}
