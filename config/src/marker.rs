//! The commit marker: the last resource of every revision on the wire.

use bytes::Bytes;
use prost::Message as _;
use signalbox_proto::signalbox::config::v1::{
    Resource as WireResource, Revision, resource::Kind as WireKind,
};

use crate::digest::Digest;
use crate::snapshot::{RevisionId, Snapshot};

/// The commit marker of a revision, encoded. `full`: what was sent with it is all there is.
pub fn encode_marker(snapshot: &Snapshot, full: bool) -> Bytes {
    let revision = Revision {
        epoch: snapshot.id().epoch.to_string(),
        number: snapshot.id().number,
        resource_count: snapshot.len() as u64,
        digest: Bytes::copy_from_slice(&snapshot.digest().to_bytes()),
        full,
        committed_at_us: snapshot.committed_at_us(),
        generation: snapshot.assignment().generation,
        fleet: snapshot.assignment().fleet.to_string(),
    };
    WireResource { kind: Some(WireKind::Revision(revision)) }.encode_to_vec().into()
}

/// A marker as a proxy presents it when it connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkerVersion {
    /// The revision that the proxy serves.
    pub revision: RevisionId,
    /// The digest of that revision, in hexadecimal digits.
    pub digest: String,
    /// The generation of the proxy's fleet under which it was told to serve it; 0 while the fleet follows the head.
    pub generation: u64,
}

/// The version string under which a proxy presents the marker it serves: `EPOCH:NUMBER:DIGEST`, and `:GENERATION` if that is not 0.
pub fn marker_version(snapshot: &Snapshot) -> String {
    let (id, digest) = (snapshot.id(), snapshot.digest());
    match snapshot.assignment().generation {
        0 => format!("{}:{}:{digest}", id.epoch, id.number),
        generation => format!("{}:{}:{digest}:{generation}", id.epoch, id.number),
    }
}

/// Parses a [`marker_version`].
pub fn parse_marker_version(version: &str) -> Option<MarkerVersion> {
    let (before, last) = version.rsplit_once(':')?;
    // A digest is longer than any number.
    let (rest, generation) = match last.len() {
        Digest::TEXT_LEN => (version, 0),
        _ => (before, last.parse().ok()?),
    };
    let mut parts = rest.rsplitn(3, ':');
    let (digest, number, epoch) = (parts.next()?, parts.next()?, parts.next()?);
    let revision = RevisionId { epoch: epoch.into(), number: number.parse().ok()? };
    (digest.len() == Digest::TEXT_LEN).then(|| MarkerVersion {
        revision,
        digest: digest.to_owned(),
        generation,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Assignment;

    #[test]
    fn marker_versions_round_trip() {
        let id = RevisionId { epoch: "e:1".into(), number: 7 };
        for generation in [0, 1, u64::MAX] {
            let assignment = Assignment { fleet: "edge".into(), generation };
            let snapshot = Snapshot::empty("e").with(id.clone(), 0, []).assigned_by(assignment);
            let presented = parse_marker_version(&marker_version(&snapshot)).unwrap();
            assert_eq!(presented.revision, id);
            assert_eq!(presented.digest, Digest::default().to_string());
            assert_eq!(presented.generation, generation);
        }
    }

    #[test]
    fn text_that_is_no_marker_version_is_none() {
        let digest = Digest::default().to_string();
        for text in ["7", "", ":", "e:7:abc", &format!("e:x:{digest}"), &format!("e:7:{digest}:x"), &digest] {
            assert!(parse_marker_version(text).is_none(), "{text}");
        }
    }
}
