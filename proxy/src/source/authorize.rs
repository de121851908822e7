//! The token that a proxy presents to control planes.

use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};

/// Puts the token into a request, if there is one.
pub(super) fn authorize<T>(request: &mut Request<T>, token: Option<&MetadataValue<Ascii>>) {
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", token.clone());
    }
}
