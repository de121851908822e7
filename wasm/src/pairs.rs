//! Maps of headers in the form in which modules exchange them: the number of pairs, the sizes of all names and values, and then
//! names and values, each ended by a zero byte. Numbers are little-endian, of four bytes.

use crate::status::Status;

/// A name and its value.
pub(crate) type Pair<'p> = (&'p [u8], &'p [u8]);

/// The most pairs in a map from a module.
pub(crate) const MAX_PAIRS: usize = 256;

/// Encodes pairs. A map without pairs is empty.
pub(crate) fn encode<'p>(pairs: impl Iterator<Item = Pair<'p>> + Clone) -> Vec<u8> {
    let (count, size) = pairs
        .clone()
        .fold((0_usize, 0), |(count, size), (name, value)| (count + 1, size + name.len() + value.len() + 10));
    if count == 0 {
        return Vec::new();
    }
    let mut out = Vec::with_capacity(4 + size);
    let number = |length: usize| u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
    out.extend_from_slice(&number(count));
    for (name, value) in pairs.clone() {
        out.extend_from_slice(&number(name.len()));
        out.extend_from_slice(&number(value.len()));
    }
    for (name, value) in pairs {
        for text in [name, value] {
            out.extend_from_slice(text);
            out.push(0);
        }
    }
    out
}

/// Decodes pairs. Nothing, and a single zero byte, are a map without pairs.
pub(crate) fn decode(encoded: &[u8]) -> Result<Vec<Pair<'_>>, Status> {
    if matches!(encoded, [] | [0]) {
        return Ok(Vec::new());
    }
    let bad = Status::BadArgument;
    let number = |at: usize| {
        let array = encoded.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(u32::from_le_bytes(array) as usize)
    };
    let count = number(0).filter(|count| *count <= MAX_PAIRS).ok_or(bad)?;
    let mut at = 4 + 8 * count;
    let mut text = |size: usize| {
        let end = at.checked_add(size).ok_or(bad)?;
        let text = encoded.get(at..end).ok_or(bad)?;
        if encoded.get(end) != Some(&0) {
            return Err(bad);
        }
        at = end + 1;
        Ok(text)
    };
    let sizes = (0..count).map(|index| number(4 + 8 * index).zip(number(8 + 8 * index)).ok_or(bad));
    sizes.map(|sizes| sizes.and_then(|(name, value)| Ok((text(name)?, text(value)?)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        let pairs: [(&[u8], &[u8]); 3] = [(b"a", b"1"), (b"b", b"22"), (b"empty", b"")];
        let encoded = encode(pairs.iter().copied());
        assert_eq!(&encoded[..20], [3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(decode(&encoded).unwrap(), pairs);
        assert!(encode(std::iter::empty()).is_empty());
    }

    #[test]
    fn maps_that_are_broken_are_refused_and_never_read_beyond() {
        assert_eq!(decode(b"").unwrap(), []);
        assert_eq!(decode(&[0]).unwrap(), []);
        assert_eq!(decode(&[0, 0, 0, 0]).unwrap(), []);
        let good = encode([(&b"a"[..], &b"1"[..])].into_iter());
        for end in 2..good.len() {
            assert_eq!(decode(&good[..end]), Err(Status::BadArgument), "{end}");
        }
        let mut huge = good.clone();
        huge[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(decode(&huge), Err(Status::BadArgument));
        assert_eq!(decode(&u32::MAX.to_le_bytes()), Err(Status::BadArgument));
        let mut unended = good;
        *unended.last_mut().unwrap() = b'x';
        assert_eq!(decode(&unended), Err(Status::BadArgument));
    }
}
