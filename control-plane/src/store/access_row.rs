//! Tokens, sessions and the audit trail, as the store has them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The rights of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads.
    Viewer,
    /// Reads, and writes resources.
    Editor,
    /// All.
    Admin,
    /// xDS only.
    Proxy,
}

impl Role {
    const ALL: [Role; 4] = [Role::Viewer, Role::Editor, Role::Admin, Role::Proxy];

    /// `viewer`
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Editor => "editor",
            Role::Admin => "admin",
            Role::Proxy => "proxy",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == s)
            .ok_or_else(|| format!("unknown role {s:?}; known are viewer, editor, admin, proxy"))
    }
}

/// A role as it is stored: a newer version may have written one that this version does not know. Such a role may do
/// nothing here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredRole {
    /// One of this version's.
    Known(Role),
    /// Another.
    Unknown(Arc<str>),
}

impl StoredRole {
    /// `viewer`
    pub fn as_str(&self) -> &str {
        match self {
            Self::Known(role) => role.as_str(),
            Self::Unknown(text) => text,
        }
    }

    /// The role, if this version knows it.
    pub fn known(&self) -> Option<Role> {
        match self {
            Self::Known(role) => Some(*role),
            Self::Unknown(_) => None,
        }
    }
}

impl From<Role> for StoredRole {
    fn from(role: Role) -> Self {
        Self::Known(role)
    }
}

impl From<&str> for StoredRole {
    fn from(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Unknown(text.into()), Self::Known)
    }
}

/// A token; its text is not stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    /// Unique; the author of what is done with it.
    pub name: String,
    /// The role, which says what it may do.
    pub role: StoredRole,
    /// SHA-256 of its text. Tokens are 256 random bits, so a fast hash is enough. It has another length when a
    /// newer version made it otherwise; then nothing matches it here.
    pub hash: Vec<u8>,
    /// Microseconds since 1970.
    pub created_at_us: i64,
}

/// A session of the UI; its cookie is not stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRow {
    /// The session's id where sessions are listed and ended. It opens nothing.
    pub id: String,
    /// SHA-256 of the cookie, which is 256 random bits.
    pub hash: [u8; 32],
    /// The name of the token it was opened with.
    pub token: String,
    /// Where that token is from.
    pub token_source: TokenSource,
    /// SHA-256 of the cookie and the token's hash: tells the token without storing anything of it.
    pub binding: [u8; 32],
    /// Microseconds since 1970.
    pub created_at_us: i64,
    /// Microseconds since 1970; up to a minute behind.
    pub last_used_at_us: i64,
    /// Microseconds since 1970: the end, however much it is used.
    pub expires_at_us: i64,
}

/// Where a token is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TokenSource {
    /// The database: valid on every replica until it is deleted.
    Stored,
    /// A flag or an environment variable: valid on the replica that has it, as long as it is given.
    Flag,
    /// A file that is re-read: valid on the replica that reads it, as long as it is in there.
    File,
}

impl TokenSource {
    /// `stored`
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Flag => "flag",
            Self::File => "file",
        }
    }
}

/// One entry of the audit trail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// Counts up.
    pub id: i64,
    /// Microseconds since 1970.
    pub at_us: i64,
    /// The name of the token that did it.
    pub actor: String,
    /// The action.
    pub action: String,
    /// Details of the operation.
    pub detail: String,
    /// The revision it made, if it made one.
    pub revision: Option<u64>,
}
