use clap::Parser as _;
use signalbox_proxy::args::Args;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    signalbox_proxy::run::run(Args::parse())
}
