//! The command line of Basalt: clusters, their nodes, volumes and their snapshots.

mod apply;
mod audit;
mod backup;
mod changes;
mod class;
mod clones;
mod cluster;
mod cuts;
mod device;
mod doctor;
mod documents;
mod events;
mod explain;
mod get;
mod healing;
mod node;
mod operation;
mod options;
mod output;
mod permissions;
mod quota;
mod restore;
mod scrub;
mod secret;
mod snapshot;
mod space;
mod token;
mod traced;
mod volume;
mod why;

use basalt_api::dial::{self, Cluster, plain};
use basalt_api::error;
use basalt_security::SecurityError;
use clap::{ArgMatches, CommandFactory, FromArgMatches};
use options::{AuditCommand, Command, Options};
use std::process::ExitCode;
use tonic::{Code, Status};

/// Makes a call whose request may have to be sent to several nodes.
macro_rules! call {
    ($cluster:expr, $method:ident, $request:expr) => {{
        let request = $request;
        let request = &request;
        $cluster
            .call(|mut client| {
                let request = request.clone();
                async move { client.$method(request).await }
            })
            .await
    }};
}
pub(crate) use call;

/// As `call!`, of a service by its client.
macro_rules! call_of {
    ($cluster:expr, $client:ident, $method:ident, $request:expr) => {{
        let request = $request;
        let request = &request;
        $cluster
            .call_through(|channel| {
                let request = request.clone();
                async move { $client::new(channel).$method(request).await }
            })
            .await
    }};
}
pub(crate) use call_of;

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The cluster said no, or nothing.
    Status(Status),
    /// It took too long.
    Timeout(String),
    /// What came can not be shown.
    Output(String),
    /// What was given can not be read.
    Usage(String),
    /// Something of what was asked for was refused, or is not well; it was shown.
    Shown,
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        Failure::Status(status)
    }
}

impl From<SecurityError> for Failure {
    fn from(error: SecurityError) -> Failure {
        Failure::Usage(error.to_string())
    }
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Failure::Timeout(_) => 5,
            Failure::Output(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Shown => 4,
            Failure::Status(status) => match status.code() {
                Code::InvalidArgument => 2,
                Code::NotFound => 3,
                Code::AlreadyExists | Code::FailedPrecondition | Code::Aborted => 4,
                Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => 5,
                Code::Unauthenticated | Code::PermissionDenied => 6,
                _ => 1,
            },
        }
    }

    fn text(&self) -> String {
        match self {
            Failure::Timeout(text) | Failure::Output(text) | Failure::Usage(text) => text.clone(),
            Failure::Shown => String::new(),
            Failure::Status(status) => format!("{}{}", plain(status), hint(status)),
        }
    }

    fn reason(&self) -> String {
        match self {
            Failure::Timeout(_) => "TIMEOUT".to_owned(),
            Failure::Output(_) => "OUTPUT".to_owned(),
            Failure::Usage(_) => "USAGE".to_owned(),
            Failure::Shown => "SHOWN".to_owned(),
            Failure::Status(status) => match error::reason_of(status) {
                Some(reason) => reason.as_str_name().trim_start_matches("ERROR_REASON_").to_owned(),
                None => format!("{:?}", status.code()),
            },
        }
    }
}

/// A node that wants to know who asks ends a connection in the clear without a word.
fn hint(status: &Status) -> &'static str {
    use Code::{Cancelled, Internal, Unavailable, Unknown};
    let silent = matches!(status.code(), Cancelled | Internal | Unavailable | Unknown);
    if silent && error::reason_of(status).is_none() && dial::credentials().is_empty() {
        return ". If the nodes have a secret, say who asks: --secret-file, or --ca with --cert and --key or a token";
    }
    ""
}

fn main() -> ExitCode {
    let matches = Options::command().get_matches();
    let options = Options::from_arg_matches(&matches).unwrap_or_else(|problem| problem.exit());
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(problem) => {
            eprintln!("basalt: {problem}");
            return ExitCode::FAILURE;
        }
    };
    let result = traced::start(&options)
        .and_then(|()| runtime.block_on(traced::run(&options, &words(&matches), run(&options))));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure @ Failure::Shown) => ExitCode::from(failure.code()),
        Err(failure) => {
            output::failure(options.output, &failure.reason(), &failure.text());
            ExitCode::from(failure.code())
        }
    }
}

/// The words of a command without what was given to it.
fn words(matches: &ArgMatches) -> String {
    let (mut words, mut at) = (Vec::new(), matches);
    while let Some((word, below)) = at.subcommand() {
        words.push(word);
        at = below;
    }
    words.join(" ")
}

