//! `koala-agent`: arguments in, exit code out.

fn main() -> std::process::ExitCode {
    koala_agent::cli::main()
}
