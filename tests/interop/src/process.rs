//! Programs of this project as child processes: started, killed, stopped, their output kept.

use anyhow::{Context, Result, bail, ensure};
use basalt_security::Secrets;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
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

/// The folder in which clusters keep their files: `BASALT_TEST_DIR`, or that of the programs.
pub fn work_dir() -> PathBuf {
    std::env::var_os("BASALT_TEST_DIR").map_or_else(bin_dir, PathBuf::from)
}

/// The secret of all clusters of tests, which every program of ours is given by its environment. It is made when it is
/// first asked for.
///
/// # Panics
/// If it can not be made.
pub fn secret_file() -> PathBuf {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let path = work_dir().join("secret-of-tests");
        // Another process may have been faster.
        let made = Secrets::new().create(&path);
        let good = Secrets::load(&path);
        assert!(good.is_ok(), "{} can not be used: {made:?}, {good:?}", path.display());
        path
    });
    made.clone()
}

/// The variable by which programs of ours find [`secret_file`].
const SECRET_FILE: &str = "BASALT_SECRET_FILE";

/// The path of a program: ours from [`bin_dir`], others from the search path.
fn path_of(name: &str) -> PathBuf {
    let ours = bin_dir().join(name);
    if ours.exists() { ours } else { PathBuf::from(name) }
}

/// The Python that `scripts/setup.sh test` installed gRPC for.
///
/// # Errors
/// If it did not.
pub fn python() -> Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache =
        cache.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    let python = cache.context("there is no home directory")?.join("basalt/python/bin/python");
    ensure!(python.exists(), "{} is missing; run scripts/setup.sh test", python.display());
    Ok(python)
}

/// Runs a program to its end and gives what it printed; a status other than 0 is an error with its
/// messages. It is killed after five minutes.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    run_with(program, args, &[])
}

/// As [`run`], with variables of its environment.
///
/// # Errors
/// As [`run`].
pub fn run_with(program: &str, args: &[&str], variables: &[(String, String)]) -> Result<String> {
    let output = Command::new("timeout")
        .args(["-k", "5", "300"])
        .arg(path_of(program))
        .args(args)
        .env(SECRET_FILE, secret_file())
        .envs(variables.iter().map(|(name, value)| (name, value)))
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
    network: Option<Arc<File>>,
    socket: Option<TcpListener>,
    bare: bool,
    variables: Vec<(String, String)>,
    child: Option<Child>,
}

impl Program {
    /// A program of this project, not started.
    pub fn new(name: &str) -> Program {
        Program {
            name: name.to_owned(),
            args: Vec::new(),
            log: None,
            network: None,
            socket: None,
            bare: false,
            variables: Vec::new(),
            child: None,
        }
    }

    /// Adds arguments.
    pub fn args<const N: usize>(mut self, args: [&str; N]) -> Program {
        self.args.extend(args.iter().map(OsString::from));
        self
    }

    /// Adds arguments of any number.
    pub fn more_args(mut self, args: &[&str]) -> Program {
        self.args.extend(args.iter().map(OsString::from));
        self
    }

    /// Gives an option another value from the next start on.
    pub fn set_option(&mut self, option: &str, value: &str) {
        let at = self.args.iter().position(|arg| arg == option);
        match at.and_then(|at| self.args.get_mut(at + 1)) {
            Some(known) => *known = value.into(),
            None => self.args.extend([option.into(), value.into()]),
        }
    }

    /// Appends what it prints to a file.
    pub fn log(mut self, path: PathBuf) -> Program {
        self.log = Some(path);
        self
    }

    /// Lets it run in a network namespace, given as its file under `/proc`.
    pub fn network(mut self, namespace: Arc<File>) -> Program {
        self.network = Some(namespace);
        self
    }

    /// Hands it a listening socket, by the convention of systemd's socket activation.
    pub fn socket(mut self, socket: TcpListener) -> Program {
        self.socket = Some(socket);
        self
    }

    /// Does not tell it of any secret.
    pub fn bare(mut self) -> Program {
        self.bare = true;
        self
    }

    /// Adds variables to its environment.
    pub fn variables(mut self, variables: &[(String, String)]) -> Program {
        self.variables.extend_from_slice(variables);
        self
    }

    fn command(&self) -> Command {
        let path = path_of(&self.name);
        if self.socket.is_none() {
            return Command::new(path);
        }
        // The variable holds the process's own id, which the shell knows first.
        let mut command = Command::new("sh");
        command.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""]).arg(path).env("LISTEN_FDS", "1");
        command
    }

    /// Starts it.
    pub fn start(mut self) -> Result<Program> {
        self.restart()?;
        Ok(self)
    }

    /// Starts it (again) with the same arguments.
    pub fn restart(&mut self) -> Result<()> {
        let mut command = self.command();
        command.args(&self.args).stdin(Stdio::null());
        match self.bare {
            true => command.env_remove(SECRET_FILE),
            false => command.env(SECRET_FILE, secret_file()),
        };
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        if let Some(path) = &self.log {
            let log = OpenOptions::new().create(true).append(true).open(path)?;
            command.stdout(log.try_clone()?).stderr(log);
        }
        let network = self.network.as_ref().map(|file| file.as_raw_fd());
        let socket = self.socket.as_ref().map(TcpListener::as_raw_fd);
        // SAFETY: only system calls that are async-signal-safe and touch nothing of the parent.
        unsafe {
            command.pre_exec(move || prepare_child(network, socket));
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
        self.wait(patience)
    }

    /// Waits until it has ended by itself with status 0.
    pub fn wait(&mut self, patience: Duration) -> Result<()> {
        let mut status = None;
        let child = self.child.as_mut().with_context(|| format!("{} does not run", self.name))?;
        wait_until("it has ended", patience, || {
            status = child.try_wait()?;
            Ok(status.is_some())
        })
        .with_context(|| format!("{} does not end", self.name))?;
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

/// The first descriptor of socket activation.
const FIRST_SOCKET: RawFd = 3;

/// Between fork and exec. The child dies with its parent, so that a test or a demo that is killed
/// leaves nothing behind.
fn prepare_child(network: Option<RawFd>, socket: Option<RawFd>) -> std::io::Result<()> {
    // SAFETY: plain system calls on descriptors that the parent holds open.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if network.is_some_and(|fd| libc::setns(fd, libc::CLONE_NEWNET) < 0) {
            return Err(std::io::Error::last_os_error());
        }
        match socket {
            // A copy is not closed by exec, which a descriptor in its place already would be.
            Some(FIRST_SOCKET) if libc::fcntl(FIRST_SOCKET, libc::F_SETFD, 0) < 0 => {
                Err(std::io::Error::last_os_error())
            }
            Some(fd) if fd != FIRST_SOCKET && libc::dup2(fd, FIRST_SOCKET) < 0 => {
                Err(std::io::Error::last_os_error())
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It is gone already, or it goes now; there is nobody to tell.
        let _ = self.kill();
    }
}
