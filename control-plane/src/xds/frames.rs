//! Responses in their encoded form. What all streams have in common is encoded once; each stream adds its own end.
//!
//! A protobuf message is the concatenation of its fields, so a response is the bytes of a [`Frame`], which are shared,
//! followed by a few bytes that hold the revision's number, the commit marker and the nonce.

use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use signalbox_proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};

/// The shared bytes of one response; cloning shares.
#[derive(Debug, Clone)]
pub struct Frame {
    bytes: Bytes,
    /// The same as a zstd frame, if it is shorter. The first stream that may send it fills it.
    compressed: Arc<OnceLock<Option<Bytes>>>,
}

impl Frame {
    /// Encodes what a response has that does not depend on the stream.
    pub fn encode(type_url: &str, resources: Vec<Resource>, removed_resources: Vec<String>) -> Self {
        let response = DeltaDiscoveryResponse {
            type_url: type_url.to_owned(),
            resources,
            removed_resources,
            ..DeltaDiscoveryResponse::default()
        };
        Self { bytes: response.encode_to_vec().into(), compressed: Arc::default() }
    }

    /// The encoded fields.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The encoded fields as a zstd frame, which is made once; `None` if that would not make them shorter.
    pub(super) fn compressed(&self) -> Option<&Bytes> {
        let compress = || {
            if self.bytes.len() < COMPRESSED {
                return None;
            }
            let compressed = zstd::bulk::compress(&self.bytes, zstd::DEFAULT_COMPRESSION_LEVEL).ok()?;
            (compressed.len() < self.bytes.len()).then(|| compressed.into())
        };
        self.compressed.get_or_init(compress).as_ref()
    }
}

/// Wraps `content` as a zstd frame without compressing it. Concatenated frames decode as one, so it can follow a compressed
/// [`Frame`]. `None` if it is too long for such a frame.
///
/// RFC 8878, section 3.1.1.
pub(super) fn stored(content: &[u8]) -> Option<Bytes> {
    const MAGIC: u32 = 0xFD2F_B528;
    /// The window is the content, whose length follows.
    const SINGLE_SEGMENT: u8 = 1 << 5;
    const LENGTH_IN_TWO_BYTES: u8 = 1 << 6;
    const LAST_RAW_BLOCK: u64 = 1;
    let mut frame = BytesMut::with_capacity(content.len() + 10);
    frame.put_u32_le(MAGIC);
    if let Ok(length) = u8::try_from(content.len()) {
        frame.put_u8(SINGLE_SEGMENT);
        frame.put_u8(length);
    } else {
        frame.put_u8(SINGLE_SEGMENT | LENGTH_IN_TWO_BYTES);
        frame.put_u16_le(u16::try_from(content.len() - 256).ok()?);
    }
    frame.put_uint_le(u64::try_from(content.len()).ok()? << 3 | LAST_RAW_BLOCK, 3);
    frame.put(content);
    Some(frame.freeze())
}

/// A response of fewer bytes is not compressed: it fits into a few packets.
const COMPRESSED: usize = 4 << 10;

/// Encodes the end of a response: its revision's number, the marker if the revision is complete, and its nonce.
pub(super) fn encode_end(number: u64, marker: Option<Resource>, nonce: String) -> Bytes {
    let end = DeltaDiscoveryResponse {
        system_version_info: number.to_string(),
        resources: marker.into_iter().collect(),
        nonce,
        ..DeltaDiscoveryResponse::default()
    };
    end.encode_to_vec().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(frames: &[u8]) -> Vec<u8> {
        zstd::stream::decode_all(frames).unwrap()
    }

    #[test]
    fn stored_frames_decode_to_their_content() {
        for length in [0, 1, 255, 256, 257, 1000, 65_791] {
            let content: Vec<u8> = (0..length).map(|index| (index % 251) as u8).collect();
            assert_eq!(decoded(&stored(&content).unwrap()), content, "{length}");
        }
        assert!(stored(&vec![0; 65_792]).is_none());
    }

    #[test]
    fn a_compressed_frame_and_a_stored_end_decode_as_one_message() {
        let removed: Vec<String> = (0..1000).map(|index| format!("route/r{index}")).collect();
        let frame = Frame::encode("type", Vec::new(), removed.clone());
        let compressed = frame.compressed().unwrap();
        assert!(compressed.len() * 2 < frame.bytes().len());
        assert_eq!(compressed.as_ptr(), frame.clone().compressed().unwrap().as_ptr(), "it is made once");
        let end = encode_end(7, None, "nonce".to_owned());
        let sent = [&compressed[..], &stored(&end).unwrap()].concat();
        let response = DeltaDiscoveryResponse::decode(&*decoded(&sent)).unwrap();
        assert_eq!((response.removed_resources, response.nonce.as_str()), (removed, "nonce"));
        assert_eq!(response.system_version_info, "7");
    }

    #[test]
    fn a_short_frame_is_not_compressed() {
        let frame = Frame::encode("type", Vec::new(), vec!["a".repeat(1000)]);
        assert!(frame.compressed().is_none());
    }
}
