//! Work that takes long for large sets.

/// Runs what takes long for `size` resources, so that other tasks of this thread go elsewhere meanwhile.
pub(crate) fn compute<T>(size: usize, work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    // A runtime of one thread has no elsewhere.
    let has_others =
        Handle::try_current().is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread);
    if size >= 1000 && has_others { tokio::task::block_in_place(work) } else { work() }
}
