//! The kinds that an author may write.

/// The kinds that an author may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// All.
    Administrator,
    /// Those that are not for administrators alone.
    Editor,
}
