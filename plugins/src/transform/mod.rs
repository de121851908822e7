//! Changes of messages, which `request-transform` and `response-transform` share.

mod edits;
mod json;

pub(crate) use edits::{Edits, Given, Made, Parser, edit_headers, given_header, given_text, header_value};
pub(crate) use json::{
    Pointer, Scalar, edit_body, given_scalar, is_compressed, is_json, member_name, scalar_text,
};

/// The largest body that may be held in memory.
pub(crate) const MAX_BODY: u64 = 64 << 20;