/// What needs no cluster; whether it was that.
fn run_alone(options: &Options) -> Result<bool, Failure> {
    match &options.command {
        Command::Secret(command) => secret::change(options, command)?,
        Command::Identity(command) => return secret::issue(options, command),
        Command::Audit(AuditCommand::Verify { folder: Some(folder), .. }) => {
            audit::verify_folder(options, folder)?;
        }
        Command::Explain(asked) => explain::run(options, asked)?,
        Command::Permissions { markdown } => permissions::run(options, *markdown)?,
        Command::Completion { shell } => {
            let mut words = Vec::new();
            clap_complete::generate(*shell, &mut Options::command(), "basalt", &mut words);
            output::print(&words)?;
        }
        Command::Version => output::version(options.output)?,
        _ => return Ok(false),
    }
    Ok(true)
}

async fn run(options: &Options) -> Result<(), Failure> {
    if run_alone(options)? {
        return Ok(());
    }
    let (name, role) = secret::own_name();
    dial::present(options.credentials.credentials(&name, role)?);
    let cluster = Cluster::new(options.cluster.clone(), options.timeout);
    match &options.command {
        Command::Cluster(command) => cluster::run(options, &cluster, command).await,
        Command::Node(command) => node::run(options, &cluster, command).await,
        Command::Device(command) => device::run(options, &cluster, command).await,
        Command::Volume(command) => volume::run(options, &cluster, command).await,
        Command::Space(command) => space::run(options, &cluster, command).await,
        Command::Scrub(command) => scrub::run(options, &cluster, command).await,
        Command::Snapshot(command) => snapshot::run(options, &cluster, command).await,
        Command::Class(command) => class::run(options, &cluster, command).await,
        Command::Quota(command) => quota::run(options, &cluster, command).await,
        Command::Operation(command) => operation::run(options, &cluster, command).await,
        Command::Get(asked) => get::run(options, &cluster, asked).await,
        Command::Events(asked) => events::run(options, &cluster, asked).await,
        Command::Apply(asked) => apply::run(options, &cluster, asked, false).await,
        Command::Diff(asked) => apply::run(options, &cluster, asked, true).await,
        Command::Doctor(asked) => doctor::run(options, &cluster, asked).await,
        Command::Why(asked) => why::run(options, &cluster, asked).await,
        Command::Token(command) => token::run(options, &cluster, command).await,
        Command::Audit(command) => audit::run(options, &cluster, command).await,
        Command::Identity(_) => secret::show(options, &cluster).await,
        // They were done above.
        Command::Secret(_)
        | Command::Explain(_)
        | Command::Permissions { .. }
        | Command::Completion { .. }
        | Command::Version => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use basalt_api::v1::ErrorReason;

    #[test]
    fn shells_learn_the_words() {
        for shell in
            [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish]
        {
            let mut words = Vec::new();
            clap_complete::generate(shell, &mut Options::command(), "basalt", &mut words);
            let words = String::from_utf8(words).expect("text");
            assert!(words.contains("bootstrap") && words.contains("request-id"), "{shell}");
        }
    }

    #[test]
    fn a_command_is_known_by_its_words() {
        let matches = |text: &str| {
            Options::command().try_get_matches_from(text.split(' ')).expect("good words")
        };
        assert_eq!(words(&matches("basalt volume create demo --size 1GiB")), "volume create");
        assert_eq!(words(&matches("basalt --trace version")), "version");
    }

    #[test]
    fn exit_codes_are_as_documented() {
        let code = |reason| Failure::Status(error::status(reason, "x", &[])).code();
        assert_eq!(code(ErrorReason::InvalidField), 2);
        assert_eq!(code(ErrorReason::VolumeNotFound), 3);
        assert_eq!(code(ErrorReason::VolumeAttached), 4);
        assert_eq!(code(ErrorReason::EtagMismatch), 4);
        assert_eq!(code(ErrorReason::NodeNotFound), 3);
        assert_eq!(code(ErrorReason::TooFewNodes), 4);
        assert_eq!(code(ErrorReason::NoQuorum), 5);
        assert_eq!(code(ErrorReason::CredentialsMissing), 6);
        assert_eq!(code(ErrorReason::PermissionDenied), 6);
        assert_eq!(Failure::Timeout(String::new()).code(), 5);
        let failure = Failure::Status(error::status(ErrorReason::NoQuorum, "x", &[]));
        assert_eq!(failure.reason(), "NO_QUORUM");
    }
}
