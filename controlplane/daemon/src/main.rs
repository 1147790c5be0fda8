//! One node of a Basalt cluster.

use basalt_attach::process;
use basaltd::options::Options;
use clap::Parser;
use std::num::NonZero;
use std::process::ExitCode;
use std::time::Duration;

/// A request takes and frees a dozen small pieces of memory, in bursts of a turn's requests.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long the last spans may take to be exported when the node stops.
const LAST_SPANS: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let options = Options::parse();
    if let Err(code) = process::start_telling("basaltd", &options.logs, &options.traces) {
        return code;
    }
    process::end_on_panic();
    basalt_node::raise_file_limit();
    basalt_node::huge_pages_where_asked_for();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(control_threads())
        .thread_name("control")
        .on_thread_park(basalt_node::give_back_memory)
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(async {
                process::export_traces()?;
                let result = basaltd::daemon::run(options).await;
                basalt_telemetry::flush(LAST_SPANS).await;
                result
            });
            // What helper threads still wait for must not hold up the end.
            runtime.shutdown_background();
            result
        }
        Err(problem) => Err(problem.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            tracing::error!("{problem:#}");
            process::exit_code(&problem)
        }
    }
}

/// Threads of the control plane. One does, and where it shares its processors with reactors a second one costs more in
/// waking each other than it does; with more processors, a long call holds up no other.
fn control_threads() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    if processors > 4 { 2 } else { 1 }
}
