use std::process::ExitCode;

use signalbox_process::arguments;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    signalbox_process::run(|| signalbox_proxy::run::run(arguments::parse()))
}
