//! Serves volumes of a Basalt cluster over NBD, on a machine that holds no data.

use basalt_attach::options::Options;
use basalt_attach::process;
use basalt_node::ListenSource;
use clap::Parser;
use std::process::ExitCode;
use std::time::Duration;

/// A request takes and frees a dozen small pieces of memory, in bursts of a turn's requests.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long the last spans may take to be exported when the program ends.
const LAST_SPANS: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    // SAFETY: the first statement of the process: nothing else has opened or owns a descriptor.
    let inherited = unsafe { basalt_nbd::activation::inherited_sockets() };
    let options = Options::parse();
    if let Err(code) = process::start_telling("basalt-attach", &options.logs, &options.traces) {
        return code;
    }
    process::end_on_panic();
    basalt_node::raise_file_limit();
    basalt_node::huge_pages_where_asked_for();
    let inherited = match inherited {
        Ok(sockets) => sockets.into_iter().map(|s| ListenSource::Inherited(s.fd)).collect(),
        Err(problem) => {
            tracing::error!("socket activation: {problem}");
            return ExitCode::FAILURE;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .thread_name("control")
        .on_thread_park(basalt_node::give_back_memory)
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(async {
                process::export_traces()?;
                let result = basalt_attach::run::run(options, inherited).await;
                basalt_telemetry::flush(LAST_SPANS).await;
                result
            });
            // A helper thread that waits for a name service must not hold up the end.
            runtime.shutdown_background();
            result
        }
        Err(problem) => Err(problem.into()),
    };
    result.unwrap_or_else(|problem| {
        tracing::error!("{problem:#}");
        process::exit_code(&problem)
    })
}
