//! Changes of messages, which `request-transform` and `response-transform` share.

mod edits;
mod json;

use http::HeaderMap;

pub(crate) use edits::{Edits, Given, Made, Parser, edit_headers, given_header, given_text, header_value};
pub(crate) use json::{
    Pointer, Scalar, edit_body, given_scalar, is_compressed, is_json, member_name, scalar_text,
};

/// Removes the digests of a body that has changed.
pub(crate) fn forget_digests(headers: &mut HeaderMap) {
    for name in ["digest", "content-digest", "repr-digest", "content-md5"] {
        headers.remove(name);
    }
}

/// The largest body that may be held in memory.
pub(crate) const MAX_BODY: u64 = 64 << 20;
