//! The `toolgate` binary: all of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    toolgate::cli::main()
}
