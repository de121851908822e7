//! A program from its start to its exit code.

use std::any::Any;
use std::cell::RefCell;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook};
use std::process::ExitCode;

/// Runs `program` on this thread. An error is written to standard error as `error: …`, and so is a panic of this thread:
/// libraries panic when the operating system refuses them a thread.
pub fn run(program: impl FnOnce() -> anyhow::Result<()>) -> ExitCode {
    let main = std::thread::current().id();
    set_hook(Box::new(move |info| {
        if std::thread::current().id() == main {
            PLACE.set(info.location().map(ToString::to_string));
        } else {
            log_panic(info);
        }
    }));
    let text = match catch_unwind(AssertUnwindSafe(program)) {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(error)) => format!("{error:#}"),
        Err(panic) => {
            let place = PLACE.take().unwrap_or_default();
            format!("{} (at {place})", message(&*panic))
        }
    };
    // Where that cannot be written either, the code says it.
    let _ = writeln!(std::io::stderr(), "error: {text}");
    ExitCode::FAILURE
}

thread_local! {
    /// Where this thread panicked last.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Logs a panic of a thread that is not the program's first.
fn log_panic(info: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    // Empty unless RUST_BACKTRACE asks for it.
    let backtrace = std::backtrace::Backtrace::capture();
    let trace = match backtrace.status() {
        std::backtrace::BacktraceStatus::Captured => backtrace.to_string(),
        _ => String::new(),
    };
    let (name, reason) = (thread.name().unwrap_or_default(), message(info.payload()));
    tracing::error!(thread = name, place, reason, trace, "a thread panicked");
}

fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message")
}
