//! Changes to OCSP responses, for the tests of both planes.

/// Sets a time of an OCSP response, a GeneralizedTime of 15 bytes, and signs the response anew. The times are when it was produced,
/// from when it is good, and until when.
pub(crate) fn with_time(
    mut response: Vec<u8>,
    index: usize,
    time: &[u8; 15],
    key: &rcgen::KeyPair,
) -> Vec<u8> {
    use rcgen::SigningKey as _;
    let times = response.windows(2).enumerate().filter(|(_, bytes)| *bytes == [0x18, 15]);
    let at = times.map(|(at, _)| at + 2).nth(index).unwrap();
    response[at..at + 15].copy_from_slice(time);
    // The algorithm, ecdsa-with-SHA256, stands between what is signed and the signature.
    const ALGORITHM: [u8; 12] = [0x30, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
    let end = response.windows(12).position(|bytes| bytes == ALGORITHM).unwrap();
    let length = |at: usize| match response[at + 1] {
        short @ ..=0x7f => 2 + usize::from(short),
        0x81 => 3 + usize::from(response[at + 2]),
        _ => 4 + (usize::from(response[at + 2]) << 8 | usize::from(response[at + 3])),
    };
    let start = (0..end).find(|at| response[*at] == 0x30 && at + length(*at) == end).unwrap();
    let (at, length) = (end + 12 + 3, usize::from(response[end + 13]) - 1);
    // Signatures of ECDSA differ in length by a byte or two.
    let signature = std::iter::repeat_with(|| key.sign(&response[start..end]).unwrap());
    let signature = signature.into_iter().find(|signature| signature.len() == length).unwrap();
    response[at..at + length].copy_from_slice(&signature);
    response
}
