//! The compiler, the functions that modules may call, and the thread that interrupts modules.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use wasmtime::{Config, Engine, Linker, OptLevel};

use crate::state::State;
use crate::{abi, wasi};

/// The time between two looks at the clock of running modules: finer than the shortest limit.
pub(crate) const TICK: Duration = Duration::from_millis(2);

/// The stack of a module, in bytes. That of a worker's thread has 2 MiB.
const STACK: usize = 512 << 10;

/// All that modules are compiled and run with. A proxy has one while it has plugins of this type.
pub(crate) struct Runtime {
    pub(crate) engine: Engine,
    pub(crate) linker: Linker<State>,
    /// The thread ends when this is dropped.
    _ticker: Option<Sender<()>>,
}

impl Runtime {
    /// A runtime that runs modules.
    pub(crate) fn start() -> Result<Self, String> {
        let mut runtime = Self::without_ticker()?;
        let (alive, gone) = mpsc::channel::<()>();
        let engine = runtime.engine.clone();
        // Nothing in this thread can panic, so it needs nobody to start it anew.
        let tick = move || {
            while let Err(RecvTimeoutError::Timeout) = gone.recv_timeout(TICK) {
                engine.increment_epoch();
            }
        };
        thread::Builder::new()
            .name("wasm-epochs".to_owned())
            .spawn(tick)
            .map_err(|error| format!("the thread that interrupts modules cannot be started: {error}"))?;
        runtime._ticker = Some(alive);
        Ok(runtime)
    }

    /// A runtime that only checks modules.
    pub(crate) fn without_ticker() -> Result<Self, String> {
        let mut config = Config::new();
        config.epoch_interruption(true);
        config.max_wasm_stack(STACK);
        config.cranelift_opt_level(OptLevel::Speed);
        config.wasm_memory64(false);
        config.wasm_multi_memory(false);
        let engine =
            Engine::new(&config).map_err(|error| format!("there is no WebAssembly here: {error}"))?;
        let mut linker = Linker::new(&engine);
        abi::add_to(&mut linker)
            .and_then(|()| wasi::add_to(&mut linker))
            .map_err(|error| format!("the functions of the host cannot be defined: {error}"))?;
        Ok(Self { engine, linker, _ticker: None })
    }
}
