use std::process::ExitCode;

use signalbox_plugins::builtin;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    signalbox_control_plane::run(Ok(builtin().clone()))
}
