//! A resource in the bytes that cross the wire and lie on a proxy's disk: see `config.proto`.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, encoded_len_varint,
    key_len, skip_field,
};
use prost::{DecodeError, Message as _};
use signalbox_proto::signalbox::config::v1::Revision;
use signalbox_proto::{MARKER_NAME, MARKER_TAG, RESOURCE_TYPE_URL};

use crate::key::ResourceKey;
use crate::kind::Kind;
use crate::specification::Audience;

/// The largest specification, bytes.
pub const MAX_SPEC: usize = 512 << 10;

/// The content of a resource of the wire.
#[derive(Debug)]
pub enum Payload {
    /// A specification's canonical JSON, and its kind.
    Spec(Kind, Bytes),
    /// The commit marker.
    Marker(Revision),
}

/// Reads the resource that was sent as `name`. The error names what a newer control plane may have added.
pub fn decode(name: &str, bytes: Bytes) -> Result<Payload, String> {
    let undecodable = |error: DecodeError| format!("{name} cannot be decoded: {error}");
    let Some((field, content)) = known_field(bytes).map_err(undecodable)? else {
        return Err(format!("{name} is of a kind that this version does not know"));
    };
    match field {
        Field::Marker if name == MARKER_NAME => {
            Revision::decode(content).map(Payload::Marker).map_err(undecodable)
        }
        Field::Marker => Err(format!("{name} is a commit marker under another name")),
        Field::Spec(kind) => {
            let key: ResourceKey = name.parse()?;
            if key.kind == kind {
                Ok(Payload::Spec(kind, content))
            } else {
                Err(format!("{name} holds a resource of kind {kind}"))
            }
        }
    }
}

/// A field of `signalbox.config.v1.Resource`.
enum Field {
    Spec(Kind),
    Marker,
}

/// The field that a message has, and its content. Fields that are not known are skipped; of several the last counts, as
/// protobuf has it for a `oneof`.
fn known_field(mut message: Bytes) -> Result<Option<(Field, Bytes)>, DecodeError> {
    let mut found = None;
    while message.has_remaining() {
        let (tag, wire_type) = decode_key(&mut message)?;
        let field = match tag {
            MARKER_TAG => Some(Field::Marker),
            tag => Kind::of_wire_tag(tag).map(Field::Spec),
        };
        let Some(field) = field.filter(|_| wire_type == WireType::LengthDelimited) else {
            skip_field(wire_type, tag, &mut message, DecodeContext::default())?;
            continue;
        };
        let mut rest = message.clone();
        let length = usize::try_from(decode_varint(&mut rest)?).unwrap_or(usize::MAX);
        // This says so when the message ends before the field does.
        skip_field(wire_type, tag, &mut message, DecodeContext::default())?;
        found = Some((field, rest.split_to(length.min(rest.len()))));
    }
    Ok(found)
}

/// The xDS type of all resources.
pub fn type_url() -> &'static str {
    RESOURCE_TYPE_URL
}

/// `Resource { <field of the kind>: json }`, written by hand so that [`spec_of`] can point into it. Resources of kinds for control
/// planes only are never sent, so the JSON stands alone.
pub(crate) fn encode_spec(kind: Kind, json: &[u8]) -> Bytes {
    let Audience::Proxies { wire_tag } = kind.audience() else { return Bytes::copy_from_slice(json) };
    let len = json.len() as u64;
    let mut bytes = BytesMut::with_capacity(key_len(wire_tag) + encoded_len_varint(len) + json.len());
    encode_key(wire_tag, WireType::LengthDelimited, &mut bytes);
    encode_varint(len, &mut bytes);
    bytes.put_slice(json);
    bytes.freeze()
}

/// The JSON within what [`encode_spec`] made: behind the key and the length, each a varint.
pub(crate) fn spec_of(kind: Kind, encoded: &[u8]) -> &[u8] {
    let behind_varint = |bytes: &[u8]| bytes.iter().take_while(|byte| **byte & 0x80 != 0).count() + 1;
    if !kind.is_for_proxies() {
        return encoded;
    }
    let behind_key = encoded.get(behind_varint(encoded)..).unwrap_or_default();
    behind_key.get(behind_varint(behind_key)..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_is_found_in_its_encoding() {
        for kind in Kind::ALL {
            for len in [0, 1, 127, 128, 20_000] {
                let json = vec![b'x'; len];
                let encoded = encode_spec(kind, &json);
                assert_eq!(spec_of(kind, &encoded), json);
                match decode(&format!("{kind}/u"), encoded) {
                    Ok(Payload::Spec(decoded, spec)) => assert_eq!((decoded, &*spec), (kind, &*json)),
                    Err(_) if !kind.is_for_proxies() => {}
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    #[test]
    fn the_bytes_of_a_spec_are_the_fields_of_the_message() {
        assert_eq!(&*encode_spec(Kind::Listener, b"{}"), b"\x0a\x02{}");
        assert_eq!(&*encode_spec(Kind::Certificate, b"{}"), b"\x32\x02{}");
    }

    #[test]
    fn a_resource_of_an_unknown_kind_is_named() {
        // Field 9 is not known.
        let error = decode("policy/x", Bytes::from_static(&[0x4a, 0x01, b'x'])).unwrap_err();
        assert_eq!(error, "policy/x is of a kind that this version does not know");
    }

    #[test]
    fn unknown_fields_are_skipped_and_the_last_known_one_counts() {
        let message = Bytes::from_static(b"\x12\x01a\x4a\x01x\x12\x01b\x48\x05");
        match decode("route/r", message) {
            Ok(Payload::Spec(Kind::Route, spec)) => assert_eq!(&*spec, b"b"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_message_that_is_cut_off_is_refused() {
        for cut_off in
            [&b"\x12\x05ab"[..], b"\x12", b"\x7a\x05a", b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\x7f"]
        {
            let error = decode("route/r", Bytes::copy_from_slice(cut_off)).unwrap_err();
            assert!(error.starts_with("route/r cannot be decoded"), "{error}");
        }
    }
}
