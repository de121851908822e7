use std::process::ExitCode;

use signalbox_plugins::builtin;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    signalbox_proxy::run(Ok(builtin().clone()))
}
