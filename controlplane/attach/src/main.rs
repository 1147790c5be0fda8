//! Serves volumes of a Basalt cluster over NBD, on a machine that holds no data.

use basalt_attach::options::Options;
use basalt_attach::process;
use basalt_node::ListenSource;
use clap::Parser;
use std::process::ExitCode;

/// A request takes and frees a dozen small pieces of memory, in bursts of a turn's requests.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // SAFETY: the first statement of the process: nothing else has opened or owns a descriptor.
    let inherited = unsafe { basalt_nbd::activation::inherited_sockets() };
    let options = Options::parse();
    process::start_logging(options.log_format);
    process::end_on_panic();
    basalt_node::raise_file_limit();
    let inherited = match inherited {
        Ok(sockets) => sockets.into_iter().map(|s| ListenSource::Inherited(s.fd)).collect(),
        Err(problem) => {
            tracing::error!("socket activation: {problem}");
            return ExitCode::FAILURE;
        }
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().thread_name("control").enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(basalt_attach::run::run(options, inherited));
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
