//! How resources cross the wire and lie on a proxy's disk: see `config.proto`.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use signalbox_proto::signalbox::config::v1::{
    Resource as WireResource, Revision, resource::Kind as WireKind,
};
use signalbox_proto::{MARKER_NAME, RESOURCE_TYPE_URL};

use crate::digest::Digest;
use crate::key::{Kind, ResourceKey};
use crate::snapshot::{RevisionId, Snapshot};

/// The largest specification, bytes.
pub const MAX_SPEC: usize = 512 << 10;

/// What a resource of the wire holds.
#[derive(Debug)]
pub enum Payload {
    /// A specification's canonical JSON, and its kind.
    Spec(Kind, Bytes),
    /// The commit marker.
    Marker(Revision),
}

/// Reads the resource that was sent as `name`. The error names what a newer control plane may have added.
pub fn decode(name: &str, bytes: Bytes) -> Result<Payload, String> {
    let resource =
        WireResource::decode(bytes).map_err(|error| format!("{name} cannot be decoded: {error}"))?;
    let (kind, spec) = match resource.kind {
        Some(WireKind::Listener(spec)) => (Kind::Listener, spec),
        Some(WireKind::Route(spec)) => (Kind::Route, spec),
        Some(WireKind::Upstream(spec)) => (Kind::Upstream, spec),
        Some(WireKind::Plugin(spec)) => (Kind::Plugin, spec),
        Some(WireKind::Consumer(spec)) => (Kind::Consumer, spec),
        Some(WireKind::Certificate(spec)) => (Kind::Certificate, spec),
        Some(WireKind::Revision(revision)) if name == MARKER_NAME => return Ok(Payload::Marker(revision)),
        Some(WireKind::Revision(_)) => return Err(format!("{name} is a commit marker under another name")),
        None => return Err(format!("{name} is of a kind that this version does not know")),
    };
    let key: ResourceKey = name.parse()?;
    if key.kind == kind {
        Ok(Payload::Spec(kind, spec))
    } else {
        Err(format!("{name} holds a resource of kind {kind}"))
    }
}

/// The commit marker of a revision, encoded. `full`: what was sent with it is all there is.
pub fn encode_marker(snapshot: &Snapshot, full: bool) -> Bytes {
    let revision = Revision {
        epoch: snapshot.id().epoch.to_string(),
        number: snapshot.id().number,
        resource_count: snapshot.len() as u64,
        digest: Bytes::copy_from_slice(&snapshot.digest().to_bytes()),
        full,
        committed_at_us: snapshot.committed_at_us(),
    };
    WireResource { kind: Some(WireKind::Revision(revision)) }.encode_to_vec().into()
}

/// The version string under which a proxy presents the marker it serves: `EPOCH:NUMBER:DIGEST`.
pub fn marker_version(id: &RevisionId, digest: &Digest) -> String {
    format!("{}:{}:{digest}", id.epoch, id.number)
}

/// The revision and digest of a [`marker_version`].
pub fn parse_marker_version(version: &str) -> Option<(RevisionId, String)> {
    let mut parts = version.rsplitn(3, ':');
    let (digest, number, epoch) = (parts.next()?, parts.next()?, parts.next()?);
    Some((RevisionId { epoch: epoch.into(), number: number.parse().ok()? }, digest.to_owned()))
}

/// The xDS type of all resources.
pub fn type_url() -> &'static str {
    RESOURCE_TYPE_URL
}

/// `WireResource { kind: <kind>(json) }`, written by hand so that [`spec_of`] can point into it.
pub(crate) fn encode_spec(kind: Kind, json: &[u8]) -> Bytes {
    let tag = match kind {
        Kind::Listener => 1,
        Kind::Route => 2,
        Kind::Upstream => 3,
        Kind::Plugin => 4,
        Kind::Consumer => 5,
        Kind::Certificate => 6,
    };
    let len = json.len() as u64;
    let mut bytes = BytesMut::with_capacity(key_len(tag) + encoded_len_varint(len) + json.len());
    encode_key(tag, WireType::LengthDelimited, &mut bytes);
    encode_varint(len, &mut bytes);
    bytes.put_slice(json);
    bytes.freeze()
}

/// The JSON within what [`encode_spec`] made: behind one byte of key and the length.
pub(crate) fn spec_of(encoded: &[u8]) -> &[u8] {
    let length_bytes = encoded.iter().skip(1).take_while(|byte| **byte & 0x80 != 0).count() + 1;
    encoded.get(1 + length_bytes..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_is_found_in_its_encoding() {
        for len in [0, 1, 127, 128, 20_000] {
            let json = vec![b'x'; len];
            let encoded = encode_spec(Kind::Upstream, &json);
            assert_eq!(spec_of(&encoded), json);
            match decode("upstream/u", encoded) {
                Ok(Payload::Spec(Kind::Upstream, spec)) => assert_eq!(spec, json),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_a_newer_control_plane_sends_is_named() {
        // Field 9 is not known.
        let error = decode("policy/x", Bytes::from_static(&[0x4a, 0x01, b'x'])).unwrap_err();
        assert_eq!(error, "policy/x is of a kind that this version does not know");
    }

    #[test]
    fn marker_versions_round_trip() {
        let id = RevisionId { epoch: "e:1".into(), number: 7 };
        let version = marker_version(&id, &Digest::default());
        let (back, digest) = parse_marker_version(&version).unwrap();
        assert_eq!(back, id);
        assert_eq!(digest, Digest::default().to_string());
        assert!(parse_marker_version("7").is_none());
    }
}
