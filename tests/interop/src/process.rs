//! Programs of this project as child processes: started, killed, stopped, their output kept.

use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The folder with this project's programs: `BASALT_BIN_DIR`, or where the running program or test
/// stands.
pub fn bin_dir() -> PathBuf {
    if let Some(folder) = std::env::var_os("BASALT_BIN_DIR") {
        return PathBuf::from(folder);
    }
    let mut folder = std::env::current_exe().unwrap_or_default();
    folder.pop();
    if folder.ends_with("deps") {
        folder.pop();
    }
    folder
}

/// The path of a program: ours from [`bin_dir`], others from the search path.
fn path_of(name: &str) -> PathBuf {
    let ours = bin_dir().join(name);
    if ours.exists() { ours } else { PathBuf::from(name) }
}

/// Runs a program to its end and gives what it printed; a status other than 0 is an error with its
/// messages. It is killed after five minutes.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new("timeout")
        .args(["-k", "5", "300"])
        .arg(path_of(program))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("can not run {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{program} {} ended with {}: {}{}",
        args.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim(),
        if output.status.code() == Some(127) { " (is its Debian package installed?)" } else { "" }
    );
    Ok(text)
}

/// Asks until a condition holds.
pub fn wait_until(
    what: &str,
    patience: Duration,
    mut holds: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let began = Instant::now();
    loop {
        if holds()? {
            return Ok(());
        }
        ensure!(began.elapsed() < patience, "waited {patience:?} in vain until {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A program to start: a builder, and after [`Program::start`] the running child.
pub struct Program {
    name: String,
    args: Vec<OsString>,
    log: Option<PathBuf>,
    child: Option<Child>,
}

impl Program {
    /// A program of this project, not started.
    pub fn new(name: &str) -> Program {
        Program { name: name.to_owned(), args: Vec::new(), log: None, child: None }
    }

    /// Adds arguments.
    pub fn args<const N: usize>(mut self, args: [&str; N]) -> Program {
        self.args.extend(args.iter().map(OsString::from));
        self
    }

    /// Appends what it prints to a file.
    pub fn log(mut self, path: PathBuf) -> Program {
        self.log = Some(path);
        self
    }

    /// Starts it.
    pub fn start(mut self) -> Result<Program> {
        self.restart()?;
        Ok(self)
    }

    /// Starts it (again) with the same arguments.
    pub fn restart(&mut self) -> Result<()> {
        let mut command = Command::new(path_of(&self.name));
        command.args(&self.args).stdin(Stdio::null());
        if let Some(path) = &self.log {
            let log = OpenOptions::new().create(true).append(true).open(path)?;
            command.stdout(log.try_clone()?).stderr(log);
        }
        // SAFETY: prctl is async-signal-safe and touches nothing of the parent. The child dies with
        // its parent, so that a test or a demo that is killed leaves nothing behind.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        self.child = Some(command.spawn().with_context(|| format!("can not start {}", self.name))?);
        Ok(())
    }

    /// Its process id; 0 if it does not run.
    pub fn id(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Whether it runs.
    pub fn alive(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: libc::c_int) -> Result<()> {
        let id = libc::pid_t::try_from(self.id()).context("a process id")?;
        ensure!(id > 0, "{} does not run", self.name);
        // SAFETY: plain system call; the id is that of a child that was not waited for.
        ensure!(unsafe { libc::kill(id, signal) } == 0, "can not signal {}", self.name);
        Ok(())
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().with_context(|| format!("can not kill {}", self.name))?;
            child.wait()?;
        }
        Ok(())
    }

    /// SIGTERM, and waits until it has ended by itself with status 0.
    pub fn stop(&mut self, patience: Duration) -> Result<()> {
        if !self.alive() {
            bail!("{} has ended before it was stopped{}", self.name, self.log_tail());
        }
        self.signal(libc::SIGTERM)?;
        let mut status = None;
        let child = self.child.as_mut().context("it runs")?;
        wait_until("it has stopped", patience, || {
            status = child.try_wait()?;
            Ok(status.is_some())
        })
        .with_context(|| format!("{} does not stop", self.name))?;
        self.child = None;
        let status = status.context("it has ended")?;
        ensure!(status.success(), "{} ended with {status}{}", self.name, self.log_tail());
        Ok(())
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let Some(path) = &self.log else { return String::new() };
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(15);
        format!("; the end of {}:\n{}", path.display(), lines[from..].join("\n"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It is gone already, or it goes now; there is nobody to tell.
        let _ = self.kill();
    }
}
