//! `batch-agent`: see [`batch_agent::cli`].

fn main() -> std::process::ExitCode {
    batch_agent::cli::main()
}
