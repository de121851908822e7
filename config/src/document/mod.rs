//! Declarative documents: several resources in one text, YAML or JSON.
//!
//! A document may be large, and wrong all over. It is read in one pass into one text of canonical JSON and a place for
//! each resource ([`Document`]), which takes about as much memory as the document itself. Each resource becomes a tree
//! of values only when its turn comes.

mod compact;
mod parts;
mod strict;
mod write;
mod yaml;

use self::compact::EMPTY;
pub use self::compact::{Document, Entry};
use self::parts::Parts;
pub use self::strict::{MAX_VALUES, parse_json};
pub use self::write::{join, join_with, to_yaml};
use self::yaml::parse_yaml;
use crate::error::FieldError;

/// Splits a document into its resources: one or several YAML documents `{kind: route, name: …}`, a list of such, or
/// one document with a list for each kind. JSON is YAML.
pub fn split(text: &str) -> Result<Vec<Entry>, Vec<FieldError>> {
    Ok(read(text)?.iter().collect())
}

/// Reads a document as [`split`] does, into a form that takes little more memory than the text.
pub fn read(text: &str) -> Result<Document, Vec<FieldError>> {
    let mut parts = if text.trim_start().starts_with(['{', '[']) && !text.contains("\n---") {
        // JSON first: its errors say line and column, and it is much faster for large documents.
        match serde_json::from_str::<Parts>(text) {
            Ok(parts) => parts,
            Err(json_error) => parse_yaml(text)
                .map_err(|_| vec![FieldError::new("", format!("is not JSON: {json_error}"))])?,
        }
    } else {
        parse_yaml(text).map_err(|error| vec![FieldError::new("", format!("is not YAML: {error}"))])?
    };
    if parts.is_null {
        // Half written, perhaps. Taken for a set of nothing, it would remove everything.
        return Err(vec![FieldError::new("", EMPTY)]);
    }
    parts.document.refuse_duplicates(parts.names, &mut parts.errors);
    parts.errors.finish(Some(parts.document))
}
